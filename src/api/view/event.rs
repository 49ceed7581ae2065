//! Events as clients see them. The journal stores their bodies as JSON text, which is sent as it is; the types here are only
//! the schema of that text.

use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa::openapi::{Object, ObjectBuilder, Type};

use super::cell::{CellStatus, ExecutionError, ExecutionMetrics};
use super::file_change::FileChangeView;
use super::foreign::Output;
use super::session::SessionState;
use super::time;
use crate::api::error::Problem;
use crate::artifacts::Blobs;
use crate::ids::SessionId;
use crate::manager::{EventRow, inline_artifacts, may_reference_artifacts, parse_body};

/// Declares the schema of each type of event, with the fields that all have, and of an event of any type.
macro_rules! events {
    ($(
        $(#[$attribute:meta])*
        $name:ident = $kind:literal { $($(#[$field_attribute:meta])* $field:ident: $type:ty),* $(,)? }
    )*) => {
        $(
            #[derive(ToSchema)]
            $(#[$attribute])*
            #[expect(dead_code, reason = "a schema")]
            pub(in crate::api) struct $name {
                /// The number of the event, from 1. Numbers have no gaps, except for merged events: see `first_seq`.
                #[schema(minimum = 1)]
                seq: u64,
                /// The number of the first event that this event replaces, if the events of finished text were merged. Absent
                /// if it equals `seq`.
                #[schema(nullable = false, minimum = 1)]
                first_seq: Option<u64>,
                #[schema(format = DateTime)]
                time: String,
                /// The id of the session.
                session: String,
                /// The id of the cell, if the event belongs to one.
                #[schema(nullable = false)]
                cell: Option<String>,
                #[schema(schema_with = $name::kind)]
                r#type: (),
                $($(#[$field_attribute])* $field: $type),*
            }

            impl $name {
                fn kind() -> Object {
                    ObjectBuilder::new().schema_type(Type::String).enum_values(Some([$kind])).build()
                }
            }
        )*

        /// Something that happened in a session. Its `type` decides which fields it has.
        ///
        /// An event is committed before it is sent, so what a client has seen survives a crash of the server.
        #[derive(ToSchema)]
        #[serde(untagged)]
        #[schema(as = Event, discriminator(property_name = "type", mapping(
            $(($kind = concat!("#/components/schemas/", stringify!($name)))),*
        )))]
        #[expect(dead_code, clippy::enum_variant_names, reason = "a schema, whose variants are named as their types")]
        pub(in crate::api) enum EventView {
            $($name($name)),*
        }
    };
}

events! {
    /// The session has a new state.
    SessionStateEvent = "session.state" {
        state: SessionState,
        /// Why the session ended.
        #[schema(nullable = false)]
        why: Option<String>,
        /// A message for people, for example that the kernel has been restarted.
        #[schema(nullable = false)]
        notice: Option<String>,
    }

    /// The cell waits for the kernel. Its previous outputs are gone.
    CellQueuedEvent = "cell.queued" {}

    /// The kernel executes the cell.
    CellStartedEvent = "cell.started" {}

    /// The execution has ended.
    CellFinishedEvent = "cell.finished" {
        status: CellStatus,
        /// The execution counter of the kernel. Null if the kernel has not counted the execution.
        #[schema(required)]
        execution_count: Option<i64>,
        #[schema(required)]
        error: Option<ExecutionError>,
        metrics: ExecutionMetrics,
    }

    /// The cell has a new output, or the stream at this index has more text.
    #[schema(examples(json!({
        "seq": 6, "time": "2026-11-30T11:55:05.348000Z", "session": "6f1c2a5e-7c0b-4d7c-9d57-0a3d4f0f5a11",
        "cell": "ae18a2f3", "type": "output.append", "index": 0,
        "output": {"output_type": "stream", "name": "stdout", "text": "1\n"}
    })))]
    OutputAppendEvent = "output.append" {
        /// The index among the outputs of the cell.
        index: u64,
        /// For streams: the number of bytes (UTF-8) of the previous text, all of which stays. The text of the event follows
        /// them.
        #[schema(nullable = false)]
        keep: Option<u64>,
        /// The same in UTF-16 code units, as JavaScript counts.
        #[schema(nullable = false)]
        keep_utf16: Option<u64>,
        /// The output. For a stream with `keep`, only the text after the kept bytes.
        output: Output,
    }

    /// The output at this index is replaced.
    OutputUpdateEvent = "output.update" {
        /// The index among the outputs of the cell.
        index: u64,
        /// For streams: the number of bytes (UTF-8) of the previous text that stay. The text of the event follows them.
        #[schema(nullable = false)]
        keep: Option<u64>,
        /// The same in UTF-16 code units, as JavaScript counts.
        #[schema(nullable = false)]
        keep_utf16: Option<u64>,
        /// The output. For a stream with `keep`, only the text after the kept bytes.
        output: Output,
    }

    /// The cell has no outputs any more.
    OutputClearEvent = "output.clear" {}

    /// The code requests input: see `POST /v1/sessions/{session}/input`.
    InputRequestedEvent = "input.requested" {
        prompt: String,
        /// Whether the input must not be shown.
        password: bool,
    }

    /// A message of a widget, for front ends that display widgets. Streams of a share leave it out.
    CommEvent = "comm" {
        /// `comm_open`, `comm_msg` or `comm_close`.
        msg_type: String,
        /// The content of the kernel's message.
        #[schema(value_type = Object)]
        content: Value,
        /// The binary buffers of the message, as base64.
        buffers: Vec<String>,
    }

    /// The sandbox had to drop messages, because its buffer was full.
    LostEvent = "lost" {
        /// The number of the first message that was lost, as the sandbox counts them.
        from: u64,
        /// The number of the last message that was lost.
        to: u64,
    }

    /// Files of the workspace have changed. Changes between two executions have the cell of the one before. An event may name a file
    /// again, with its state at that time: one that is kept as an artifact has an event of its own.
    FilesChangedEvent = "files.changed" {
        files: Vec<FileChangeView>,
        /// Whether more files may have changed than are named.
        truncated: bool,
    }

    /// A cell was added, edited or deleted.
    NotebookChangedEvent = "notebook.changed" { change: NotebookChange }
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "a schema")]
enum NotebookChange {
    Added,
    Edited,
    Deleted,
}

/// An event as JSON text: the common fields, then the body. With `refs`, large binary data stays a reference.
pub(in crate::api) async fn event(
    row: &EventRow,
    session: &SessionId,
    blobs: &Blobs,
    refs: bool,
) -> Result<String, Problem> {
    let mut fields = Map::new();
    fields.insert("seq".to_owned(), row.seq.0.into());
    if row.first != row.seq {
        fields.insert("first_seq".to_owned(), row.first.0.into());
    }
    fields.insert("time".to_owned(), time(row.time).into());
    fields.insert("session".to_owned(), session.as_str().into());
    if let Some(cell) = &row.cell {
        fields.insert("cell".to_owned(), cell.as_str().into());
    }
    fields.insert("type".to_owned(), row.kind.as_str().into());
    if refs || !may_reference_artifacts(row) {
        return Ok(join_objects(&Value::Object(fields).to_string(), &row.body));
    }
    let mut body = parse_body(row);
    if let Some(output) = body.get_mut("output") {
        inline_artifacts(output, blobs).await?;
    }
    fields.extend(body);
    Ok(Value::Object(fields).to_string())
}

/// The text of an object with the fields of both. The first object has at least one field.
fn join_objects(first: &str, second: &str) -> String {
    match (first.strip_suffix('}'), second.strip_prefix('{')) {
        (Some(first), Some(second)) if second != "}" => format!("{first},{second}"),
        _ => first.to_owned(),
    }
}
