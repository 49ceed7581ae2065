//! File names as JSON text. A name is any bytes without NUL. Bytes that are not UTF-8 are written as NUL and two hex digits, so
//! that no name is lost and no two names look alike.

/// Encodes a name or a path.
pub fn encode_name(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\0{byte:02x}")));
    }
    text
}

/// Decodes a name or a path; `None` if [`encode_name`] cannot have written it.
pub fn decode_name(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.as_bytes().split(|byte| *byte == 0);
    let mut name = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        let digits = std::str::from_utf8(part.get(..2)?).ok()?;
        let byte = u8::from_str_radix(digits, 16).ok().filter(|byte| *byte >= 0x80)?;
        name.push(byte);
        name.extend_from_slice(&part[2..]);
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn invalid_bytes_are_escaped() {
        assert_eq!(encode_name("ä/b".as_bytes()), "ä/b");
        assert_eq!(encode_name(b"a\xff\xc3.txt"), "a\0ff\0c3.txt");
        for foreign in ["a\0", "a\0b", "a\0zz", "a\x0041", "\0+f", "\0ä"] {
            assert_eq!(decode_name(foreign), None, "{foreign:?}");
        }
    }

    proptest! {
        #[test]
        fn names_round_trip(name in prop::collection::vec(1u8.., 0..40)) {
            prop_assert_eq!(decode_name(&encode_name(&name)), Some(name));
        }
    }
}
