//! Formulas as MathML, without scripts and fonts. The TeX stays as an annotation, for screen readers and for copying.

use super::math_spans::{Context, find};
use super::{Allowance, escape, escaped};
use math_core::{LatexToMathML, MathCoreConfig, MathDisplay};
use std::sync::LazyLock;

/// Longest formula that is converted, in bytes, and its deepest nesting: the library is recursive.
const MAX_TEX: usize = 8 << 10;
const MAX_DEPTH: usize = 60;

static CONVERTER: LazyLock<Option<LatexToMathML>> = LazyLock::new(|| {
    let config = MathCoreConfig { annotation: true, allow_unreliable_rendering: true, ..MathCoreConfig::default() };
    LatexToMathML::new(config).ok()
});

/// The markup of the shortest formula. Bytes.
const LEAST: usize = 128;

/// A formula as HTML. A formula that cannot be converted shows its source, with the error as a tooltip; one that the page has no
/// allowance for shows its source only.
pub fn html(tex: &str, display: bool, allowance: &Allowance, out: &mut String) {
    let tex = tex.trim();
    if allowance.has(LEAST) {
        let shown = set(tex, display);
        if allowance.take(shown.len()) {
            return out.push_str(&shown);
        }
    }
    out.push_str("<code>");
    escape(tex, out);
    out.push_str("</code>");
}

fn set(tex: &str, display: bool) -> String {
    let mut out = String::new();
    match convert(tex, display) {
        Ok(mathml) => {
            let (open, rest) = mathml.split_at("<math".len().min(mathml.len()));
            out.push_str(if display { "<span class=\"math display\">" } else { "<span class=\"math\">" });
            out.push_str(open);
            out.push_str(" alttext=\"");
            escape(tex, &mut out);
            out.push('"');
            out.push_str(rest);
            out.push_str("</span>");
        }
        Err(reason) => {
            out.push_str("<code class=\"tex\" title=\"This formula could not be set: ");
            escape(&reason, &mut out);
            out.push_str("\">");
            escape(tex, &mut out);
            out.push_str("</code>");
        }
    }
    out
}

/// A `text/latex` output as HTML: formulas converted, the text between them unchanged.
pub fn latex_html(source: &str, allowance: &Allowance, out: &mut String) {
    let formulas = find(source, Context::Latex);
    if formulas.is_empty() {
        return match convert(source.trim(), true) {
            Ok(_) => html(source, true, allowance, out),
            Err(_) => {
                out.push_str("<pre class=\"tex\">");
                escape(source, out);
                out.push_str("</pre>");
            }
        };
    }
    let mut from = 0;
    for formula in formulas {
        escape(&source[from..formula.whole.start], out);
        // sympy writes `$\displaystyle …$` for a formula on a line of its own.
        let tex = &source[formula.tex.clone()];
        html(tex, formula.display || tex.trim_start().starts_with("\\displaystyle"), allowance, out);
        from = formula.whole.end;
    }
    escape(&source[from..], out);
}

fn convert(tex: &str, display: bool) -> Result<String, String> {
    if tex.len() > MAX_TEX || depth(tex) > MAX_DEPTH {
        return Err("it is too long or too deep".to_owned());
    }
    let converter = CONVERTER.as_ref().ok_or("no converter")?;
    let display = if display { MathDisplay::Block } else { MathDisplay::Inline };
    // The environments of amsmath that stand alone are displayed formulas already.
    let result = converter.convert_with_local_state(tex, display).map_err(|error| error.to_string())?;
    Ok(result.mathml)
}

/// An upper bound of the nesting of a formula: opening delimiters, and commands in a row, which can be arguments of each
/// other.
fn depth(tex: &str) -> usize {
    let (mut open, mut chain, mut deepest) = (0_usize, 0_usize, 0_usize);
    let mut bytes = tex.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' | b'(' => open += 1,
            b'}' | b']' | b')' => open = open.saturating_sub(1),
            b'\\' if bytes.peek().is_some_and(u8::is_ascii_alphabetic) => chain += 1,
            b'^' | b'_' => chain += 1,
            b' ' | b'a'..=b'z' | b'A'..=b'Z' => {}
            _ => chain = 0,
        }
        deepest = deepest.max(open + chain / 8);
    }
    deepest
}

/// The TeX of a formula as text, for attributes.
pub(super) fn plain(tex: &str) -> String {
    escaped(tex.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mathml_contains_the_source() {
        let mathml = set("\\frac{a}{b} < \"c\"", false);
        assert!(mathml.starts_with("<span class=\"math\"><math alttext=\"\\frac{a}{b} &lt; &quot;c&quot;\""), "{mathml}");
        assert!(mathml.contains("<mfrac>"), "{mathml}");
    }

    #[test]
    fn invalid_formulas_show_their_source() {
        let shown = set("\\frac{a}{<script>", false);
        assert!(shown.starts_with("<code class=\"tex\"") && shown.contains("\\frac{a}{&lt;script&gt;"), "{shown}");
    }

    #[test]
    fn latex_outputs_become_formulas_and_text() {
        let shown = |source: &str| {
            let mut out = String::new();
            latex_html(source, &Allowance::for_source(0), &mut out);
            out
        };
        assert!(shown("$\\displaystyle \\int x\\, dx$").contains("math display"));
        assert!(shown("\\begin{align}a&=b\\\\c&=d\\end{align}").contains("<mtable"));
        assert!(shown("\\begin{tabular}{r|l} a & b \\end{tabular}").contains("tabular"));
        assert!(shown("x^2").contains("<msup>"));
    }

    #[test]
    fn deep_nesting_does_not_crash() {
        for piece in ["{", "\\sqrt", "^", "\\left(", "\\frac", "\\begin{matrix}", "\\hat ", "\\sqrt{", "(", "\\not", "x^{"] {
            set(&piece.repeat(MAX_TEX / piece.len()), false);
        }
    }

    proptest! {
        #[test]
        fn tags_in_the_source_are_escaped(
            tex in "(\\\\(text|href|frac|mathrm|color|begin|end|left|right|operatorname|unicode|htmlData|url|tag|label|style|class)\
                    |[{}a<>\"'&^_$#%]|<script>|javascript:){0,14}"
        ) {
            for display in [false, true] {
                let mut out = String::new();
                html(&tex, display, &Allowance::for_source(0), &mut out);
                prop_assert!(!out.contains("<script") && !out.contains("href="), "{}", out);
            }
        }
    }
}
