//! Markdown and foreign HTML: no active element survives.
#![no_main]

use cellkeep::render::{Allowance, markdown, sanitize};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let allowance = Allowance::for_source(text.len());
    let attachment = |name: &str| (name.len() > 3).then(|| format!("data:image/png;base64,{name}"));
    let (from_markdown, _) = markdown::html(text, &attachment, &allowance);
    let from_html = sanitize::html(text, &allowance);
    for page in [from_markdown, from_html] {
        let lower = page.to_ascii_lowercase();
        for element in ["<script", "<style", "<svg", "<iframe", "<object", "<embed", "<form", "<base", "<meta", "<link"] {
            assert!(!lower.contains(element), "{page}");
        }
    }
});
