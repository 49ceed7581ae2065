//! Files for browsers: the page with its elements, and the plotting libraries. `make web` builds them from npm packages.
//!
//! A build without them works, and reports what is missing.

use std::borrow::Cow;
use std::fmt::Write as _;

use rust_embed::RustEmbed;

#[derive(RustEmbed)]
#[folder = "web/dist/"]
#[allow_missing = true]
struct Dist;

/// A plotting library. The bundles of Plotly are in order: each can draw everything that the previous ones can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Library {
    /// Lines, bars and pies.
    PlotlyBasic,
    /// All traces with two axes.
    PlotlyCartesian,
    PlotlyFull,
    /// Vega, Vega-Lite and vega-embed.
    Vega,
}

impl Library {
    fn file(self) -> &'static str {
        match self {
            Self::PlotlyBasic => "plotly-basic.js",
            Self::PlotlyCartesian => "plotly-cartesian.js",
            Self::PlotlyFull => "plotly-full.js",
            Self::Vega => "vega.js",
        }
    }

    /// Whether this build contains it.
    pub fn is_available(self) -> bool {
        Dist::iter().any(|name| name == self.file())
    }

    /// Its script, if it is safe inside a script element.
    pub fn script(self) -> Option<String> {
        let script = String::from_utf8(Dist::get(self.file())?.data.into_owned()).ok()?;
        (!script.contains("</script") && !script.contains("<!--")).then_some(script)
    }
}

/// A file that the server delivers to browsers.
#[derive(Debug, Clone)]
pub struct Asset {
    pub bytes: Cow<'static, [u8]>,
    /// The bytes compressed with gzip.
    pub gzip: Option<Cow<'static, [u8]>>,
    /// Hash of the content, in quotes, for the `ETag` header.
    pub etag: String,
    pub mime: &'static str,
    /// Whether its name contains a hash of its content.
    pub is_immutable: bool,
}

/// The file with this name, if this build contains it.
pub fn asset(name: &str) -> Option<Asset> {
    let mime = match name.rsplit_once('.')?.1 {
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "html" => "text/html; charset=utf-8",
        _ => return None,
    };
    let file = Dist::get(name)?;
    let mut etag = String::from('"');
    for byte in &file.metadata.sha256_hash()[..12] {
        let _ = write!(etag, "{byte:02x}");
    }
    etag.push('"');
    let gzip = Dist::get(&format!("{name}.gz")).map(|file| file.data);
    Some(Asset { bytes: file.data, gzip, etag, mime, is_immutable: is_named_by_content(name) })
}

/// Whether a name is `name-HASH.js` with esbuild's hash: eight capital letters and digits.
fn is_named_by_content(name: &str) -> bool {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    stem.rsplit_once('-').is_some_and(|(_, hash)| {
        hash.len() == 8 && hash.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hashed_names_are_immutable() {
        assert!(is_named_by_content("page/page-N3KDQ2AB.js"));
        for name in ["plotly-basic.js", "page/index.html", "cellkeep-cell.js", "vega.js", "a-N3KDQ2A.js"] {
            assert!(!is_named_by_content(name), "{name}");
        }
    }

    #[test]
    fn only_page_files_are_assets() {
        for name in [".gitignore", "../Cargo.toml", "page/../../src/web.rs", "nothing.js", ""] {
            assert!(asset(name).is_none(), "{name}");
        }
    }
}
