//! Schemas of JSON and bytes that are not ours, and that pass through unchanged. They name the well-known fields, and permit
//! all others.

use utoipa::openapi::schema::{AdditionalProperties, Object, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// An object with fields that are not listed.
fn open_object(description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some(description))
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
}

fn field(kind: Type, description: &str) -> Object {
    ObjectBuilder::new().schema_type(kind).description(Some(description)).build()
}

/// Implements `ToSchema` for a type that only stands for a schema.
macro_rules! schema_only {
    ($(#[$attribute:meta])* $name:ident, $schema:expr) => {
        $(#[$attribute])*
        pub(in crate::api) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                Schema::from($schema.build()).into()
            }
        }

        impl ToSchema for $name {}
    };
}

schema_only! {
    /// Bytes of any kind.
    Binary,
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(utoipa::openapi::KnownFormat::Binary)))
}

schema_only! {
    /// An output of a cell.
    Output,
    open_object(
        "An output in the form of nbformat 4.5. `stream` has `name` and `text`. `display_data` and `execute_result` have a MIME \
         bundle in `data`, and `metadata`. `error` has `ename`, `evalue` and `traceback`. With `outputs=refs`, large binary \
         data of a bundle is `{\"artifact\": SHA256, \"bytes\": N}` instead of base64, with `width` and `height` for images. In \
         cells with `outputs=refs`, a text over 64 KB, of a stream or of a bundle, is `{\"start\": TEXT, \"bytes\": N, \"utf16\": \
         N}` with its first KB and its length; `GET .../cells/{cell}/outputs/{output}/text` returns the rest in parts.",
    )
    .property("output_type", field(Type::String, "`stream`, `display_data`, `execute_result` or `error`"))
    .property("name", field(Type::String, "`stdout` or `stderr`"))
    .property(
        "text",
        ObjectBuilder::new()
            .schema_type(SchemaType::from_iter([Type::String, Type::Object]))
            .description(Some("The text of a stream")),
    )
    .property("data", field(Type::Object, "The data by media type: text as a string, JSON as it is, binary data as base64"))
    .property("metadata", field(Type::Object, "Metadata of the data, by media type"))
    .property(
        "execution_count",
        ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::Integer, Type::Null])),
    )
    .property("ename", field(Type::String, "The class of an error"))
    .property("evalue", field(Type::String, "The message of an error"))
    .property(
        "traceback",
        utoipa::openapi::ArrayBuilder::new().items(ObjectBuilder::new().schema_type(Type::String)),
    )
    .required("output_type")
}

schema_only! {
    /// A notebook file.
    NotebookFile,
    open_object(
        "The JSON of an .ipynb file. Older formats are upgraded to nbformat 4.5. Unknown fields, large numbers and the order of \
         keys survive.",
    )
    .property("nbformat", field(Type::Integer, "The major version of the format"))
    .property("nbformat_minor", field(Type::Integer, "The minor version of the format"))
    .property("metadata", field(Type::Object, "`kernelspec`, `language_info` and others"))
    .property(
        "cells",
        utoipa::openapi::ArrayBuilder::new().items(ObjectBuilder::new().schema_type(Type::Object)),
    )
    .examples([serde_json::json!({
        "nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "cells": [{"cell_type": "code", "id": "a1", "source": "6*7", "metadata": {}, "outputs": [], "execution_count": null}],
    })])
}

schema_only! {
    /// The content of a `complete_reply`.
    CompleteReply,
    open_object("The content of the kernel's `complete_reply`, unchanged.")
        .property("status", field(Type::String, "`ok` or `error`"))
        .property(
            "matches",
            utoipa::openapi::ArrayBuilder::new().items(ObjectBuilder::new().schema_type(Type::String)),
        )
        .property("cursor_start", field(Type::Integer, "The start of the text that a match replaces, in Unicode characters"))
        .property("cursor_end", field(Type::Integer, "The end of the text that a match replaces, in Unicode characters"))
        .property("metadata", field(Type::Object, "More about the matches, for example their types"))
        .examples([serde_json::json!({
            "status": "ok", "matches": ["print"], "cursor_start": 0, "cursor_end": 3, "metadata": {},
        })])
}

schema_only! {
    /// The content of an `inspect_reply`.
    InspectReply,
    open_object("The content of the kernel's `inspect_reply`, unchanged.")
        .property("status", field(Type::String, "`ok` or `error`"))
        .property("found", field(Type::Boolean, "Whether the kernel knows the name"))
        .property("data", field(Type::Object, "The documentation by media type"))
        .property("metadata", field(Type::Object, "Metadata of the data"))
        .examples([serde_json::json!({
            "status": "ok", "found": true, "data": {"text/plain": "Prints the values to a stream."}, "metadata": {},
        })])
}
