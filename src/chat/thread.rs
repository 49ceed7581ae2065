//! A session's cells as the messages of a conversation, in the form that OpenAI's chat completions have. Pure.
//!
//! The cells are all there is: what a person ran by hand is told to the model as well, and a server that was killed goes on from them.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::content::{MAX_PICTURES, Picture, Shown, head_and_tail};
use super::stream::Call;

/// Our key in a cell's metadata.
pub(super) const KEY: &str = "cellkeep";
/// Bytes of all messages' texts, pictures aside.
const MAX_THREAD: usize = 160 << 10;
/// Bytes of one cell's source.
const MAX_SOURCE: usize = 24 << 10;

/// A cell, as the thread has it.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub is_code: bool,
    pub source: String,
    pub mark: Mark,
    /// How its last run ended, or where it stands. `None`: never run.
    pub status: Option<String>,
    pub shown: Shown,
}

/// What has been gathered for a thread, cell by cell from the latest one back, so that what does not fit is not even read.
#[derive(Default)]
pub(super) struct Gathered {
    latest_first: Vec<Told>,
    bytes: usize,
    pictures: usize,
}

impl Gathered {
    /// Whether earlier cells would be left out in any case. Some of what is told is shorter than what was gathered.
    pub fn is_full(&self) -> bool {
        self.bytes > 2 * MAX_THREAD
    }

    /// Takes in the cell before the last one that was taken in. Pictures that would not be sent are let go.
    pub fn add(&mut self, mut cell: Told) {
        let fits = (MAX_PICTURES - self.pictures).min(cell.shown.pictures.len());
        cell.shown.pictures.drain(..cell.shown.pictures.len() - fits);
        self.pictures += fits;
        cell.source = shortened(&cell.source);
        self.bytes += cell.source.len() + cell.shown.text.len();
        self.latest_first.push(cell);
    }

    /// The cells in order.
    pub fn into_cells(self) -> Vec<Told> {
        self.latest_first.into_iter().rev().collect()
    }
}

/// What a cell's metadata say of its part in a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub role: Role,
    /// The cell of the person's message that it answers.
    pub turn: String,
    /// Which of the model's messages it belongs to.
    pub step: u64,
    /// The call that made it.
    pub call: Option<String>,
}

/// Who made a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Role {
    /// A person, beside any conversation.
    #[default]
    Nobody,
    /// A person, for the model.
    User,
    Assistant,
}

impl Mark {
    /// Reads it from a cell's metadata, which anybody can write.
    pub fn of(metadata: &Map<String, Value>) -> Self {
        let Some(mark) = metadata.get(KEY) else { return Self::default() };
        let text = |key: &str| mark.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let role = match text("role").as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => Role::Nobody,
        };
        let call = Some(text("call")).filter(|call| !call.is_empty());
        Self { role, turn: text("turn"), step: mark.get("step").and_then(Value::as_u64).unwrap_or(0), call }
    }

    fn is_of(&self, other: &Self) -> bool {
        (self.role, &self.turn, self.step) == (other.role, &other.turn, other.step)
    }
}

/// A message. Pictures follow its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    role: &'static str,
    pub text: String,
    pub pictures: Vec<Picture>,
    /// It says nothing but what its pictures show.
    pub only_pictures: bool,
    calls: Vec<Call>,
    answers: Option<String>,
}

impl Message {
    fn new(role: &'static str, text: String) -> Self {
        Self { role, text, pictures: Vec::new(), only_pictures: false, calls: Vec::new(), answers: None }
    }

    /// Something that is said to the model and stands in no cell.
    pub fn user(text: String) -> Self {
        Self::new("user", text)
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.calls.iter().map(|call| call.arguments.len()).sum::<usize>() + 64
    }

    /// As the protocol has it. `urls`: the pictures, as data addresses.
    pub fn json(&self, urls: &[String]) -> Value {
        let mut message = json!({"role": self.role});
        message["content"] = match urls {
            [] if self.text.is_empty() && !self.calls.is_empty() => Value::Null,
            [] => self.text.as_str().into(),
            urls => {
                let pictures = urls.iter().map(|url| json!({"type": "image_url", "image_url": {"url": url}}));
                let text = json!({"type": "text", "text": self.text});
                std::iter::once(text).chain(pictures).collect()
            }
        };
        if !self.calls.is_empty() {
            let calls = self.calls.iter().map(|call| {
                json!({"id": call.id, "type": "function",
                       "function": {"name": call.name, "arguments": call.arguments}})
            });
            message["tool_calls"] = calls.collect();
        }
        if let Some(call) = &self.answers {
            message["tool_call_id"] = call.as_str().into();
        }
        message
    }
}

/// The conversation's latest messages that fit, and how many cells are left out before them. What belongs together stays together:
/// a model's message, the runs that it called for, and what they showed.
pub(super) fn messages(cells: &[Told], language: &str) -> (Vec<Message>, usize) {
    let units = units(cells, language);
    let mut bytes = 0;
    let mut from = units.len();
    for (at, (messages, _)) in units.iter().enumerate().rev() {
        bytes += messages.iter().map(Message::bytes).sum::<usize>();
        if bytes > MAX_THREAD && from < units.len() {
            break;
        }
        from = at;
    }
    let left_out = units[..from].iter().map(|(_, cells)| cells).sum();
    let mut all: Vec<Message> = units.into_iter().skip(from).flat_map(|(messages, _)| messages).collect();
    let mut pictures = 0;
    for message in all.iter_mut().rev() {
        let fits = MAX_PICTURES.saturating_sub(pictures).min(message.pictures.len());
        message.pictures.drain(..message.pictures.len() - fits);
        pictures += fits;
    }
    all.retain(|message| !message.only_pictures || !message.pictures.is_empty());
    (all, left_out)
}

/// Messages that belong together, and of how many cells.
fn units(cells: &[Told], language: &str) -> Vec<(Vec<Message>, usize)> {
    let mut units = Vec::new();
    let mut done = HashSet::new();
    // The runs of each of the model's messages, wherever they stand now.
    let mut runs: HashMap<(&str, u64), Vec<usize>> = HashMap::new();
    for (at, cell) in cells.iter().enumerate() {
        if cell.is_code && cell.mark.role == Role::Assistant && cell.mark.call.is_some() {
            runs.entry((&cell.mark.turn, cell.mark.step)).or_default().push(at);
        }
    }
    for (at, cell) in cells.iter().enumerate() {
        if !done.insert(at) {
            continue;
        }
        // A message that was copied finds its runs told already.
        let own: Vec<usize> = match cell.mark.role {
            Role::Assistant => runs.get(&(cell.mark.turn.as_str(), cell.mark.step)).cloned().unwrap_or_default(),
            _ => Vec::new(),
        };
        let own: Vec<usize> = own.into_iter().filter(|run| *run == at || !done.contains(run)).collect();
        if own.is_empty() || (cell.is_code && cell.mark.call.is_none()) {
            if let Some(message) = alone(cell, language) {
                units.push((vec![message], 1));
            }
            continue;
        }
        debug_assert!(own.iter().all(|run| cells[*run].mark.is_of(&cell.mark)));
        done.extend(own.iter().copied());
        let text = if cell.is_code { String::new() } else { shortened(&cell.source) };
        let count = own.len() + usize::from(!cell.is_code);
        units.push((with_runs(text, own.iter().map(|run| &cells[*run])), count));
    }
    units
}

/// A cell of a person, or a message of the model without runs.
fn alone(cell: &Told, language: &str) -> Option<Message> {
    let source = shortened(&cell.source);
    if source.trim().is_empty() {
        return None;
    }
    if cell.is_code {
        let text = format!("I ran this cell myself:\n```{language}\n{source}\n```\n{}", result(cell));
        return Some(Message { pictures: cell.shown.pictures.clone(), ..Message::new("user", text) });
    }
    match cell.mark.role {
        Role::Assistant => Some(Message::new("assistant", source)),
        Role::User => Some(Message::new("user", source)),
        Role::Nobody => Some(Message::new("user", format!("A note in the notebook:\n{source}"))),
    }
}

fn with_runs<'a>(text: String, runs: impl Iterator<Item = &'a Told>) -> Vec<Message> {
    let mut asks = Message::new("assistant", text);
    let (mut answers, mut pictures) = (Vec::new(), Vec::new());
    for (number, run) in runs.enumerate() {
        // Ids repeat where a cell was copied; a conversation in which they do is refused.
        let id = format!("{}-{number}", run.mark.call.as_deref().unwrap_or("call"));
        let arguments = json!({"code": shortened(&run.source)}).to_string();
        asks.calls.push(Call { id: id.clone(), name: "run_code".to_owned(), arguments });
        answers.push(Message { answers: Some(id), ..Message::new("tool", result(run)) });
        pictures.extend(run.shown.pictures.iter().cloned());
    }
    let mut all = vec![asks];
    all.extend(answers);
    if !pictures.is_empty() {
        // Answers of tools are text by the protocol.
        let text = "The pictures that this showed, in order:".to_owned();
        all.push(Message { pictures, only_pictures: true, ..Message::new("user", text) });
    }
    all
}

fn shortened(source: &str) -> String {
    head_and_tail(source, MAX_SOURCE)
}

fn result(cell: &Told) -> String {
    let status = cell.status.as_deref().unwrap_or("not run");
    if cell.shown.text.is_empty() {
        format!("{status}; it showed nothing")
    } else {
        format!("{status}\n{}", cell.shown.text)
    }
}

/// What the model is told first.
pub(super) fn system(language: &str, left_out: usize) -> String {
    let mut text = format!(
        "You work with a person in a notebook. Call run_code to run {language} code on its kernel: names, imports and files stay \
         between calls, the working folder is the person's, and there may be no network. The person sees each cell that you run \
         with all that it shows, plots included, so do not repeat outputs or paste code that you have run. Leave a result as the \
         last expression, or print it; show plots as usual. If a run fails, read the error and mend it. Answer in markdown, in \
         the person's language, and say briefly what was found."
    );
    if left_out > 0 {
        text.push_str(&format!(" The oldest {left_out} cells of this notebook are left out here, since they do not fit."));
    }
    text
}

/// The tools that a model may call.
pub(super) fn tools(language: &str) -> Value {
    json!([{"type": "function", "function": {
        "name": "run_code",
        "description": format!("Runs {language} code as a new cell of the notebook, and gives back what it showed."),
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": format!("{language} code")}},
            "required": ["code"], "additionalProperties": false,
        },
    }}])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(is_code: bool, source: &str, role: Role, step: u64, call: Option<&str>) -> Told {
        let mark = Mark { role, turn: "t".to_owned(), step, call: call.map(str::to_owned) };
        Told { is_code, source: source.to_owned(), mark, status: is_code.then(|| "ok".to_owned()), ..Told::default() }
    }

    fn shape(messages: &[Message]) -> Vec<(&'static str, usize)> {
        messages.iter().map(|message| (message.role, message.calls.len())).collect()
    }

    #[test]
    fn a_notebook_is_a_conversation() {
        let picture = Picture::Inline { mime: "image/png", base64: "aGk=".to_owned() };
        let plot = Told {
            shown: Shown { text: "[a picture, image/png]".to_owned(), pictures: vec![picture] },
            ..told(true, "plot()", Role::Assistant, 1, Some("a"))
        };
        let cells = [
            told(true, "x = 1", Role::Nobody, 0, None),
            told(false, "Plot x", Role::User, 0, None),
            told(false, "I will.", Role::Assistant, 1, None),
            plot,
            told(true, "by hand", Role::Nobody, 0, None),
            told(true, "2", Role::Assistant, 1, Some("a")),
            told(true, "3", Role::Assistant, 2, Some("b")),
            told(false, "Done.", Role::Assistant, 3, None),
            told(false, "  ", Role::User, 0, None),
        ];
        let (messages, left_out) = messages(&cells, "python");
        assert_eq!(left_out, 0);
        assert_eq!(
            shape(&messages),
            [
                ("user", 0),
                ("user", 0),
                ("assistant", 2),
                ("tool", 0),
                ("tool", 0),
                ("user", 0),
                ("user", 0),
                ("assistant", 1),
                ("tool", 0),
                ("assistant", 0)
            ]
        );
        assert!(messages[0].text.contains("```python\nx = 1\n```\nok"), "{}", messages[0].text);
        let asks = messages[2].json(&[]);
        assert_eq!(asks["tool_calls"][0]["function"]["arguments"], "{\"code\":\"plot()\"}");
        let ids: Vec<&Value> = asks["tool_calls"].as_array().unwrap().iter().map(|call| &call["id"]).collect();
        assert_eq!(ids, ["a-0", "a-1"]);
        assert_eq!(messages[3].json(&[])["tool_call_id"], "a-0");
        let seen = messages[5].json(&["data:image/png;base64,aGk=".to_owned()]);
        assert_eq!(seen["content"][1]["image_url"]["url"], "data:image/png;base64,aGk=");
        assert_eq!(messages[7].json(&[])["content"], Value::Null);
    }

    #[test]
    fn metadata_of_strangers_are_no_marks() {
        for metadata in [json!({}), json!({"cellkeep": 7}), json!({"cellkeep": {"role": ["user"], "step": -1, "call": ""}})]
        {
            assert_eq!(Mark::of(metadata.as_object().unwrap()), Mark::default());
        }
    }

    #[test]
    fn no_more_is_gathered_than_fits() {
        let plot = |number: usize| Told {
            shown: Shown {
                text: "x".repeat(1000),
                pictures: vec![Picture::Artifact { mime: "image/png", sha256: number.to_string() }; 2],
            },
            ..told(true, &"y".repeat(10 * MAX_SOURCE), Role::Nobody, 0, None)
        };
        let mut gathered = Gathered::default();
        let mut read = 0;
        while !gathered.is_full() {
            gathered.add(plot(read));
            read += 1;
        }
        assert!(read < 2 * MAX_THREAD / MAX_SOURCE + 2, "{read} cells");
        let cells = gathered.into_cells();
        let pictures: usize = cells.iter().map(|cell| cell.shown.pictures.len()).sum();
        assert_eq!((pictures, cells[read - 1].shown.pictures.len(), cells[0].shown.pictures.len()), (MAX_PICTURES, 2, 0));
        assert!(cells.iter().all(|cell| cell.source.len() <= MAX_SOURCE + 60));
        let (_, left_out) = messages(&cells, "python");
        assert!(left_out > 0, "what was not read would not have fit");
    }

    #[test]
    fn only_the_latest_pictures_are_sent() {
        let plot = |number: u64| Told {
            shown: Shown {
                text: "[a picture, image/png]".to_owned(),
                pictures: vec![Picture::Artifact { mime: "image/png", sha256: number.to_string() }],
            },
            ..told(true, "plot()", Role::Assistant, number, Some("a"))
        };
        let cells: Vec<Told> = (0..9).map(plot).collect();
        let (messages, _) = messages(&cells, "python");
        let shown: Vec<_> = messages.iter().flat_map(|message| &message.pictures).collect();
        assert_eq!(shown.len(), MAX_PICTURES);
        assert_eq!(shown.last(), Some(&&Picture::Artifact { mime: "image/png", sha256: "8".to_owned() }));
        assert_eq!(messages.len(), 9 * 2 + MAX_PICTURES, "nothing is said of pictures that are not there");
    }

    proptest! {
        /// By the protocol, each call is answered right behind the message that makes it, and no answer stands alone.
        #[test]
        fn each_call_is_answered_in_place(
            cells in prop::collection::vec((any::<bool>(), 0u8..3, 0u64..4, any::<bool>(), 0usize..40_000), 0..40)
        ) {
            let cells: Vec<Told> = cells.into_iter().map(|(is_code, role, step, has_call, size)| {
                let role = [Role::Nobody, Role::User, Role::Assistant][usize::from(role)];
                told(is_code, &"x".repeat(size), role, step, has_call.then_some("c"))
            }).collect();
            let (messages, left_out) = messages(&cells, "r");
            prop_assert!(left_out <= cells.len());
            let mut open: Vec<String> = Vec::new();
            for message in &messages {
                match message.role {
                    "tool" => prop_assert_eq!(Some(open.remove(0)), message.answers.clone()),
                    _ => prop_assert!(open.is_empty()),
                }
                open.extend(message.calls.iter().map(|call| call.id.clone()));
            }
            prop_assert!(open.is_empty());
        }
    }

    #[test]
    fn the_oldest_is_left_out_and_the_last_never() {
        let mut cells: Vec<Told> = (0..50).map(|_| told(false, &"x".repeat(20_000), Role::Nobody, 0, None)).collect();
        cells.push(told(false, "and now?", Role::User, 0, None));
        let (some, left_out) = messages(&cells, "python");
        assert!(some.len() < 12 && left_out + some.len() == 51, "{} and {left_out}", some.len());
        assert_eq!(some.last().unwrap().text, "and now?");
        assert!(system("python", left_out).contains(&format!("oldest {left_out} cells")));
    }
}
