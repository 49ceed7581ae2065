//! The files in outputs: images, documents, plot specifications.

use super::text::joined;
use crate::mime;
use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

/// Takes base64 with or without padding, as senders differ.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What counts as an artifact beyond images, PDF, audio, video and plot specifications.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArtifactOptions {
    /// Also `text/html`: tables and most interactive plots come as HTML.
    pub html: bool,
}

/// One file found in an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Index of the output in the cell's list.
    pub output_index: usize,
    /// The type as the kernel named it.
    pub mime: String,
    /// A stable file name such as `cell-03-output-1.png`, with the caller's cell number and the output counted from 1.
    pub name: String,
    /// The decoded bytes.
    pub content: Result<Vec<u8>, ArtifactError>,
}

/// Why an artifact has no bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactError {
    #[error("invalid base64: {0}")]
    Base64(String),
    #[error("a base64 string was expected, found other JSON")]
    NotText,
}

/// Finds the files in the outputs of one cell. `number` is the cell's number in file names, from 1. An output gives one file for each
/// type that makes a file: a figure sent as PNG and SVG gives two.
pub fn artifacts(outputs: &[Value], number: usize, options: ArtifactOptions) -> Vec<Artifact> {
    outputs.iter().enumerate().flat_map(|(index, output)| artifacts_of(output, index, number, options)).collect()
}

/// As [`artifacts`], for the one output at `output_index`.
pub fn artifacts_of(output: &Value, output_index: usize, number: usize, options: ArtifactOptions) -> Vec<Artifact> {
    let Some(data) = output.get("data").and_then(Value::as_object) else { return Vec::new() };
    let mut mimes = mime::display_order(data.keys().map(String::as_str));
    mimes.retain(|mime| is_artifact(mime, options));
    let mut found: Vec<Artifact> = Vec::new();
    for mime in mimes {
        let stem = format!("cell-{number:02}-output-{}", output_index + 1);
        let mut name = format!("{stem}.{}", mime::extension(mime));
        // Two types with one extension in the same output, as two versions of a Vega specification.
        let mut copy = 2;
        while found.iter().any(|other| other.name == name) {
            name = format!("{stem}-{copy}.{}", mime::extension(mime));
            copy += 1;
        }
        let content = decode(mime, &data[mime]);
        found.push(Artifact { output_index, mime: mime.to_owned(), name, content });
    }
    found
}

fn is_artifact(mime: &str, options: ArtifactOptions) -> bool {
    let essence = mime::essence(mime);
    let family = essence.split('/').next().unwrap_or_default();
    matches!(family, "image" | "audio" | "video")
        || essence == "application/pdf"
        || mime::is_plotly(&essence)
        || mime::is_vega(&essence)
        || (options.html && essence == "text/html")
}

fn decode(mime: &str, value: &Value) -> Result<Vec<u8>, ArtifactError> {
    if !mime::is_binary(mime) {
        return Ok(joined(Some(value)).into_bytes());
    }
    let is_text = value.is_string() || value.as_array().is_some_and(|items| items.iter().all(Value::is_string));
    if !is_text {
        return Err(ArtifactError::NotText);
    }
    // Python's encodebytes breaks lines at 76 characters.
    let mut text = joined(Some(value)).into_bytes();
    text.retain(|byte| !byte.is_ascii_whitespace());
    BASE64.decode(text).map_err(|error| ArtifactError::Base64(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finds_files_with_stable_names() {
        let outputs = [
            json!({"output_type": "stream", "name": "stdout", "text": "x"}),
            json!({"output_type": "display_data", "data": {
                "text/plain": "Figure", "image/png": "iVBO\nRw==\n", "image/svg+xml": ["<svg>", "</svg>"],
                "text/html": "<b>"}}),
            json!({"output_type": "display_data", "data": {
                "application/vnd.plotly.v1+json": {"data": []}, "application/vnd.vegalite.v5+json": {"a": 1},
                "application/vnd.vegalite.v6.json": {"a": 2}, "application/pdf": "JVBERg"}}),
        ];
        let found = artifacts(&outputs, 3, ArtifactOptions::default());
        let names: Vec<&str> = found.iter().map(|artifact| artifact.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "cell-03-output-2.svg",
                "cell-03-output-2.png",
                "cell-03-output-3.plotly.json",
                "cell-03-output-3.vl.json",
                "cell-03-output-3-2.vl.json",
                "cell-03-output-3.pdf",
            ]
        );
        assert_eq!(found[0].content.as_deref(), Ok(b"<svg></svg>".as_slice()));
        assert_eq!(found[1].content.as_deref(), Ok(b"\x89PNG".as_slice()));
        assert_eq!(found[2].content.as_deref(), Ok(br#"{"data":[]}"#.as_slice()));
        assert_eq!(found[5].content.as_deref(), Ok(b"%PDF".as_slice()));
        assert_eq!(artifacts(&outputs, 3, ArtifactOptions { html: true }).len(), 7);
    }

    #[test]
    fn bad_base64_is_an_entry_not_a_panic() {
        let outputs = [json!({"data": {"image/png": "!!", "image/gif": {"a": 1}, "image/jpeg": null}})];
        let found = artifacts(&outputs, 1, ArtifactOptions::default());
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|artifact| artifact.content.is_err()));
    }
}
