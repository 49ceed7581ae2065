//! Tracebacks without the frames of libraries.

use serde_json::Value;

use super::shorten::tail;
use crate::output::{joined, strip_ansi};

/// The last lines that are kept of a traceback whose frames are not known, and the most frames of libraries that are kept at its end.
const MAX_LINES: usize = 14;
const LIBRARY_FRAMES: usize = 1;
/// The most entries of a traceback that are read.
const MAX_ENTRIES: usize = 1000;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frames {
    pub text: String,
    pub omitted_bytes: u64,
}

/// The frames of the person's code, and the last one of a library: where the error was raised. `head` is the error's own line, which
/// is not repeated. `max` bounds the text in bytes.
pub(super) fn own_frames(entries: &[Value], head: &str, max: usize) -> Frames {
    let skipped = entries.len().saturating_sub(MAX_ENTRIES);
    let entries: Vec<String> = entries[skipped..].iter().map(|entry| plain(entry, max)).collect();
    let all: usize = entries.iter().map(String::len).sum();
    let text = if entries.iter().any(|entry| is_ipython_frame(entry)) {
        ipython_frames(&entries)
    } else {
        let lines: Vec<&str> = entries.iter().flat_map(|entry| entry.lines()).collect();
        lines[lines.len().saturating_sub(MAX_LINES)..].join("\n")
    };
    // The last line repeats the error itself.
    let name = head.split(':').next().unwrap_or(head);
    let text = match text.rsplit_once('\n') {
        Some((frames, last)) if last.starts_with(name) => frames,
        None if text.starts_with(name) => "",
        _ => &text,
    };
    let text = tail(text.trim_end(), max).to_owned();
    Frames { omitted_bytes: all.saturating_sub(text.len()) as u64, text }
}

fn plain(entry: &Value, max: usize) -> String {
    strip_ansi(tail(&joined(Some(entry)), 2 * max))
}

/// IPython begins a frame with `Cell In[3], line 2` or `File /path:12, in name(...)`.
fn is_ipython_frame(entry: &str) -> bool {
    is_own_frame(entry) || entry.starts_with("File ")
}

fn is_own_frame(entry: &str) -> bool {
    const OWN: [&str; 5] = ["Cell In", "Input In", "File /work/", "File ~/", "File <"];
    OWN.iter().any(|start| entry.starts_with(start))
}

fn ipython_frames(entries: &[String]) -> String {
    let last_libraries = entries.iter().enumerate().rev().filter(|(_, entry)| is_ipython_frame(entry)).take(LIBRARY_FRAMES);
    let kept_anyway: Vec<usize> = last_libraries.map(|(index, _)| index).collect();
    let (mut lines, mut left_out) = (Vec::new(), 0);
    for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| is_ipython_frame(entry)) {
        if !is_own_frame(entry) && !kept_anyway.contains(&index) {
            left_out += 1;
            continue;
        }
        note_left_out(&mut lines, &mut left_out);
        lines.push(entry.trim_end().to_owned());
    }
    note_left_out(&mut lines, &mut left_out);
    lines.join("\n")
}

fn note_left_out(lines: &mut Vec<String>, frames: &mut usize) {
    match std::mem::take(frames) {
        0 => {}
        1 => lines.push("[… 1 frame of a library is left out here …]".to_owned()),
        count => lines.push(format!("[… {count} frames of libraries are left out here …]")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn frames(entries: &[&str]) -> String {
        let entries: Vec<Value> = entries.iter().map(|entry| json!(entry)).collect();
        own_frames(&entries, "ValueError: no", 2048).text
    }

    #[test]
    fn frames_of_libraries_are_left_out() {
        let text = frames(&[
            "\u{1b}[31m-----\u{1b}[39m",
            "\u{1b}[31mValueError\u{1b}[39m   Traceback (most recent call last)",
            "\u{1b}[36mCell\u{1b}[39m\u{1b}[36m \u{1b}[39m\u{1b}[32mIn[1]\u{1b}[39m\u{1b}[32m, line 3\u{1b}[39m\n----> 3 f()\n",
            "File \u{1b}[32m/opt/kernel/lib/a.py:1\u{1b}[39m, in f()\n----> 1 g()\n",
            "File /opt/kernel/lib/b.py:1, in g()\n----> 1 h()\n",
            "File /work/mine.py:7, in h()\n----> 7 i()\n",
            "File /opt/kernel/lib/c.py:1, in i()\n----> 1 raise\n",
            "ValueError: no",
        ]);
        let expected = "Cell In[1], line 3\n----> 3 f()\n[… 2 frames of libraries are left out here …]\n\
                        File /work/mine.py:7, in h()\n----> 7 i()\nFile /opt/kernel/lib/c.py:1, in i()\n----> 1 raise";
        assert_eq!(text, expected);
    }

    #[test]
    fn unknown_tracebacks_keep_their_last_lines() {
        let lines: Vec<String> = (0..200).map(|n| format!("\u{1b}[1mline {n}\u{1b}[0m")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let text = frames(&lines);
        assert!(text.ends_with("line 199") && text.starts_with("line 186"), "{text}");
        assert_eq!(frames(&["Error in f(): no", "ValueError: no"]), "Error in f(): no");
        assert_eq!(frames(&[]), "");
    }

    #[test]
    fn hostile_traceback_is_bounded() {
        let entries = vec![json!(format!("File /x\n{}", "y".repeat(100_000))); 5000];
        let frames = own_frames(&entries, "E", 2048);
        assert!(frames.text.len() <= 2048 && frames.omitted_bytes > 2048);
    }
}
