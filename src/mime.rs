//! MIME types: which are base64 and which text in outputs, their file extensions and display order, and the types of files.

/// Display order, best first, after the orders of JupyterLab and nteract. [`display_rank`] ranks families by prefix or
/// suffix, in the gaps between these entries.
const ORDER: &[(&str, u16)] = &[
    ("application/vnd.jupyter.widget-view+json", 20),
    ("application/vnd.plotly.v1+json", 30),
    ("application/vnd.bokehjs_exec.v0+json", 40),
    ("application/vnd.bokehjs_load.v0+json", 41),
    ("application/vnd.holoviews_exec.v0+json", 42),
    ("application/vnd.holoviews_load.v0+json", 43),
    ("application/geo+json", 60),
    ("application/vnd.apache.arrow.stream", 70),
    ("application/vnd.apache.parquet", 71),
    ("text/html", 80),
    ("text/markdown", 90),
    ("text/latex", 100),
    ("image/svg+xml", 110),
    ("image/png", 120),
    ("image/jpeg", 130),
    ("image/gif", 140),
    ("image/webp", 150),
    ("image/avif", 160),
    ("image/bmp", 170),
    ("application/pdf", 180),
    ("text/csv", 210),
    ("application/javascript", 220),
    ("text/javascript", 221),
    ("application/json", 230),
    ("text/vnd.mermaid", 240),
    ("text/plain", 250),
];

/// File extensions of exact types. [`extension`] handles families.
const EXTENSIONS: &[(&str, &str)] = &[
    ("application/geo+json", "geojson"),
    ("application/gzip", "gz"),
    ("application/javascript", "js"),
    ("application/json", "json"),
    ("application/pdf", "pdf"),
    ("application/vnd.apache.arrow.stream", "arrow"),
    ("application/vnd.apache.parquet", "parquet"),
    ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "xlsx"),
    ("application/xml", "xml"),
    ("application/zip", "zip"),
    ("audio/flac", "flac"),
    ("audio/mpeg", "mp3"),
    ("audio/ogg", "ogg"),
    ("audio/wav", "wav"),
    ("audio/x-wav", "wav"),
    ("image/avif", "avif"),
    ("image/bmp", "bmp"),
    ("image/gif", "gif"),
    ("image/jpeg", "jpg"),
    ("image/jpg", "jpg"),
    ("image/png", "png"),
    ("image/svg+xml", "svg"),
    ("image/tiff", "tiff"),
    ("image/webp", "webp"),
    ("text/csv", "csv"),
    ("text/html", "html"),
    ("text/javascript", "js"),
    ("text/latex", "tex"),
    ("text/markdown", "md"),
    ("text/plain", "txt"),
    ("text/vnd.mermaid", "mmd"),
    ("text/xml", "xml"),
    ("video/mp4", "mp4"),
    ("video/ogg", "ogv"),
    ("video/webm", "webm"),
];

/// The type without parameters, in lower case: `text/html` for `text/html; charset=utf-8`.
pub fn essence(mime: &str) -> String {
    mime.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Whether the value of this type in a MIME bundle may be any JSON value, by nbformat's rule
/// (`application/json` and `application/*+json`). All other values are strings.
pub fn is_json(mime: &str) -> bool {
    mime == "application/json" || (mime.starts_with("application/") && mime.ends_with("+json"))
}

/// Whether the value of this type in a MIME bundle is base64. Jupyter has no flag for it: the type alone
/// decides. Text types are `text/*`, `*+xml`, `*+json`, and the few `application/*` types known to be text; images, audio,
/// video, fonts and every other `application/*` type are binary.
pub fn is_binary(mime: &str) -> bool {
    let mime = essence(mime);
    // Altair uses the third ending for its newer types: application/vnd.vegalite.v6.json.
    if mime.ends_with("+xml") || mime.ends_with("+json") || mime.ends_with(".json") {
        return false;
    }
    match mime.split_once('/') {
        Some(("image" | "audio" | "video" | "font", _)) => true,
        Some(("application", subtype)) => !is_text_application(subtype),
        _ => false,
    }
}

fn is_text_application(subtype: &str) -> bool {
    const TEXT: &[&str] = &[
        "ecmascript",
        "graphql",
        "javascript",
        "json",
        "ld",
        "ndjson",
        "sql",
        "tex",
        "toml",
        "typescript",
        "x-javascript",
        "x-latex",
        "x-ndjson",
        "x-sh",
        "x-tex",
        "x-yaml",
        "xml",
        "yaml",
    ];
    TEXT.contains(&subtype) || subtype.ends_with("+yaml")
}

/// Whether Python's nbformat writes a string of this type as a list of lines (`text/*`, `application/javascript`,
/// `image/svg+xml`). The comparison is exact and case-sensitive, as in nbformat: the bytes of a written notebook depend on
/// it.
pub fn is_split_on_write(mime: &str) -> bool {
    mime.starts_with("text/") || mime == "application/javascript" || mime == "image/svg+xml"
}

/// File name extension of a type, without the dot. Plot specifications keep their kind (`plotly.json`, `vl.json`,
/// `vg.json`). Unknown types have `json`, `xml`, `txt` or `bin`.
pub fn extension(mime: &str) -> &'static str {
    let mime = essence(mime);
    if let Some((_, extension)) = EXTENSIONS.iter().find(|(known, _)| *known == mime) {
        return extension;
    }
    if mime.starts_with("application/vnd.plotly.") {
        return "plotly.json";
    }
    if mime.starts_with("application/vnd.vegalite.") {
        return "vl.json";
    }
    if mime.starts_with("application/vnd.vega.") {
        return "vg.json";
    }
    if mime.ends_with("+json") {
        return "json";
    }
    if mime.ends_with("+xml") {
        return "xml";
    }
    if is_binary(&mime) { "bin" } else { "txt" }
}

/// File extensions whose types are not the first ones with this extension in [`EXTENSIONS`].
const TYPES: &[(&str, &str)] = &[
    ("ipynb", "application/x-ipynb+json"),
    ("jl", "text/x-julia"),
    ("js", "text/javascript"),
    ("py", "text/x-python"),
    ("r", "text/x-r"),
    ("ts", "text/x-typescript"),
];

/// The type of a file by the extension of its name, or the type of unknown bytes.
pub fn of_name_or_bytes(name: &str) -> &'static str {
    of_name(name).unwrap_or("application/octet-stream")
}

/// The type of a file by the extension of its name, if it is known.
pub fn of_name(name: &str) -> Option<&'static str> {
    let (stem, extension) = name.rsplit_once('.')?;
    // The name of a hidden file is no extension.
    if stem.is_empty() || stem.ends_with('/') {
        return None;
    }
    let extension = extension.to_ascii_lowercase();
    let own = TYPES.iter().find(|(known, _)| *known == extension).map(|(_, mime)| *mime);
    let known = || EXTENSIONS.iter().find(|(_, known)| *known == extension).map(|(mime, _)| *mime);
    own.or_else(known).or_else(|| mime_guess::from_ext(&extension).first_raw())
}

/// The type of a file by its first bytes.
pub fn of_content(head: &[u8]) -> &'static str {
    match infer::get(head) {
        Some(kind) => kind.mime_type(),
        None if is_text(head) => "text/plain",
        None => "application/octet-stream",
    }
}

/// Whether the first bytes of a file are UTF-8 without control characters. The last character may be cut off.
pub fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default(),
        Err(_) => return false,
    };
    !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c' | '\x1b'))
}

/// Whether this is a Vega or Vega-Lite specification (`application/vnd.vegalite.v5+json`, `…v6.json` and relatives).
pub fn is_vega(mime: &str) -> bool {
    mime.starts_with("application/vnd.vegalite.") || mime.starts_with("application/vnd.vega.")
}

pub fn is_plotly(mime: &str) -> bool {
    mime.starts_with("application/vnd.plotly.")
}

/// Rank of a type in the display order of exports, text and artifacts: the type with the lowest rank is shown. The page has an order of
/// its own (`web/src/mime.ts`), since it can show more.
pub fn display_rank(mime: &str) -> u16 {
    let mime = essence(mime);
    if let Some((_, rank)) = ORDER.iter().find(|(known, _)| *known == mime) {
        return *rank;
    }
    match mime.split_once('/') {
        _ if mime.starts_with("application/vnd.vegalite.") => 50,
        _ if mime.starts_with("application/vnd.vega.") => 51,
        Some(("image", _)) => 175,
        Some(("audio", _)) => 190,
        Some(("video", _)) => 200,
        _ if mime.ends_with("+json") => 231,
        _ => 260,
    }
}

/// The types of a bundle in display order. Types of equal rank keep the order of the bundle.
pub fn display_order<'a>(mimes: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut sorted: Vec<&str> = mimes.into_iter().collect();
    sorted.sort_by_key(|mime| display_rank(mime));
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_decides_between_binary_and_text() {
        for mime in ["image/png", "IMAGE/JPEG", "audio/wav", "video/mp4", "application/pdf", "application/zip"] {
            assert!(is_binary(mime), "{mime}");
        }
        for mime in [
            "image/svg+xml",
            "text/plain",
            "text/html; charset=utf-8",
            "application/json",
            "application/javascript",
            "application/vnd.plotly.v1+json",
            "application/vnd.vegalite.v6.json",
            "model/gltf+json",
            "nonsense",
            "",
        ] {
            assert!(!is_binary(mime), "{mime}");
        }
    }

    #[test]
    fn extensions_follow_types() {
        let cases = [
            ("image/png", "png"),
            ("image/jpeg", "jpg"),
            ("image/svg+xml", "svg"),
            ("application/vnd.plotly.v1+json", "plotly.json"),
            ("application/vnd.vegalite.v5+json", "vl.json"),
            ("application/vnd.vega.v6.json", "vg.json"),
            ("application/foo+json", "json"),
            ("application/x-unknown", "bin"),
            ("text/x-unknown", "txt"),
        ];
        for (mime, expected) in cases {
            assert_eq!(extension(mime), expected, "{mime}");
        }
    }

    #[test]
    fn rich_types_come_before_plain_text() {
        let bundle = ["text/plain", "image/png", "x/unknown", "text/html", "application/vnd.vegalite.v5+json"];
        assert_eq!(
            display_order(bundle),
            ["application/vnd.vegalite.v5+json", "text/html", "image/png", "text/plain", "x/unknown"]
        );
    }

    #[test]
    fn files_have_types_by_name() {
        let cases = [
            ("a.csv", Some("text/csv")),
            ("A.PNG", Some("image/png")),
            ("deep/x.tar.gz", Some("application/gzip")),
            ("n.ipynb", Some("application/x-ipynb+json")),
            ("a.js", Some("text/javascript")),
            ("a.py", Some("text/x-python")),
            ("a.jpg", Some("image/jpeg")),
            ("a.parquet", Some("application/vnd.apache.parquet")),
            ("Makefile", None),
            (".csv", None),
            ("a.unknown-extension", None),
        ];
        for (name, mime) in cases {
            assert_eq!(of_name(name), mime, "{name}");
        }
    }

    #[test]
    fn files_have_types_by_content() {
        assert_eq!(of_content(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "image/png");
        assert_eq!(of_content(b"PK\x03\x04\x14\0\0\0"), "application/zip");
        assert_eq!(of_content("hällo\n".as_bytes()), "text/plain");
        assert_eq!(of_content(&"hä".as_bytes()[..2]), "text/plain", "a character is cut off");
        assert_eq!(of_content(b""), "text/plain");
        for binary in [&b"\0\x01\x02"[..], b"a\xffb", b"x\x00"] {
            assert_eq!(of_content(binary), "application/octet-stream");
        }
    }
}
