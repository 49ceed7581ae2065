//! The table: figures, ratios, goals.

use std::fmt;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// Something measured.
#[derive(Clone, Copy)]
pub(crate) enum Figure {
    Seconds(f64),
    Bytes(u64),
    Count(usize),
}

/// What the project promises.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// So many times the peer's figure.
    AtMostTimes(f64),
    /// Fewer bytes.
    Below(u64),
    /// Fewer seconds.
    Within(f64),
    /// None at all.
    None,
}

struct Row {
    what: String,
    ours: Figure,
    peer: Option<(String, Figure)>,
    goal: Option<Goal>,
}

/// The rows of one section, with what must be said about them.
#[derive(Default)]
pub(crate) struct Rows {
    rows: Vec<Row>,
    skipped: Vec<(String, String)>,
    notes: Vec<String>,
}

struct Section {
    title: &'static str,
    content: Result<Rows, String>,
}

/// All that was measured.
#[derive(Default)]
pub(crate) struct Table(Vec<Section>);

/// The smallest value that so many percent of all do not exceed; 0 gives the smallest.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

impl Figure {
    fn number(self) -> f64 {
        match self {
            Self::Seconds(seconds) => seconds,
            Self::Bytes(bytes) => bytes as f64,
            Self::Count(count) => count as f64,
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Seconds(_) => "s",
            Self::Bytes(_) => "bytes",
            Self::Count(_) => "count",
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match *self {
            Self::Seconds(seconds) if seconds < 0.1 => format!("{:.2} ms", seconds * 1e3),
            Self::Seconds(seconds) if seconds < 2.0 => format!("{:.0} ms", seconds * 1e3),
            Self::Seconds(seconds) => format!("{seconds:.1} s"),
            Self::Bytes(bytes) => format!("{:.2} MB", bytes as f64 / f64::from(1 << 20)),
            Self::Count(count) => count.to_string(),
        };
        f.pad(&text)
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMostTimes(times) => write!(f, "<= {times:.2}x"),
            Self::Below(bytes) => write!(f, "< {}", Figure::Bytes(*bytes)),
            Self::Within(seconds) => write!(f, "< {}", Figure::Seconds(*seconds)),
            Self::None => write!(f, "0"),
        }
    }
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        let (_, theirs) = self.peer.as_ref()?;
        // What is counted should be nothing at all, and has no ratio.
        let has_ratio = !matches!(self.ours, Figure::Count(_));
        has_ratio.then(|| self.ours.number() / theirs.number())
    }

    fn is_met(&self) -> Option<bool> {
        Some(match self.goal? {
            Goal::AtMostTimes(times) => self.ratio()? <= times,
            Goal::Below(bytes) => self.ours.number() < bytes as f64,
            Goal::Within(seconds) => self.ours.number() < seconds,
            Goal::None => self.ours.number() == 0.0,
        })
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what, "unit": self.ours.unit(), "ours": self.ours.number(),
            "peer": self.peer.as_ref().map(|(name, figure)| json!({"name": name, "value": figure.number()})),
            "ratio": self.ratio(), "goal": self.goal.map(|goal| goal.to_string()), "met": self.is_met(),
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, theirs) = match &self.peer {
            Some((name, figure)) => (name.as_str(), figure.to_string()),
            None => ("", String::new()),
        };
        let ratio = self.ratio().map(|ratio| format!("{ratio:.2}x")).unwrap_or_default();
        let goal = self.goal.map(|goal| goal.to_string()).unwrap_or_default();
        let met = match self.is_met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        let line = format!("  {:<46}{:>10}{theirs:>12} {name:<15}{ratio:>7}  {goal:<11}{met}", self.what, self.ours);
        writeln!(f, "{}", line.trim_end())
    }
}

impl Rows {
    /// A figure of ours beside a peer's.
    pub fn compare(&mut self, what: &str, ours: Figure, peer: &str, theirs: Figure, goal: Option<Goal>) {
        self.rows.push(Row { what: what.to_owned(), ours, peer: Some((peer.to_owned(), theirs)), goal });
    }

    /// A figure that has no peer.
    pub fn value(&mut self, what: &str, ours: Figure, goal: Option<Goal>) {
        self.rows.push(Row { what: what.to_owned(), ours, peer: None, goal });
    }

    /// Rows that cannot be had here.
    pub fn skip(&mut self, what: &str, reason: String) {
        self.skipped.push((what.to_owned(), reason));
    }

    /// What a reader of the figures should know.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }
}

impl Table {
    /// Adds a section, or why there is none.
    pub fn section(&mut self, title: &'static str, content: anyhow::Result<Rows>) {
        self.0.push(Section { title, content: content.map_err(|error| format!("{error:#}")) });
    }

    /// Whether a section could not be measured.
    pub fn has_failures(&self) -> bool {
        self.0.iter().any(|section| section.content.is_err())
    }

    /// Writes it for machines: seconds, bytes and counts, unrounded.
    pub fn write(&self, path: &Path, machine: &str) -> std::io::Result<()> {
        let sections: Vec<Value> = self.0.iter().map(Section::json).collect();
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, format!("{:#}\n", json!({"machine": machine, "sections": sections})))
    }
}

impl Section {
    fn json(&self) -> Value {
        let Rows { rows, skipped, notes } = match &self.content {
            Ok(rows) => rows,
            Err(error) => return json!({"title": self.title, "error": error}),
        };
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        let skipped: Vec<Value> = skipped.iter().map(|(what, reason)| json!({"what": what, "reason": reason})).collect();
        json!({"title": self.title, "rows": rows, "skipped": skipped, "notes": notes})
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<48}{:>10}{:>12} {:<15}{:>7}  goal", "", "cellkeep", "peer", "", "ratio")?;
        for Section { title, content } in &self.0 {
            writeln!(f, "\n{title}")?;
            match content {
                Ok(rows) => {
                    rows.rows.iter().try_for_each(|row| write!(f, "{row}"))?;
                    rows.skipped.iter().try_for_each(|(what, reason)| writeln!(f, "  {what}: SKIPPED, {reason}"))?;
                    rows.notes.iter().try_for_each(|note| writeln!(f, "  ({note})"))?;
                }
                Err(error) => writeln!(f, "  FAILED: {error}")?,
            }
        }
        Ok(())
    }
}
