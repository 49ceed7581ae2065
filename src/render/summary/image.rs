//! Images in outputs: where their bytes are, and how large they are.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::ArtifactInfo;

/// An image. Its bytes are an artifact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub mime: &'static str,
    /// The hash of its bytes, in lower-case hexadecimal digits.
    pub sha256: String,
    pub bytes: u64,
    /// Width and height in pixels.
    pub size: Option<(u32, u32)>,
    /// Its bytes as base64, if the output has them.
    pub base64: Option<String>,
}

/// Reads the value of an image in a MIME bundle. A kernel can send any text, of any size.
///
/// # Errors
/// Why there is no image, for people.
pub(super) fn read(
    mime: &'static str,
    value: &Value,
    artifacts: &HashMap<String, ArtifactInfo>,
    max_bytes: u64,
) -> Result<Image, &'static str> {
    const TOO_LARGE: &str = "too large to be shown to you; the person sees it";
    if let Some(sha256) = value.get("artifact").and_then(Value::as_str) {
        let known = artifacts.get(sha256).filter(|known| known.bytes <= max_bytes).ok_or(TOO_LARGE)?;
        return Ok(Image { mime, sha256: sha256.to_owned(), bytes: known.bytes, size: known.size, base64: None });
    }
    let pieces: Vec<&str> = match value {
        Value::String(text) => vec![text],
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        _ => return Err("that cannot be read"),
    };
    // This check precedes any copy. Base64 has four letters for three bytes, and line ends.
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    if length as u64 > max_bytes.saturating_mul(3) / 2 {
        return Err(TOO_LARGE);
    }
    let base64: String = pieces.iter().flat_map(|piece| piece.split_whitespace()).collect();
    match BASE64.decode(&base64) {
        Ok(bytes) if bytes.len() as u64 > max_bytes => Err(TOO_LARGE),
        Ok(bytes) if !bytes.is_empty() => {
            let sha256 = hex::encode(Sha256::digest(&bytes));
            let size = artifacts.get(&sha256).and_then(|known| known.size);
            Ok(Image { mime, sha256, bytes: bytes.len() as u64, size, base64: Some(base64) })
        }
        _ => Err("that cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MAX: u64 = 3 << 20;

    fn read(value: &Value) -> Result<Image, &'static str> {
        let info = |bytes| ArtifactInfo { bytes, size: Some((2, 3)) };
        let artifacts = HashMap::from([("small".to_owned(), info(10)), ("large".to_owned(), info(MAX + 1))]);
        super::read("image/png", value, &artifacts, MAX)
    }

    #[test]
    fn inline_and_stored_images_are_found() {
        let inline = read(&json!("aGk=\n")).unwrap();
        assert_eq!((inline.bytes, inline.size), (2, None));
        assert_eq!(inline.sha256, hex::encode(Sha256::digest("hi")));
        assert_eq!(read(&json!(["aG", "k=\n"])), Ok(inline));
        let stored = read(&json!({"artifact": "small"})).unwrap();
        assert_eq!((stored.bytes, stored.size, stored.base64), (10, Some((2, 3)), None));
    }

    #[test]
    fn large_and_broken_images_are_refused() {
        let max = usize::try_from(MAX).unwrap();
        assert!(read(&json!(BASE64.encode(vec![1; max]))).is_ok());
        for (data, why) in [
            (json!(BASE64.encode(vec![1; max + 1])), "too large"),
            (json!("!".repeat(9 * max)), "too large"),
            (json!({"artifact": "large"}), "too large"),
            (json!({"artifact": "unknown"}), "too large"),
            (json!("no base64!"), "cannot be read"),
            (json!(" "), "cannot be read"),
            (json!({"a": 1}), "cannot be read"),
        ] {
            assert!(read(&data).unwrap_err().contains(why));
        }
    }
}
