//! The outputs of a cell as one short text for a language model: no colours, long texts by their beginning and end, tables as markdown,
//! errors with the frames of the person's own code, images by reference. The text says what it leaves out. Pure.

mod html_table;
mod image;
mod shorten;
mod traceback;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

pub use image::Image;
use shorten::Omitted;
pub use shorten::head_and_tail;

use crate::output::joined;

/// The images of one cell that are kept: the latest ones.
pub const MAX_IMAGES: usize = 6;
/// The image types that models accept.
const IMAGE_TYPES: [&str; 2] = ["image/png", "image/jpeg"];

/// The limits of a summary.
#[derive(Clone, Copy, Debug)]
pub struct SummaryLimits {
    /// The largest text of one output, bytes.
    pub output_bytes: usize,
    /// The largest text of all outputs together, bytes.
    pub total_bytes: usize,
    /// The largest image, bytes. Larger ones are only named.
    pub image_bytes: u64,
}

impl Default for SummaryLimits {
    fn default() -> Self {
        Self { output_bytes: 6 << 10, total_bytes: 16 << 10, image_bytes: 3 << 20 }
    }
}

/// The outputs of a cell in the form for a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub text: String,
    /// In the order in which the text names them.
    pub images: Vec<Image>,
    /// The bytes of text that were left out.
    pub omitted_bytes: u64,
}

/// What is known of an artifact.
#[derive(Clone, Copy, Debug, Default)]
pub struct ArtifactInfo {
    pub bytes: u64,
    /// Width and height in pixels.
    pub size: Option<(u32, u32)>,
}

/// Summarizes the outputs of a cell. `artifacts`: those of the session, by their hashes.
pub fn summarize(outputs: &[Value], artifacts: &HashMap<String, ArtifactInfo>, limits: SummaryLimits) -> Summary {
    let mut summarizer =
        Summarizer { artifacts, limits, text: String::new(), images: Vec::new(), omitted: Omitted::default() };
    let mut rest = outputs;
    while let Some(output) = rest.first() {
        let text = match output.get("output_type").and_then(Value::as_str) {
            Some("stream") => {
                let count = rest.iter().take_while(|next| is_same_stream(output, next)).count();
                let (stream, others) = rest.split_at(count);
                rest = others;
                summarizer.stream(stream)
            }
            kind => {
                rest = &rest[1..];
                match kind {
                    Some("error") => summarizer.error(output),
                    Some(OMISSION) => summarizer.omission(output),
                    _ => summarizer.display(output),
                }
            }
        };
        summarizer.add(&text);
    }
    summarizer.finish()
}

fn is_same_stream(one: &Value, other: &Value) -> bool {
    other.get("output_type") == one.get("output_type") && other.get("name") == one.get("name")
}

/// Stands between outputs for others that were not read, of about this many bytes.
pub fn omission(bytes: u64) -> Value {
    json!({"output_type": OMISSION, "bytes": bytes})
}

const OMISSION: &str = "cellkeep.omission";

struct Summarizer<'a> {
    artifacts: &'a HashMap<String, ArtifactInfo>,
    limits: SummaryLimits,
    text: String,
    images: Vec<Image>,
    omitted: Omitted,
}

impl Summarizer<'_> {
    fn add(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push('\n');
        }
        self.text.push_str(text);
        // The text is cut at the end. Cutting it here as well bounds the memory for thousands of outputs.
        if self.text.len() > 4 * self.limits.total_bytes {
            self.text = self.omitted.shorten(&self.text, 2 * self.limits.total_bytes);
        }
    }

    fn finish(mut self) -> Summary {
        let text = self.omitted.shorten(&self.text, self.limits.total_bytes);
        Summary { text, images: self.images, omitted_bytes: self.omitted.bytes }
    }

    fn shortened(&mut self, text: &str) -> String {
        self.omitted.shorten(text, self.limits.output_bytes)
    }

    /// Neighbouring outputs of one stream as one text.
    fn stream(&mut self, outputs: &[Value]) -> String {
        let text: String = outputs.iter().map(|output| joined(output.get("text"))).collect();
        let text = self.shortened(&text);
        let is_error = outputs.first().is_some_and(|output| output.get("name").is_some_and(|name| name == "stderr"));
        if is_error && !text.is_empty() { format!("[stderr]\n{text}") } else { text }
    }

    fn omission(&mut self, output: &Value) -> String {
        let bytes = output.get("bytes").and_then(Value::as_u64).unwrap_or(0);
        self.omitted.bytes += bytes;
        format!("[… about {bytes} bytes are left out here …]")
    }

    fn error(&mut self, output: &Value) -> String {
        let part = |key: &str| joined(output.get(key));
        let (name, value) = (part("ename"), part("evalue"));
        let head = if value.is_empty() { name } else { format!("{name}: {}", self.shortened(&value)) };
        let lines = output.get("traceback").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let frames = traceback::own_frames(lines, &head, self.limits.output_bytes);
        self.omitted.bytes += frames.omitted_bytes;
        if frames.text.is_empty() { head } else { format!("{head}\n{}", frames.text) }
    }

    fn display(&mut self, output: &Value) -> String {
        let Some(data) = output.get("data").and_then(Value::as_object) else { return String::new() };
        self.image(data).or_else(|| self.table(data)).or_else(|| self.plain(data)).unwrap_or_else(|| {
            let kinds: Vec<&str> = data.keys().map(String::as_str).take(4).collect();
            if kinds.is_empty() { String::new() } else { format!("[shown to the person as {}]", kinds.join(", ")) }
        })
    }

    fn image(&mut self, data: &Map<String, Value>) -> Option<String> {
        let (mime, value) = IMAGE_TYPES.iter().find_map(|mime| Some((*mime, data.get(*mime)?)))?;
        let image = match image::read(mime, value, self.artifacts, self.limits.image_bytes) {
            Ok(image) => image,
            Err(why) => return Some(format!("[a picture, {mime}, {why}]")),
        };
        let size = image.size.map(|(width, height)| format!(", {width}x{height}")).unwrap_or_default();
        if self.images.len() == MAX_IMAGES {
            self.images.remove(0);
        }
        self.images.push(image);
        Some(format!("[a picture, {mime}{size}]"))
    }

    fn table(&mut self, data: &Map<String, Value>) -> Option<String> {
        // R sends a table of its own, with the types of the columns.
        let markdown = data.get("text/markdown").map(|text| joined(Some(text))).filter(|text| text.contains("|---"));
        let table = markdown.or_else(|| html_table::as_markdown(&joined(data.get("text/html"))))?;
        Some(self.shortened(&table))
    }

    fn plain(&mut self, data: &Map<String, Value>) -> Option<String> {
        let found = ["text/plain", "text/markdown", "text/latex", "application/json"]
            .iter()
            .find_map(|mime| data.get(*mime).filter(|value| !value.is_null()))?;
        Some(match found {
            json @ (Value::Object(_) | Value::Number(_) | Value::Bool(_)) => self.shortened(&json.to_string()),
            text => self.shortened(&joined(Some(text))),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn summary(outputs: &[Value]) -> Summary {
        summarize(outputs, &HashMap::new(), SummaryLimits::default())
    }

    #[test]
    fn text_is_plain_and_streams_are_joined() {
        let stream = |name: &str, text: Value| json!({"output_type": "stream", "name": name, "text": text});
        let outputs = [
            stream("stdout", json!(["\u{1b}[31mred\u{1b}[0m\n", "tw"])),
            stream("stdout", json!("o\n")),
            stream("stderr", json!("careful")),
            json!({"output_type": "display_data", "data": {"application/vnd.plotly.v1+json": {}}}),
            json!({"output_type": "display_data", "data": {"application/json": {"a": 1}}}),
            json!({"output_type": "display_data", "data": 7}),
            json!({}),
        ];
        let text = summary(&outputs).text;
        assert_eq!(text, "red\ntwo\n[stderr]\ncareful\n[shown to the person as application/vnd.plotly.v1+json]\n{\"a\":1}");
    }

    #[test]
    fn tables_are_markdown() {
        let html = "<div><style scoped>.x {}</style><table><thead><tr><th></th><th>a|b</th></tr></thead>\
                    <tbody><tr><th>0</th><td>1</td></tr></tbody></table></div>";
        let data = json!({"text/html": html, "text/plain": "   a|b\n0    1"});
        let text = summary(&[json!({"output_type": "execute_result", "data": data})]).text;
        assert_eq!(text, "|  | a\\|b |\n|---|---|\n| 0 | 1 |");
        let own = json!({"text/html": html, "text/markdown": "| a |\n|---|\n| 1 |", "text/plain": "x"});
        assert_eq!(summary(&[json!({"output_type": "execute_result", "data": own})]).text, "| a |\n|---|\n| 1 |");
        let bold = json!({"text/html": "<b>x</b>", "text/plain": "x"});
        assert_eq!(summary(&[json!({"output_type": "execute_result", "data": bold})]).text, "x");
    }

    #[test]
    fn images_are_named_with_their_size() {
        let picture =
            json!({"output_type": "display_data", "data": {"image/png": {"artifact": "h"}, "text/plain": "<Figure>"}});
        let artifacts = HashMap::from([("h".to_owned(), ArtifactInfo { bytes: 10, size: Some((640, 480)) })]);
        let summary = summarize(&[picture], &artifacts, SummaryLimits::default());
        assert_eq!(summary.text, "[a picture, image/png, 640x480]");
        assert_eq!(summary.images.len(), 1);
    }

    #[test]
    fn cell_keeps_latest_images() {
        let picture = |n: usize| json!({"output_type": "display_data", "data": {"image/png": {"artifact": n.to_string()}}});
        let artifacts = (0..100).map(|n| (n.to_string(), ArtifactInfo { bytes: 1, size: None })).collect();
        let outputs: Vec<Value> = (0..100).map(picture).collect();
        let images = summarize(&outputs, &artifacts, SummaryLimits::default()).images;
        let expected: Vec<String> = (100 - MAX_IMAGES..100).map(|n| n.to_string()).collect();
        assert_eq!(images.iter().map(|image| image.sha256.clone()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn long_output_keeps_beginning_and_end() {
        let flood: String = (0..200_000).map(|n| format!("line {n}\n")).collect();
        let outputs = [json!({"output_type": "stream", "name": "stdout", "text": flood})];
        let Summary { text, omitted_bytes, .. } = summary(&outputs);
        assert!(text.len() < 16 << 10 && text.starts_with("line 0\n") && text.ends_with("line 199999\n"));
        assert!(text.contains("are left out here") && omitted_bytes as usize > flood.len() - (16 << 10));
        let limits = SummaryLimits { output_bytes: 100, total_bytes: 1000, ..SummaryLimits::default() };
        assert!(summarize(&outputs, &HashMap::new(), limits).text.len() < 200);
    }

    #[test]
    fn outputs_that_were_not_read_are_counted() {
        let stream = |text: &str| json!({"output_type": "stream", "name": "stdout", "text": text});
        let outputs = [stream("first\n"), omission(95_000_000), stream("last\n")];
        let Summary { text, omitted_bytes, .. } = summary(&outputs);
        assert_eq!(text, "first\n[… about 95000000 bytes are left out here …]\nlast\n");
        assert_eq!(omitted_bytes, 95_000_000);
    }

    #[test]
    fn thousands_of_outputs_stay_within_limits() {
        let one = json!({"output_type": "display_data", "data": {"text/plain": "x".repeat(1000)}});
        let text = summary(&vec![one; 5000]).text;
        assert!(text.len() < (16 << 10) + 200, "{}", text.len());
    }
}
