//! What browsers run that is not ours: plotting libraries, built from npm packages by `make web`.
//!
//! A build without them works, and says so where it matters.

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
