//! What browsers run: the page with its element, and plotting libraries, built with npm packages by `make web`.
//!
//! A build without them works, and says so where it matters.

use std::borrow::Cow;
use std::fmt::Write as _;

use rust_embed::RustEmbed;

#[derive(RustEmbed)]
#[folder = "web/dist/"]
#[allow_missing = true]
struct Dist;

/// A library that draws plots. Plotly's bundles in order: each draws what those before it draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Library {
    /// Plotly with lines, bars and pies.
    PlotlyBasic,
    /// Plotly with all that has two axes.
    PlotlyCartesian,
    /// All of Plotly.
    PlotlyFull,
    /// Vega, Vega-Lite and their embedding.
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

    /// Whether this build has it.
    pub fn is_here(self) -> bool {
        Dist::iter().any(|name| name == self.file())
    }

    /// Its script, which holds nothing that would end a script element.
    pub fn script(self) -> Option<String> {
        let script = String::from_utf8(Dist::get(self.file())?.data.into_owned()).ok()?;
        (!script.contains("</script") && !script.contains("<!--")).then_some(script)
    }
}

/// A file that a browser may ask for.
#[derive(Debug, Clone)]
pub struct Asset {
    /// Its bytes.
    pub bytes: Cow<'static, [u8]>,
    /// The same, compressed with gzip.
    pub zipped: Option<Cow<'static, [u8]>>,
    /// Names its content, quoted as a header has it.
    pub etag: String,
    /// Its type.
    pub mime: &'static str,
    /// Whether its name changes whenever its content does.
    pub is_immutable: bool,
}

/// The file of this name, if this build has it.
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
    let zipped = Dist::get(&format!("{name}.gz")).map(|file| file.data);
    Some(Asset { bytes: file.data, zipped, etag, mime, is_immutable: is_named_by_content(name) })
}

/// As the packer names files: `name-HASH.js`, eight capitals and digits.
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
    fn only_hashed_names_last() {
        assert!(is_named_by_content("page/page-N3KDQ2AB.js"));
        for name in ["plotly-basic.js", "page/index.html", "cellkeep-cell.js", "vega.js", "a-N3KDQ2A.js"] {
            assert!(!is_named_by_content(name), "{name}");
        }
    }

    #[test]
    fn nothing_but_pages_is_an_asset() {
        for name in [".gitignore", "../Cargo.toml", "page/../../src/web.rs", "nothing.js", ""] {
            assert!(asset(name).is_none(), "{name}");
        }
    }
}
