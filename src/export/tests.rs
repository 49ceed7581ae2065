//! Properties of every notebook in every format.

use super::*;
use proptest::prelude::*;

const FORMATS: &[Format] = &[Format::Html, Format::Markdown, Format::Script, Format::Ipynb];

fn code(outputs: Value) -> Value {
    json!({"cell_type": "code", "id": "a", "metadata": {}, "source": "f(1)", "outputs": outputs, "execution_count": 3})
}

fn display(data: Value) -> Value {
    json!([{"output_type": "display_data", "metadata": {}, "data": data}])
}

fn page(cells: Value) -> String {
    export(&notebook_of(cells), Format::Html, &ExportOptions::default()).body
}

/// The page without our own scripts and without frames.
fn body(page: &str) -> String {
    let mut text = page.split_once("</style>").unwrap().1.to_owned();
    for (open, close) in [("<script", "</script>"), ("srcdoc=\"", "\"")] {
        while let Some(at) = text.find(open) {
            let end = at + open.len() + text[at + open.len()..].find(close).unwrap() + close.len();
            text.replace_range(at..end, "");
        }
    }
    text
}

#[test]
fn best_representation_is_shown_first() {
    let shown = |data: Value| body(&page(json!([code(display(data))])));
    assert!(shown(json!({"text/plain": "p", "text/html": "<table><tr><td>1</td></tr></table>"})).contains("<td>1</td>"));
    assert!(
        shown(json!({"text/html": "<style>a{}</style><b>x</b>", "text/plain": "p"}))
            .contains("<iframe class=\"frame\" sandbox=\"allow-scripts")
    );
    assert!(shown(json!({"image/svg+xml": "<svg><script>x</script></svg>"})).contains("src=\"data:image/svg+xml;base64,"));
    assert!(shown(json!({"application/x-foo": "AAAA"})).contains("Download"));
    assert!(shown(json!({"application/x-foo": "AAAA", "text/plain": "fallback"})).contains("fallback"));
    assert!(shown(json!({})).contains("An empty output"));
    assert!(shown(json!({"image/png": "no base64!"})).contains("not valid base64"));
    assert!(shown(json!({"text/csv": "a,b\n1,\"2,3\""})).contains("<td>2,3</td>"));
    assert!(shown(json!({"text/latex": "$x^2$"})).contains("<msup>"));
    assert!(shown(json!({"application/geo+json": {"type": "Point"}})).contains("&quot;Point&quot;"));
    assert!(
        shown(json!({"application/vnd.jupyter.widget-view+json": {"model_id": "a"}})).contains("needs a running kernel")
    );
}

#[test]
fn chat_messages_have_labels_of_their_authors() {
    let cell = |kind: &str, id: &str, mark: Value| {
        let metadata = json!({"cellkeep": mark});
        let mut cell = json!({"cell_type": kind, "id": id, "metadata": metadata, "source": format!("of {id}")});
        if kind == "code" {
            (cell["outputs"], cell["execution_count"]) = (json!([]), Value::Null);
        }
        cell
    };
    let answer = |turn: &str| json!({"role": "assistant", "turn": turn});
    let cells = json!([
        cell("markdown", "title", json!({})),
        cell("markdown", "q1", json!({"role": "user"})),
        cell("markdown", "a1", answer("1")),
        cell("code", "a1code", answer("1")),
        cell("code", "byhand", json!(null)),
        cell("markdown", "q2", json!({"role": "user"})),
        cell("markdown", "q3", json!({"role": "user"})),
        cell("markdown", "a3", answer("3")),
        cell("markdown", "odd", json!({"role": ["<b>"]})),
    ]);
    let shown = |format| export(&notebook_of(cells.clone()), format, &ExportOptions::default()).body;
    let order = |text: &str, words: &[&str]| {
        let mut rest = text;
        for word in words {
            let (_, after) = rest.split_once(word).unwrap_or_else(|| panic!("{word} is missing behind the last in {text}"));
            rest = after;
        }
    };
    let (page, markdown) = (body(&shown(Format::Html)), shown(Format::Markdown));
    let (you, model) = ("<p class=\"who\">You</p>", "<p class=\"who\">Model</p>");
    order(&page, &["of title", you, "of q1", model, "of a1", you, "of q2", you, "of q3", model, "of a3", "of odd"]);
    assert_eq!((page.matches(you).count(), page.matches(model).count()), (3, 2));
    let (you, model) = ("\n**You:**\n\n", "\n**Model:**\n\n");
    order(&markdown, &["of title", you, "of q1", model, "of a1\n", "of a1code", you, "of q2", you, "of q3", model, "of a3"]);
    assert_eq!((markdown.matches("**You:**").count(), markdown.matches("**Model:**").count()), (3, 2));
    assert!(
        !export(&notebook_of(json!([code(json!([]))])), Format::Html, &ExportOptions::default())
            .body
            .contains("class=\"who\"")
    );
}

#[test]
fn tags_and_options_hide_parts() {
    let cell = |tags: Value| {
        json!([{"cell_type": "code", "id": "a", "metadata": {"tags": tags}, "source": "SOURCE", "execution_count": null,
            "outputs": [{"output_type": "stream", "name": "stdout", "text": "OUTPUT"}]}])
    };
    let shown = |tags: Value| {
        let page = body(&page(cell(tags)));
        (page.contains("SOURCE"), page.contains("OUTPUT"), page.contains("class=\"fold\""))
    };
    assert_eq!(shown(json!([])), (true, true, false));
    assert_eq!(shown(json!(["remove-input"])), (false, true, false));
    assert_eq!(shown(json!(["remove_output"])), (true, false, false));
    assert_eq!(shown(json!(["remove-cell"])), (false, false, false));
    assert_eq!(shown(json!(["hide-cell"])), (true, true, true));
    let options = ExportOptions { inputs: false, outputs: false, ..ExportOptions::default() };
    let bare = export(&notebook_of(cell(json!([]))), Format::Html, &options).body;
    assert!(!bare.contains("SOURCE") && !bare.contains("OUTPUT"));
}

#[test]
fn small_pages_are_small_and_well_formed() {
    let page = page(json!([{"cell_type": "markdown", "id": "m", "metadata": {}, "source": "# Title\n\ntext"}]));
    assert!(page.len() < 30_000, "{}", page.len());
    assert!(page.contains("<title>Title</title>") && page.contains("default-src 'none'; script-src 'sha256-"));
    assert!(!page.contains("unsafe-eval'"));
}

#[test]
fn plots_share_one_library() {
    if !crate::web::Library::Vega.is_available() {
        let shown = page(json!([code(display(json!({"application/vnd.vegalite.v5+json": {"mark": "bar"}})))]));
        assert!(shown.contains("This page was made without its library"));
        return;
    }
    let plot = |mime: &str| code(display(json!({mime: {"mark": "</script><b>"}})));
    let page = page(json!([
        plot("application/vnd.vegalite.v5+json"),
        plot("application/vnd.vegalite.v6.json"),
        plot("application/vnd.vega.v3+json")
    ]));
    assert_eq!(page.matches("id=\"lib-vega\"").count(), 1);
    assert_eq!(page.matches("class=\"plot\"").count(), 3);
    assert!(!page.contains("</script><b>"));
}

#[test]
fn outputs_can_be_left_out() {
    let notebook = notebook_of(json!([code(display(json!({"text/plain": "p"})))]));
    let bare = export(&notebook, Format::Ipynb, &ExportOptions { outputs: false, ..ExportOptions::default() }).body;
    assert!(bare.contains("\"outputs\": []") && bare.contains("\"execution_count\": null"));
    assert_eq!(export(&notebook, Format::Ipynb, &ExportOptions::default()).body, notebook.print());
}

/// Texts that would be active if they were not escaped.
const ATTACKS: &[&str] = &[
    "<script>alert(1)</script>",
    "\"><script>alert(1)</script>",
    "'><img src=x onerror=alert(1)>",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</pre></div><svg onload=alert(1)>",
    "javascript:alert(1)",
    "[a](javascript:alert(1))",
    "![a](javascript:alert(1))",
    "<a href=\"java&#10;script:alert(1)\">a</a>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<form action=javascript:alert(1)><input type=submit>",
    "<base href=//evil><meta http-equiv=refresh content=0;url=javascript:alert(1)>",
    "\u{1b}]8;;javascript:alert(1)\u{7}click\u{1b}]8;;\u{7}",
    "\u{1b}]8;;https://x\" onmouseover=\"alert(1)\u{7}click\u{1b}]8;;\u{7}",
    "$\\href{javascript:alert(1)}{x}$ $\\text{<script>alert(1)</script>}$",
    "<details open ontoggle=alert(1)>",
    "<!--><script>alert(1)</script>-->",
    "<style>@import 'http://evil'</style>",
    "<div style=\"background:url(javascript:alert(1))\">",
    "x\" onerror=\"alert(1)",
    "<iframe srcdoc=\"<script>alert(1)</script>\"></iframe>",
];

const MIMES: &[&str] = &[
    "text/plain",
    "text/html",
    "text/markdown",
    "text/latex",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "application/json",
    "application/javascript",
    "text/csv",
    "application/pdf",
    "audio/wav",
    "video/mp4",
    "text/vnd.mermaid",
    "application/x-unknown",
    "application/vnd.plotly.v1+json",
    "application/vnd.vegalite.v5+json",
    "application/geo+json",
    "application/vnd.jupyter.widget-view+json",
    "text/x-unknown",
];

/// Notebooks with the text in every position that can hold one.
fn everywhere(attack: &str) -> Vec<Notebook> {
    let bundles = MIMES.iter().flat_map(|mime| [json!({*mime: attack}), json!({*mime: {attack: attack}})]);
    let mut outputs: Vec<Value> = bundles
        .map(|data| json!({"output_type": "display_data", "data": data, "metadata": {attack: attack, "width": attack, "alt": attack, "root": attack}}))
        .collect();
    outputs.push(json!({"output_type": "display_data", "data": {attack: attack, (format!("image/{attack}")): attack,
        (format!("audio/{attack}")): "AAAA", (format!("text/{attack}")): attack}, "metadata": {}}));
    outputs.push(json!({"output_type": "display_data", "data": {(format!("audio/{attack}")): "AAAA"}, "metadata": {}}));
    outputs.push(json!({"output_type": "stream", "name": attack, "text": attack}));
    outputs.push(json!({"output_type": "stream", "name": "stderr", "text": attack}));
    outputs.push(json!({"output_type": "error", "ename": attack, "evalue": attack, "traceback": [attack, format!("File {attack}/lib/python")]}));
    outputs.push(json!({"output_type": attack, "text": attack}));
    let cells = json!([
        {"cell_type": "markdown", "id": "m", "metadata": {}, "source": format!("# {attack}\n\n{attack}\n\n```{attack}\n{attack}\n```\n\n![{attack}](attachment:a)\n\n<img src=\"attachment:{attack}\">"),
         "attachments": {"a": {"image/png": attack}, attack: {"image/svg+xml": attack}}},
        {"cell_type": "raw", "id": "r", "metadata": {"format": attack}, "source": attack},
        {"cell_type": "code", "id": "c", "metadata": {"tags": [attack], attack: attack}, "source": attack, "outputs": outputs, "execution_count": 1},
    ]);
    let root = |title: Option<&str>| {
        json!({"cells": cells, "nbformat": 4, "nbformat_minor": 5, "metadata": {"title": title,
            "language_info": {"name": attack, "version": attack}, "kernelspec": {"name": attack, "display_name": attack}}})
    };
    [root(Some(attack)), root(None)].iter().map(|root| Notebook::parse(root.to_string().as_bytes()).unwrap()).collect()
}

/// The active content of a page as browsers parse it: elements, handlers, links.
fn active_content(page: &str) -> Vec<String> {
    // The parser of the sanitiser follows browsers. Allowing everything shows what the page contains.
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let found = std::sync::Arc::clone(&seen);
    let mut acts = Vec::new();
    let text = body(page);
    let mut builder = ammonia::Builder::default();
    builder.add_tags(["script", "style", "svg", "form", "iframe", "base", "meta", "object", "embed"]);
    builder.rm_clean_content_tags(["script", "style"]);
    builder.url_schemes(["javascript", "http", "https", "mailto", "data", "vbscript", "file"].into_iter().collect());
    builder.add_generic_attributes([
        "onerror",
        "onload",
        "onclick",
        "onmouseover",
        "ontoggle",
        "onfocus",
        "href",
        "src",
        "action",
    ]);
    builder.attribute_filter(move |element, attribute, value| {
        let link = value.trim().to_ascii_lowercase().replace(|c: char| c.is_whitespace(), "");
        let leads = link.starts_with("javascript:") || link.starts_with("vbscript:") || link.starts_with("data:text");
        // The alternative text of a picture may be anything.
        if attribute.starts_with("on") || leads && !matches!(attribute, "alt" | "alttext" | "title" | "aria-label") {
            found.lock().unwrap().push(format!("{element} {attribute}={value}"));
        }
        Some(value.into())
    });
    let cleaned = builder.clean(&text).to_string();
    for element in ["<script", "<style", "<svg", "<form", "<base", "<meta", "<object", "<embed"] {
        acts.extend(cleaned.contains(element).then(|| element.to_owned()));
    }
    acts.extend(seen.lock().unwrap().drain(..));
    acts
}

#[test]
fn no_content_is_active_outside_frames() {
    for attack in ATTACKS {
        for notebook in everywhere(attack) {
            let options = ExportOptions { name: (*attack).to_owned(), ..ExportOptions::default() };
            let page = export(&notebook, Format::Html, &options).body;
            assert_eq!(active_content(&page), [""; 0], "{attack}");
            assert!(!page.split("<body>").next().unwrap().contains("<script"), "{attack}");
            for frame in page.split("<iframe").skip(1) {
                assert!(frame.starts_with(" class=\"frame\" sandbox=\"allow-scripts allow-downloads\""), "{attack}");
            }
        }
    }
}

#[test]
fn active_content_is_detected() {
    for acting in ["<script>x</script>", "<img src=x onerror=y>", "<a href='javascript:x'>y</a>", "<svg></svg>"] {
        assert!(!active_content(&format!("<style></style>{}", acting.replace("<script", "<SCRIPT"))).is_empty(), "{acting}");
    }
}

/// Arbitrary JSON with the keys that notebooks use.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z<>&\"'$`#\\[\\](){}\u{1b}\r\n\\\\é%!|*_-]{0,30}".prop_map(Value::from),
        proptest::sample::select(ATTACKS).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        let keys = proptest::sample::select(vec![
            "data",
            "metadata",
            "text",
            "name",
            "traceback",
            "ename",
            "text/html",
            "text/plain",
            "image/png",
            "image/svg+xml",
            "text/markdown",
            "application/json",
            "tags",
            "width",
            "text/csv",
            "text/latex",
            "application/vnd.plotly.v1+json",
            "layout",
        ]);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::vec((keys, inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_notebook_can_be_exported(
        cells in proptest::collection::vec((0..3_usize, "[a-z<$`%!?#|=\"'\\\\\n ]{0,40}", any_json(), any_json(), 0..4_usize), 0..5)
    ) {
        let cells: Vec<Value> = cells.into_iter().map(|(kind, source, output, metadata, output_type)| {
            let mut output = output;
            if let Some(output) = output.as_object_mut() {
                output.insert("output_type".to_owned(), json!(["stream", "error", "display_data", "execute_result"][output_type]));
            }
            let cell_type = ["code", "markdown", "raw"][kind];
            json!({"cell_type": cell_type, "metadata": metadata, "source": source, "outputs": [output],
                "attachments": {"a": metadata}})
        }).collect();
        let bytes = json!({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).to_string();
        let Ok(notebook) = Notebook::parse(bytes.as_bytes()) else { return Ok(()) };
        for format in FORMATS {
            let exported = export(&notebook, *format, &ExportOptions::default());
            prop_assert!(exported.body.is_empty() == (*format == Format::Markdown && exported.body.is_empty()));
            if *format == Format::Html {
                prop_assert_eq!(active_content(&exported.body), Vec::<String>::new());
            }
        }
    }
}

/// Notebooks in which few bytes stand for many.
fn amplifiers() -> Vec<(&'static str, Notebook)> {
    let markdown = |source: String, attachments: Value| {
        notebook_of(
            json!([{"cell_type": "markdown", "id": "m", "metadata": {}, "source": source, "attachments": attachments}]),
        )
    };
    let output = |mime: &str, data: Value| notebook_of(json!([code(display(json!({mime: data})))]));
    let stream =
        |text: String| notebook_of(json!([code(json!([{"output_type": "stream", "name": "stdout", "text": text}]))]));
    let picture = json!({"p": {"image/png": "A".repeat(100_000)}});
    let defined = format!("[a]: http://x \"$z_{{{}}}$\"\n\n{}", "y".repeat(3000), "[a] ".repeat(20_000));
    vec![
        ("attachment", markdown("![](attachment:p)".repeat(2_000), picture.clone())),
        ("attachment in HTML", markdown("<img src='attachment:p'>".repeat(2_000), picture)),
        ("pictures that are not loaded", markdown("![](http://x)".repeat(40_000), json!({}))),
        ("pictures in an output", output("text/html", json!("<img src=x>".repeat(40_000)))),
        ("formulas", markdown("$x$ ".repeat(80_000), json!({}))),
        ("formulas in an output", output("text/latex", json!("$x$ ".repeat(80_000)))),
        ("formula in a definition", markdown(defined, json!({}))),
        (
            "forged formulas",
            markdown(format!("${}$\n\n{}", "z".repeat(9000), "&#xE000;0&#xE001; ".repeat(5_000)), json!({})),
        ),
        (
            "forged formulas in headings",
            markdown(format!("${}$\n\n{}", "z".repeat(9000), "# &#xE000;0&#xE001;\n".repeat(5_000)), json!({})),
        ),
        (
            "unclosed elements",
            output(
                "text/html",
                json!(format!("<p>{}{}", (0..250).map(|n| format!("<b a={n}>")).collect::<String>(), "<p>x".repeat(50_000))),
            ),
        ),
        ("definition", markdown(format!("[a]: http://x/{}\n\n{}", "y".repeat(20_000), "[a] ".repeat(2_000)), json!({}))),
        (
            "columns",
            markdown(format!("{}|\n{}|\n{}", "|a".repeat(1000), "|-".repeat(1000), "|b\n".repeat(5_000)), json!({})),
        ),
        (
            "frames",
            notebook_of(json!((0..4000).map(|_| code(display(json!({"text/html": "<style>"})))).collect::<Vec<_>>())),
        ),
        ("JSON", output("application/json", json!(vec![0; 100_000]))),
        ("tables", output("text/html", json!("<table>".to_owned() + &"x<p>".repeat(10_000)))),
        ("attributes", output("text/html", json!(format!("<a {}>x</a>", "a='1>' ".repeat(20_000))))),
        (
            "attributes in markdown",
            markdown(format!("<a {}>x</a>", (0..10_000).map(|n| format!("a{n} ")).collect::<String>()), json!({})),
        ),
        ("far columns", stream("\u{1b}[8000Gx\n".repeat(20_000))),
        ("colours", stream("\u{1b}[31mx\u{1b}[32my".repeat(10_000))),
    ]
}

/// A page may be longer than its notebook by this factor, and by this many bytes.
const MOST_FACTOR: usize = 16;
const MOST_BYTES: usize = 3 << 20;

#[test]
fn length_of_exports_is_bounded_by_their_notebook() {
    for (name, notebook) in amplifiers() {
        let source = notebook.print().len();
        for format in FORMATS {
            for inline_files in [false, *format == Format::Markdown] {
                let options = ExportOptions { inline_files, ..ExportOptions::default() };
                let exported = export(&notebook, *format, &options);
                let length = exported.body.len() + exported.files.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
                assert!(length <= MOST_FACTOR * source + MOST_BYTES, "{name}, {format:?}: {length} bytes from {source}");
            }
        }
    }
}

#[test]
fn repeated_attachments_are_shown() {
    let cells = json!([{"cell_type": "markdown", "id": "m", "metadata": {}, "source": "![](attachment:p)".repeat(3),
        "attachments": {"p": {"image/png": "AAAA"}}}]);
    assert_eq!(page(cells).matches("src=\"data:image/png;base64,AAAA\"").count(), 3);
}
