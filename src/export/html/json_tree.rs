//! JSON as a tree of `<details>`.

use super::terminal_text::with_separators;
use crate::render::{Allowance, escape};
use serde_json::Value;

/// Deeper values are shown on one line.
const MAX_DEPTH: usize = 40;
/// Longer lists are divided into parts of this size.
const PART: usize = 100;
/// Longer strings are cut in the tree.
const MAX_STRING: usize = 20_000;

/// The markup of a node. Bytes.
const NODE: usize = 64;

/// A value as a tree. `open`: nodes with few children are open. A list that the page has no allowance for is shown on one line.
pub(super) fn html(value: &Value, name: &str, open: bool, allowance: &Allowance, out: &mut String) {
    out.push_str("<div class=\"tree\">");
    node(Some(name).filter(|name| !name.is_empty()), value, true, Tree { open, depth: 0, allowance }, out);
    out.push_str("</div>\n");
}

/// Where a node is in a tree.
#[derive(Clone, Copy)]
struct Tree<'a> {
    open: bool,
    depth: usize,
    allowance: &'a Allowance,
}

impl Tree<'_> {
    /// Whether the children of a node have nodes of their own.
    fn divides(self, children: usize) -> bool {
        children > 0 && self.depth < MAX_DEPTH && self.allowance.take(children.saturating_mul(NODE))
    }
}

fn node(key: Option<&str>, value: &Value, first: bool, tree: Tree<'_>, out: &mut String) {
    let Tree { open, .. } = tree;
    match value {
        Value::Object(fields) if tree.divides(fields.len()) => {
            branch(key, &format!("{{{}}}", with_separators(fields.len())), first || open && fields.len() <= PART, out);
            let children: Vec<(String, &Value)> = fields.iter().map(|(key, value)| (key.clone(), value)).collect();
            parts(&children, Tree { depth: tree.depth + 1, ..tree }, out);
            out.push_str("</div></details>");
        }
        Value::Array(items) if tree.divides(items.len()) => {
            branch(key, &format!("[{}]", with_separators(items.len())), (first || open) && items.len() <= PART, out);
            let children: Vec<(String, &Value)> =
                items.iter().enumerate().map(|(at, item)| (at.to_string(), item)).collect();
            parts(&children, Tree { depth: tree.depth + 1, ..tree }, out);
            out.push_str("</div></details>");
        }
        leaf => {
            out.push_str("<div>");
            label(key, out);
            scalar(leaf, out);
            out.push_str("</div>");
        }
    }
}

fn branch(key: Option<&str>, size: &str, open: bool, out: &mut String) {
    out.push_str(if open { "<details open><summary>" } else { "<details><summary>" });
    label(key, out);
    out.push_str("<small>");
    out.push_str(size);
    out.push_str("</small></summary><div>");
}

fn label(key: Option<&str>, out: &mut String) {
    if let Some(key) = key {
        escape(key, out);
        out.push_str(": ");
    }
}

/// Writes children, divided into parts if they are many.
fn parts(children: &[(String, &Value)], tree: Tree<'_>, out: &mut String) {
    if children.len() <= PART {
        children.iter().for_each(|(key, value)| node(Some(key), value, false, tree, out));
        return;
    }
    for (at, part) in children.chunks(PART).enumerate() {
        let from = at * PART;
        out.push_str(&format!("<details><summary><small>{} … {}</small></summary><div>", from, from + part.len() - 1));
        part.iter().for_each(|(key, value)| node(Some(key), value, false, tree, out));
        out.push_str("</div></details>");
    }
}

fn scalar(value: &Value, out: &mut String) {
    let (class, text) = match value {
        Value::String(text) if text.len() > MAX_STRING => (
            "s",
            format!(
                "{}… ({} characters)",
                Value::from(&text[..text.floor_char_boundary(MAX_STRING)]),
                with_separators(text.len())
            ),
        ),
        Value::String(_) => ("s", value.to_string()),
        Value::Number(_) => ("n", value.to_string()),
        _ => ("l", value.to_string()),
    };
    out.push_str(&format!("<span class=\"{class}\">"));
    escape(&text, out);
    out.push_str("</span>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn trees_contain_every_value() {
        let mut out = String::new();
        html(
            &json!({"a<": [1, {"b": null}], "big": (0..250).collect::<Vec<_>>(), "s": "x\"y"}),
            "root",
            false,
            &Allowance::for_source(0),
            &mut out,
        );
        for piece in
            ["a&lt;: ", "<small>[2]</small>", "<small>200 … 249</small>", "<span class=\"n\">249</span>", "x\\&quot;y"]
        {
            assert!(out.contains(piece), "{piece}: {out}");
        }
        assert_eq!(out.matches("<details").count(), out.matches("</details>").count());
    }

    #[test]
    fn depth_is_bounded() {
        let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
        let mut out = String::new();
        html(&deep, "", true, &Allowance::for_source(0), &mut out);
        assert_eq!(out.matches("<details").count(), MAX_DEPTH);
    }

    #[test]
    fn lists_without_allowance_are_on_one_line() {
        let allowance = Allowance::for_source(0);
        while allowance.take(NODE) {}
        let mut out = String::new();
        html(&json!([1, [2, 3]]), "root", false, &allowance, &mut out);
        assert_eq!(out, "<div class=\"tree\"><div>root: <span class=\"l\">[1,[2,3]]</span></div></div>\n");
    }
}
