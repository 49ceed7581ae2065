//! Markdown cells as HTML: GitHub's markdown, formulas, attachments, code with syntax colours.

use super::math_spans::{Context, Formula, find};
use super::{Allowance, code, math, pictures, sanitize};
use pulldown_cmark::{CodeBlockKind, CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use std::borrow::Cow;

/// Delimit the number of a formula while markdown and HTML are parsed. Private-use characters, which no text needs.
const OPEN: char = '\u{e000}';
const CLOSE: char = '\u{e001}';

/// A heading, for tables of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heading {
    /// 1 to 6.
    pub level: u8,
    /// Its text without markup.
    pub text: String,
    /// The `id` attribute of its element.
    pub id: String,
}

/// Renders markdown, and returns its headings. `attachment` returns the data URL of a picture in the cell's attachments, by
/// name. `allowance` is that of the page.
pub fn html(source: &str, attachment: &dyn Fn(&str) -> Option<String>, allowance: &Allowance) -> (String, Vec<Heading>) {
    let source: Cow<'_, str> =
        if source.contains([OPEN, CLOSE]) { source.replace([OPEN, CLOSE], "\u{fffd}").into() } else { source.into() };
    let formulas = find(&source, Context::Markdown);
    let marked = insert_placeholders(&source, &formulas);
    let mut rewriter = EventRewriter { source: &source, formulas: &formulas, allowance, headings: Vec::new(), code: None };
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_GFM;
    let events: Vec<Event<'_>> = rewriter.read(Parser::new_ext(&marked, options).collect());
    let mut raw = String::with_capacity(marked.len() * 3 / 2);
    pulldown_cmark::html::push_html(&mut raw, events.into_iter());
    let with_formulas = insert_formulas(&sanitize::clean(&raw), &source, &formulas, allowance);
    (pictures::embed(with_formulas, attachment, allowance), rewriter.headings)
}

/// Replaces each formula by a placeholder.
fn insert_placeholders(source: &str, formulas: &[Formula]) -> String {
    let mut marked = String::with_capacity(source.len());
    let mut from = 0;
    for (index, formula) in formulas.iter().enumerate() {
        marked.push_str(&source[from..formula.whole.start]);
        marked.push(OPEN);
        marked.push_str(&index.to_string());
        marked.push(CLOSE);
        from = formula.whole.end;
    }
    marked.push_str(&source[from..]);
    marked
}

/// Rewrites the events of the markdown parser: heading ids, code blocks, task lists, and formulas in code and links.
struct EventRewriter<'a> {
    source: &'a str,
    formulas: &'a [Formula],
    allowance: &'a Allowance,
    headings: Vec<Heading>,
    /// Language and text of the open code block.
    code: Option<(String, String)>,
}

impl EventRewriter<'_> {
    fn read<'e>(&mut self, events: Vec<Event<'e>>) -> Vec<Event<'e>> {
        let ids = self.heading_ids(&events);
        let mut ids = ids.into_iter();
        events.into_iter().filter_map(|event| self.event(event, &mut ids)).collect()
    }

    fn event<'e>(&mut self, event: Event<'e>, ids: &mut impl Iterator<Item = String>) -> Option<Event<'e>> {
        Some(match event {
            Event::Start(Tag::Heading { level, classes, attrs, .. }) => {
                Event::Start(Tag::Heading { level, id: ids.next().map(CowStr::from), classes, attrs })
            }
            Event::Start(Tag::CodeBlock(kind)) => {
                let info = match kind {
                    CodeBlockKind::Fenced(info) => self.restored(info).into_string(),
                    CodeBlockKind::Indented => String::new(),
                };
                let language = info.split([' ', ',', '{', '}']).find(|word| !word.is_empty()).unwrap_or_default();
                self.code = Some((language.trim_start_matches('.').to_owned(), String::new()));
                return None;
            }
            Event::End(TagEnd::CodeBlock) => {
                let (language, text) = self.code.take().unwrap_or_default();
                let mut html = String::from("<pre class=\"code\"><code>");
                code::html(&text, &language, &mut html);
                html.push_str("</code></pre>\n");
                Event::Html(html.into())
            }
            Event::Text(text) if self.code.is_some() => {
                let restored = self.restored(text);
                if let Some((_, code)) = &mut self.code {
                    code.push_str(&restored);
                }
                return None;
            }
            Event::Code(text) => Event::Code(self.restored(text)),
            Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
                let (dest_url, title) = (self.restored(dest_url), self.restored(title));
                Event::Start(Tag::Link { link_type, dest_url, title, id })
            }
            Event::Start(Tag::Image { link_type, dest_url, title, id }) => {
                let (dest_url, title) = (self.restored(dest_url), self.restored(title));
                Event::Start(Tag::Image { link_type, dest_url, title, id })
            }
            // Tasks cannot be changed here, so they are signs and not controls.
            Event::TaskListMarker(done) => Event::InlineHtml(
                if done { "<span class=\"task done\">☑</span> " } else { "<span class=\"task\">☐</span> " }.into(),
            ),
            other => other,
        })
    }

    /// The ids of all headings, as in Jupyter: the text with hyphens instead of blanks.
    fn heading_ids(&mut self, events: &[Event<'_>]) -> Vec<String> {
        let mut open: Option<(HeadingLevel, String)> = None;
        for event in events {
            match event {
                Event::Start(Tag::Heading { level, .. }) => open = Some((*level, String::new())),
                Event::End(TagEnd::Heading(_)) => {
                    let Some((level, text)) = open.take() else { continue };
                    let text = text.trim().to_owned();
                    let id = text.replace(char::is_whitespace, "-");
                    self.headings.push(Heading { level: level as u8, text, id });
                }
                Event::Text(piece) | Event::Code(piece) => {
                    let piece = self.restored(piece.clone());
                    if let Some((_, text)) = &mut open {
                        text.push_str(&piece);
                    }
                }
                _ => {}
            }
        }
        let ids: Vec<String> = self.headings.iter().map(|heading| heading.id.clone()).collect();
        for heading in &mut self.headings {
            heading.id.insert_str(0, "c-");
        }
        ids
    }

    /// A text with the sources of formulas instead of their placeholders. The definition of a link stands in each of its references, so
    /// formulas are taken from the allowance; without it they are left out.
    fn restored<'e>(&self, text: CowStr<'e>) -> CowStr<'e> {
        if !text.contains(OPEN) {
            return text;
        }
        let mut restored = String::with_capacity(text.len());
        replace_placeholders(&text, &mut restored, &mut |index, out| {
            if let Some(formula) = self.formulas.get(index)
                && self.allowance.take(formula.whole.len())
            {
                out.push_str(&self.source[formula.whole.clone()]);
            }
        });
        restored.into()
    }
}

/// Appends a text, and calls back for each placeholder in it. Placeholders that a text forges by character references are handled the
/// same.
fn replace_placeholders(text: &str, out: &mut String, replace: &mut dyn FnMut(usize, &mut String)) {
    let mut parts = text.split(OPEN);
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        match (part[..digits].parse(), part[digits..].strip_prefix(CLOSE)) {
            (Ok(index), Some(rest)) => {
                replace(index, out);
                out.push_str(rest);
            }
            _ => out.push_str(part),
        }
    }
}

/// Inserts the formulas, which the sanitiser must not see, each once. Inside a tag, a formula is inserted as its source.
fn insert_formulas(clean: &str, source: &str, formulas: &[Formula], allowance: &Allowance) -> String {
    if formulas.is_empty() {
        return clean.to_owned();
    }
    let mut left: Vec<Option<&Formula>> = formulas.iter().map(Some).collect();
    let mut insert = |text: &str, in_tag: bool, out: &mut String| {
        replace_placeholders(text, out, &mut |index, out| {
            let Some(Formula { tex, display, .. }) = left.get_mut(index).and_then(Option::take) else { return };
            match in_tag {
                true => out.push_str(&math::plain(&source[tex.clone()])),
                false => math::html(&source[tex.clone()], *display, allowance, out),
            }
        });
    };
    let mut out = String::with_capacity(clean.len() + 256);
    let mut rest = clean;
    while let Some(at) = rest.find('<') {
        insert(&rest[..at], false, &mut out);
        let end = at + pictures::tag_len(&rest[at..]);
        insert(&rest[at..end], true, &mut out);
        rest = &rest[end..];
    }
    insert(rest, false, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(source: &str) -> String {
        let attachment = |name: &str| (name == "a b.png").then(|| "data:image/png;base64,AAAA".to_owned());
        html(source, &attachment, &Allowance::for_source(0)).0
    }

    #[test]
    fn common_markdown_becomes_html() {
        let shown = page(
            "# A *title*\n\n|a|b|\n|-|-|\n|1|$x^2$|\n\n- [x] done\n\n```python\nif x: pass\n```\n\n[js](javascript:alert(1)) ~~no~~",
        );
        assert!(shown.contains("<h1 id=\"c-A-title\">A <em>title</em></h1>"), "{shown}");
        assert!(shown.contains("<td><span class=\"math\"><math"), "{shown}");
        assert!(shown.contains("<span class=\"k\">if</span>") && shown.contains("☑"), "{shown}");
        assert!(!shown.contains("javascript"), "{shown}");
    }

    #[test]
    fn formulas_take_precedence_over_markdown() {
        let shown = page("$$\na_1 * b_2\n- c * d\n= e\n$$ and `$x$`\n\n    $y$\n\n[a](http://x/$z$)");
        assert!(shown.contains("math display") && !shown.contains("<em>") && !shown.contains("<li>"), "{shown}");
        assert!(shown.contains("<code>$x$</code>") && shown.contains("$y$") && shown.contains("http://x/$z$"), "{shown}");
        assert!(page("![$x<y$](attachment:q)").contains("alt=\"x&lt;y\""));
    }

    #[test]
    fn attachments_are_embedded_and_remote_pictures_dropped() {
        assert!(page("![p](<attachment:a b.png>)").contains("src=\"data:image/png;base64,AAAA\""));
        assert!(page("<img src='attachment:a b.png' width=20>").contains("src=\"data:image/png;base64,AAAA\""));
        let elsewhere = page("![p](https://x/y.png) ![q](attachment:none)");
        assert!(!elsewhere.contains("https://") && !elsewhere.contains("attachment:"), "{elsewhere}");
    }

    #[test]
    fn headings_are_returned_with_ids() {
        let (_, headings) = html("# One $x$\n\n## Two `b`", &|_| None, &Allowance::for_source(0));
        assert_eq!(headings[0], Heading { level: 1, text: "One $x$".to_owned(), id: "c-One-$x$".to_owned() });
        assert_eq!(headings[1].text, "Two b");
    }

    proptest! {
        #[test]
        fn no_script_survives_rendering(
            text in "(<script>|</script>|<img src=x onerror=a>|<svg onload=a>|javascript:|\\[a\\]\\(|\\)|!\\[|`|\\$|\\$\\$|\"|'|>|<a href=|\n|\n\n| |# |<!--|-->|<style>|<math>|attachment:|\u{e000}0\u{e001}|\\\\){0,16}"
        ) {
            let shown = page(&text);
            let lower = shown.to_ascii_lowercase();
            prop_assert!(!lower.contains("<script") && !lower.contains("<svg") && !lower.contains("<style"), "{}", shown);
            for tag in tags(&shown) {
                // Outside quotes, a tag contains attribute names only.
                let names: String = tag.split('"').step_by(2).collect();
                prop_assert!(!names.contains(" on") && !tag.contains("href=\"javascript:") && !tag.contains("src=\"javascript:"), "{}", shown);
            }
        }
    }

    /// The text from `<` to the `>` that ends the tag, the first one outside quotes: text may contain `href="javascript:`.
    fn tags(html: &str) -> Vec<&str> {
        let mut rest = html;
        let mut found = Vec::new();
        while let Some((_, from)) = rest.split_once('<') {
            let mut quoted = false;
            let end = from.find(|c| {
                quoted ^= c == '"';
                c == '>' && !quoted
            });
            let (tag, after) = from.split_at(end.unwrap_or(from.len()));
            found.push(tag);
            rest = after;
        }
        found
    }
}
