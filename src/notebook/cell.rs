//! One cell: a view of its JSON, and a new cell to insert.

use super::lines::join;
use serde_json::{Map, Value, json};
use std::borrow::Cow;

#[derive(Debug, Clone, Copy)]
pub struct Cell<'a> {
    json: &'a Value,
}

impl<'a> Cell<'a> {
    pub(super) fn new(json: &'a Value) -> Self {
        Self { json }
    }

    pub fn json(&self) -> &'a Value {
        self.json
    }

    /// `code`, `markdown`, `raw`, or a type of a newer format.
    pub fn cell_type(&self) -> &'a str {
        self.json.get("cell_type").and_then(Value::as_str).unwrap_or_default()
    }

    pub fn is_code(&self) -> bool {
        self.cell_type() == "code"
    }

    /// The cell's id, unique in the notebook.
    pub fn id(&self) -> &'a str {
        self.json.get("id").and_then(Value::as_str).unwrap_or_default()
    }

    pub fn source(&self) -> Cow<'a, str> {
        self.json.get("source").and_then(join).unwrap_or_default()
    }

    pub fn metadata(&self) -> Option<&'a Map<String, Value>> {
        self.json.get("metadata").and_then(Value::as_object)
    }

    /// The cell's tags (`metadata.tags`).
    pub fn tags(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let tags = self.metadata().and_then(|metadata| metadata.get("tags")).and_then(Value::as_array);
        tags.into_iter().flatten().filter_map(Value::as_str)
    }

    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags().any(|own| own == tag)
    }

    /// The outputs of a code cell; empty for others.
    pub fn outputs(&self) -> &'a [Value] {
        self.json.get("outputs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    /// The execution count of a code cell that has been executed.
    pub fn execution_count(&self) -> Option<u64> {
        self.json.get("execution_count").and_then(Value::as_u64)
    }
}

/// A cell to insert.
#[derive(Debug, Clone, PartialEq)]
pub struct NewCell {
    /// `code`, `markdown` or `raw`.
    pub cell_type: &'static str,
    pub source: String,
    pub metadata: Map<String, Value>,
    /// The id to use, if it is valid and unused.
    pub id: Option<String>,
}

impl NewCell {
    /// A code cell that has not been executed.
    pub fn code(source: impl Into<String>) -> Self {
        Self { cell_type: "code", source: source.into(), metadata: Map::new(), id: None }
    }

    pub fn markdown(source: impl Into<String>) -> Self {
        Self { cell_type: "markdown", ..Self::code(source) }
    }

    #[must_use]
    pub fn with_tags(mut self, tags: &[&str]) -> Self {
        self.metadata.insert("tags".to_owned(), json!(tags));
        self
    }

    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    pub(super) fn into_json(self, id: &str) -> Value {
        let mut cell = json!({
            "cell_type": self.cell_type, "id": id, "metadata": self.metadata, "source": self.source,
        });
        if self.cell_type == "code" {
            cell["execution_count"] = Value::Null;
            cell["outputs"] = Value::Array(Vec::new());
        }
        cell
    }
}
