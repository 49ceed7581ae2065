//! Converts the cells of a session into the messages of a conversation, in the format of OpenAI's chat completions. Pure.
//!
//! The cells are the only state of a conversation. So the model sees cells that a person ran by hand, and a restarted server
//! continues from the cells.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::stream::ToolCall;
use crate::render::summary::{Image, MAX_IMAGES, Summary, head_and_tail};

/// The key of chat metadata in the metadata of a cell.
pub(super) const KEY: &str = "cellkeep";
/// The largest total text of all messages in bytes, without images.
const MAX_THREAD: usize = 160 << 10;
/// The largest source of one cell in bytes.
const MAX_SOURCE: usize = 24 << 10;

/// A cell in the form for the thread.
#[derive(Clone, Debug, Default)]
pub(super) struct ThreadCell {
    pub is_code: bool,
    pub source: String,
    pub metadata: ChatMetadata,
    /// The status of its latest execution. `None` if it was never executed.
    pub status: Option<String>,
    pub outputs: Summary,
}

/// Collects cells for a thread from the latest one backwards, so that the outputs of older cells need not be read once it is
/// full.
#[derive(Default)]
pub(super) struct CellCollector {
    latest_first: Vec<ThreadCell>,
    bytes: usize,
    images: usize,
}

impl CellCollector {
    /// Whether earlier cells would be left out in any case. The factor is needed because messages can be shorter than their
    /// cells.
    pub fn is_full(&self) -> bool {
        self.bytes > 2 * MAX_THREAD
    }

    /// Adds the cell before the one that was added last. Images above the limit are dropped.
    pub fn add(&mut self, mut cell: ThreadCell) {
        let fits = (MAX_IMAGES - self.images).min(cell.outputs.images.len());
        cell.outputs.images.drain(..cell.outputs.images.len() - fits);
        self.images += fits;
        cell.source = shorten(&cell.source);
        self.bytes += cell.source.len() + cell.outputs.text.len();
        self.latest_first.push(cell);
    }

    /// The cells in the order of the notebook.
    pub fn into_cells(self) -> Vec<ThreadCell> {
        self.latest_first.into_iter().rev().collect()
    }
}

/// The state of a message, in its chat metadata. The names are part of the HTTP API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageState {
    /// A person's message is being answered.
    Answering,
    /// A reply is arriving.
    Streaming,
    Done,
    /// A person stopped the turn.
    Stopped,
    Failed,
    /// The server was killed during the turn.
    Interrupted,
}

impl MessageState {
    const ALL: [Self; 6] = [Self::Answering, Self::Streaming, Self::Done, Self::Stopped, Self::Failed, Self::Interrupted];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answering => "answering",
            Self::Streaming => "streaming",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// The role of a cell in the conversation, from its metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ChatMetadata {
    pub role: Role,
    /// The cell of the message that this cell belongs to the answer of.
    pub turn: String,
    /// The number of the reply within the turn.
    pub step: u64,
    /// The id of the tool call that created the cell.
    pub call: Option<String>,
    pub state: Option<MessageState>,
}

/// The author of a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Role {
    /// A person, outside of the conversation.
    #[default]
    None,
    /// A person, as a message to the model.
    User,
    Assistant,
}

impl ChatMetadata {
    /// Clients can write any metadata, so invalid values are ignored.
    pub fn parse(metadata: &Map<String, Value>) -> Self {
        let Some(own) = metadata.get(KEY) else { return Self::default() };
        let text = |key: &str| own.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let role = match text("role").as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => Role::None,
        };
        let call = Some(text("call")).filter(|call| !call.is_empty());
        let state = MessageState::parse(&text("state"));
        Self { role, turn: text("turn"), step: own.get("step").and_then(Value::as_u64).unwrap_or(0), call, state }
    }

    fn is_same_reply(&self, other: &Self) -> bool {
        (self.role, &self.turn, self.step) == (other.role, &other.turn, other.step)
    }
}

/// A message. Its images follow its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    role: &'static str,
    pub text: String,
    pub images: Vec<Image>,
    /// The text only announces the images, so the message is dropped if it has none.
    pub has_only_images: bool,
    calls: Vec<ToolCall>,
    /// For the result of a tool call: the id of the call.
    result_of: Option<String>,
}

impl Message {
    fn new(role: &'static str, text: String) -> Self {
        let (images, calls) = (Vec::new(), Vec::new());
        Self { role, text, images, has_only_images: false, calls, result_of: None }
    }

    /// A message to the model that is not in a cell.
    pub fn user(text: String) -> Self {
        Self::new("user", text)
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.calls.iter().map(|call| call.arguments.len()).sum::<usize>() + 64
    }

    /// The message in the format of the protocol. `urls` are data URLs of the images.
    pub fn to_json(&self, urls: &[String]) -> Value {
        let mut message = json!({"role": self.role});
        message["content"] = match urls {
            [] if self.text.is_empty() && !self.calls.is_empty() => Value::Null,
            [] => self.text.as_str().into(),
            urls => {
                let images = urls.iter().map(|url| json!({"type": "image_url", "image_url": {"url": url}}));
                let text = json!({"type": "text", "text": self.text});
                std::iter::once(text).chain(images).collect()
            }
        };
        if !self.calls.is_empty() {
            let calls = self.calls.iter().map(|call| {
                json!({"id": call.id, "type": "function",
                       "function": {"name": call.name, "arguments": call.arguments}})
            });
            message["tool_calls"] = calls.collect();
        }
        if let Some(call) = &self.result_of {
            message["tool_call_id"] = call.as_str().into();
        }
        message
    }
}

/// The latest messages that fit into the limits, and the number of cells before them that are left out. A reply stays
/// together with its tool calls and their results.
pub(super) fn messages(cells: &[ThreadCell], language: &str) -> (Vec<Message>, usize) {
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
    let mut images = 0;
    for message in all.iter_mut().rev() {
        let fits = MAX_IMAGES.saturating_sub(images).min(message.images.len());
        message.images.drain(..message.images.len() - fits);
        images += fits;
    }
    all.retain(|message| !message.has_only_images || !message.images.is_empty());
    (all, left_out)
}

/// Groups of messages that belong together, each with its number of cells.
fn units(cells: &[ThreadCell], language: &str) -> Vec<(Vec<Message>, usize)> {
    let mut units = Vec::new();
    let mut done = HashSet::new();
    // The tool calls of each reply, wherever their cells are now.
    let mut runs: HashMap<(&str, u64), Vec<usize>> = HashMap::new();
    for (at, cell) in cells.iter().enumerate() {
        if cell.is_code && cell.metadata.role == Role::Assistant && cell.metadata.call.is_some() {
            runs.entry((&cell.metadata.turn, cell.metadata.step)).or_default().push(at);
        }
    }
    for (at, cell) in cells.iter().enumerate() {
        if !done.insert(at) {
            continue;
        }
        // If a person copied the cell of a reply, the tool calls belong to the first copy.
        let own: Vec<usize> = match cell.metadata.role {
            Role::Assistant => runs.get(&(cell.metadata.turn.as_str(), cell.metadata.step)).cloned().unwrap_or_default(),
            _ => Vec::new(),
        };
        let own: Vec<usize> = own.into_iter().filter(|run| *run == at || !done.contains(run)).collect();
        if own.is_empty() || (cell.is_code && cell.metadata.call.is_none()) {
            if let Some(message) = single_message(cell, language) {
                units.push((vec![message], 1));
            }
            continue;
        }
        debug_assert!(own.iter().all(|run| cells[*run].metadata.is_same_reply(&cell.metadata)));
        done.extend(own.iter().copied());
        let text = if cell.is_code { String::new() } else { shorten(&cell.source) };
        let count = own.len() + usize::from(!cell.is_code);
        units.push((with_tool_calls(text, own.iter().map(|run| &cells[*run])), count));
    }
    units
}

/// The message of a person's cell, or of a reply without tool calls.
fn single_message(cell: &ThreadCell, language: &str) -> Option<Message> {
    let source = shorten(&cell.source);
    if source.trim().is_empty() {
        return None;
    }
    if cell.is_code {
        let text = format!("I ran this cell myself:\n```{language}\n{source}\n```\n{}", result(cell));
        return Some(Message { images: cell.outputs.images.clone(), ..Message::new("user", text) });
    }
    match cell.metadata.role {
        Role::Assistant => Some(Message::new("assistant", source)),
        Role::User => Some(Message::new("user", source)),
        Role::None => Some(Message::new("user", format!("A note in the notebook:\n{source}"))),
    }
}

/// A reply with its tool calls, their results, and their images.
fn with_tool_calls<'a>(text: String, runs: impl Iterator<Item = &'a ThreadCell>) -> Vec<Message> {
    let mut reply = Message::new("assistant", text);
    let (mut results, mut images) = (Vec::new(), Vec::new());
    for (number, run) in runs.enumerate() {
        // Copied cells have equal call ids, and endpoints refuse conversations with equal ids.
        let id = format!("{}-{number}", run.metadata.call.as_deref().unwrap_or("call"));
        let arguments = json!({"code": shorten(&run.source)}).to_string();
        reply.calls.push(ToolCall { id: id.clone(), name: "run_code".to_owned(), arguments });
        results.push(Message { result_of: Some(id), ..Message::new("tool", result(run)) });
        images.extend(run.outputs.images.iter().cloned());
    }
    let mut all = vec![reply];
    all.extend(results);
    if !images.is_empty() {
        // The protocol allows only text in tool results.
        let text = "The pictures that this showed, in order:".to_owned();
        all.push(Message { images, has_only_images: true, ..Message::new("user", text) });
    }
    all
}

fn shorten(source: &str) -> String {
    head_and_tail(source, MAX_SOURCE)
}

fn result(cell: &ThreadCell) -> String {
    let status = cell.status.as_deref().unwrap_or("not run");
    if cell.outputs.text.is_empty() {
        format!("{status}; it showed nothing")
    } else {
        format!("{status}\n{}", cell.outputs.text)
    }
}

/// The system prompt.
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

/// The tools that the model may call.
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

    fn cell(is_code: bool, source: &str, role: Role, step: u64, call: Option<&str>) -> ThreadCell {
        let (turn, call) = ("t".to_owned(), call.map(str::to_owned));
        ThreadCell {
            is_code,
            source: source.to_owned(),
            metadata: ChatMetadata { role, turn, step, call, state: None },
            status: is_code.then(|| "ok".to_owned()),
            ..ThreadCell::default()
        }
    }

    fn shape(messages: &[Message]) -> Vec<(&'static str, usize)> {
        messages.iter().map(|message| (message.role, message.calls.len())).collect()
    }

    #[test]
    fn notebook_becomes_conversation() {
        let image = Image { mime: "image/png", base64: Some("aGk=".to_owned()), ..Image::default() };
        let plot = ThreadCell {
            outputs: Summary { text: "[a picture, image/png]".to_owned(), images: vec![image], ..Summary::default() },
            ..cell(true, "plot()", Role::Assistant, 1, Some("a"))
        };
        let cells = [
            cell(true, "x = 1", Role::None, 0, None),
            cell(false, "Plot x", Role::User, 0, None),
            cell(false, "I will.", Role::Assistant, 1, None),
            plot,
            cell(true, "by hand", Role::None, 0, None),
            cell(true, "2", Role::Assistant, 1, Some("a")),
            cell(true, "3", Role::Assistant, 2, Some("b")),
            cell(false, "Done.", Role::Assistant, 3, None),
            cell(false, "  ", Role::User, 0, None),
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
        let reply = messages[2].to_json(&[]);
        assert_eq!(reply["tool_calls"][0]["function"]["arguments"], "{\"code\":\"plot()\"}");
        let ids: Vec<&Value> = reply["tool_calls"].as_array().unwrap().iter().map(|call| &call["id"]).collect();
        assert_eq!(ids, ["a-0", "a-1"]);
        assert_eq!(messages[3].to_json(&[])["tool_call_id"], "a-0");
        let with_image = messages[5].to_json(&["data:image/png;base64,aGk=".to_owned()]);
        assert_eq!(with_image["content"][1]["image_url"]["url"], "data:image/png;base64,aGk=");
        assert_eq!(messages[7].to_json(&[])["content"], Value::Null);
    }

    #[test]
    fn malformed_metadata_is_ignored() {
        for metadata in [json!({}), json!({"cellkeep": 7}), json!({"cellkeep": {"role": ["user"], "step": -1, "call": ""}})]
        {
            assert_eq!(ChatMetadata::parse(metadata.as_object().unwrap()), ChatMetadata::default());
        }
    }

    #[test]
    fn collector_stops_when_full() {
        let plot = |number: usize| ThreadCell {
            outputs: Summary {
                text: "x".repeat(1000),
                images: vec![Image { mime: "image/png", sha256: number.to_string(), ..Image::default() }; 2],
                ..Summary::default()
            },
            ..cell(true, &"y".repeat(10 * MAX_SOURCE), Role::None, 0, None)
        };
        let mut collector = CellCollector::default();
        let mut read = 0;
        while !collector.is_full() {
            collector.add(plot(read));
            read += 1;
        }
        assert!(read < 2 * MAX_THREAD / MAX_SOURCE + 2, "{read} cells");
        let cells = collector.into_cells();
        let images: usize = cells.iter().map(|cell| cell.outputs.images.len()).sum();
        assert_eq!((images, cells[read - 1].outputs.images.len(), cells[0].outputs.images.len()), (MAX_IMAGES, 2, 0));
        assert!(cells.iter().all(|cell| cell.source.len() <= MAX_SOURCE + 60));
        let (_, left_out) = messages(&cells, "python");
        assert!(left_out > 0, "cells that were not read would not have fit");
    }

    #[test]
    fn only_latest_images_are_sent() {
        let plot = |number: u64| ThreadCell {
            outputs: Summary {
                text: "[a picture, image/png]".to_owned(),
                images: vec![Image { mime: "image/png", sha256: number.to_string(), ..Image::default() }],
                ..Summary::default()
            },
            ..cell(true, "plot()", Role::Assistant, number, Some("a"))
        };
        let cells: Vec<ThreadCell> = (0..9).map(plot).collect();
        let (messages, _) = messages(&cells, "python");
        let shown: Vec<_> = messages.iter().flat_map(|message| &message.images).collect();
        assert_eq!(shown.len(), MAX_IMAGES);
        assert_eq!(shown.last(), Some(&&Image { mime: "image/png", sha256: "8".to_owned(), ..Image::default() }));
        assert_eq!(messages.len(), 9 * 2 + MAX_IMAGES, "dropped images are not announced");
    }

    proptest! {
        /// The protocol requires the result of each call directly after the message with the call, and no other results.
        #[test]
        fn each_call_has_its_result_in_place(
            cells in prop::collection::vec((any::<bool>(), 0u8..3, 0u64..4, any::<bool>(), 0usize..40_000), 0..40)
        ) {
            let cells: Vec<ThreadCell> = cells.into_iter().map(|(is_code, role, step, has_call, size)| {
                let role = [Role::None, Role::User, Role::Assistant][usize::from(role)];
                cell(is_code, &"x".repeat(size), role, step, has_call.then_some("c"))
            }).collect();
            let (messages, left_out) = messages(&cells, "r");
            prop_assert!(left_out <= cells.len());
            let mut open: Vec<String> = Vec::new();
            for message in &messages {
                match message.role {
                    "tool" => prop_assert_eq!(Some(open.remove(0)), message.result_of.clone()),
                    _ => prop_assert!(open.is_empty()),
                }
                open.extend(message.calls.iter().map(|call| call.id.clone()));
            }
            prop_assert!(open.is_empty());
        }
    }

    #[test]
    fn oldest_cells_are_left_out_first() {
        let mut cells: Vec<ThreadCell> = (0..50).map(|_| cell(false, &"x".repeat(20_000), Role::None, 0, None)).collect();
        cells.push(cell(false, "and now?", Role::User, 0, None));
        let (some, left_out) = messages(&cells, "python");
        assert!(some.len() < 12 && left_out + some.len() == 51, "{} and {left_out}", some.len());
        assert_eq!(some.last().unwrap().text, "and now?");
        assert!(system("python", left_out).contains(&format!("oldest {left_out} cells")));
    }
}
