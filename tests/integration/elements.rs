//! Cells in a browser: tables, editing with completion, previous executions, collapsed cells and phase chips. Also
//! accessibility, in light and dark, at two widths.

use serde_json::{Value, json};

use crate::support::browser::Browser;
use crate::support::mounted::Mounted;
use crate::support::skip;

async fn start(name: &str, cells: &[(&str, &str)]) -> Option<Mounted> {
    let mut page = Mounted::start(name, "python", json!({"memory_mb": 900, "cpus": 2})).await?;
    let ids: Vec<_> = cells.iter().map(|(id, _)| (*id).to_owned()).collect();
    page.mount(&ids).await;
    for (id, source) in cells {
        page.held.begin(id, source).await;
    }
    Some(page)
}

const SMALL: &str = "import pandas as pd\npd.DataFrame({'n': [10, 9, None, -1.5], 's': ['b', 'a', 'ä', 'c']})";
const LARGE: &str = "import numpy as np\nframe = pd.DataFrame(np.arange(300000).reshape(5000, 60))\nwith pd.option_context('display.max_rows', None, 'display.max_columns', None): display(frame)";
const STYLED: &str = "display({'text/html': '<table><thead><tr><th>a</th></tr></thead><tbody>' + '<tr><td><b>x</b><script>window.__pwned=1</script><img src=x onerror=window.__pwned=1></td></tr>' * 20000 + '</tbody></table>'}, raw=True)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_sorted_paged_and_copied() {
    let cells = [("small", SMALL), ("large", LARGE), ("odd", STYLED)];
    let Some(mut page) = start("elements-tables", &cells).await else { return };
    let column = |at: usize| format!("all('tbody tr').map(row => row.cells[{at}].textContent.trim()).join()");
    page.until("small", &column(1), json!("10.0,9.0,NaN,-1.5")).await;
    assert_eq!(
        page.look("small", "all('thead [aria-sort]').map(head => head.ariaSort + head.scope).join()").await,
        "nonecol,nonecol"
    );
    // Numbers sort by value, missing values last in both directions; the third click restores the order.
    for (order, sorted) in
        [("ascending", "-1.5,9.0,10.0,NaN"), ("descending", "10.0,9.0,-1.5,NaN"), ("none", "10.0,9.0,NaN,-1.5")]
    {
        page.look("small", "all('thead button')[0].click()").await;
        assert_eq!(page.look("small", &column(1)).await, sorted);
        assert_eq!(page.look("small", "all('[aria-sort]')[0].ariaSort").await, order);
    }
    page.look("small", "(all('thead button')[1].focus(), all('thead button')[1].click())").await;
    assert_eq!(page.look("small", &column(2)).await, "a,ä,b,c");
    page.look("small", "button('Copy').click()").await;
    let copied = "\tn\ts\n1\t9.0\ta\n2\tNaN\tä\n0\t10.0\tb\n3\t-1.5\tc";
    page.until("small", "window.copied", json!(copied)).await;
    // A long table has pages.
    page.until("large", "all('.pager span')[0]?.textContent", json!("1–50 of 5,000 rows")).await;
    page.look("large", "all('.pager button')[3].click()").await;
    assert_eq!(
        page.look("large", "[all('tbody tr').length, all('.pager span')[0].textContent]").await,
        json!([50, "4,951–5,000 of 5,000 rows"])
    );
    let sorting = "(begun => (all('thead button')[7].click(), all('thead button')[7].click(), performance.now() - begun))(performance.now())";
    let took = page.look("large", sorting).await.as_f64().unwrap();
    assert_eq!(page.look("large", "all('tbody tr')[0].cells[8].textContent").await, "299947");
    eprintln!("two sorts of 5,000 by 60: {took:.0} ms");
    assert!(took < 2000.0, "{took} ms");
    page.look("large", "button('Copy').click()").await;
    page.until("large", "window.copied.split('\\n').length", json!(5001)).await;
    // The rows of a long table are sanitised, too.
    page.until("odd", "all('table, cellkeep-frame').length", json!(1)).await;
    assert_eq!(page.look("odd", "[window.__pwned === undefined, all('script').length]").await, json!([true, 0]));
    assert_eq!(page.end().await, [""; 0]);
}

/// Texts on which backtracking patterns would take quadratic time, as expressions, and how they are shown.
const SLOW: &[(&str, &str, &str)] = &[
    ("text/html", "'< style='.repeat(20000)", ".scroll"),
    ("text/html", "'<p' + ' style=position '.repeat(10000)", ".scroll"),
    ("text/html", "'< on'.repeat(40000) + ' '.repeat(40000)", ".scroll"),
    (
        "text/html",
        "'<table><thead><tr><th>a</th></tr></thead><tbody>' + ('<tr><td>' + '< '.repeat(50000) + '</td></tr>').repeat(3) + '</tbody></table>'",
        ".scroll",
    ),
    ("text/markdown", "'$$a\\n'.repeat(9000)", ".scroll"),
    ("text/markdown", "'$' + '\\\\$'.repeat(19000)", ".scroll"),
    ("text/markdown", "'*a_'.repeat(100000)", ".scroll pre"),
    ("text/markdown", "'*a_'.repeat(13000)", ".scroll"),
    ("text/markdown", "'$'.repeat(40000)", ".scroll"),
    ("text/markdown", "'a\\n\\n'.repeat(13000)", ".scroll"),
    ("text/markdown", "'a\\n$$\\n'.repeat(6000)", ".scroll"),
    ("text/markdown", "'!'.repeat(40000)", ".scroll"),
    ("text/latex", "'\\\\['.repeat(50000)", ".scroll"),
    ("text/latex", "'\\\\begin{'.repeat(8000) + '\\\\end{'.repeat(8000)", ".scroll"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_text_does_not_block_the_page() {
    let Some(mut page) = start("elements-slow", &[]).await else { return };
    for (kind, text, shown) in SLOW {
        let show = format!(
            "{{ const cell = Object.assign(document.createElement('cellkeep-cell'), {{id: 'slow', content: {{cell_type: 'code', source: '', outputs: [{{output_type: 'display_data', metadata: {{}}, data: {{'{kind}': {text}}}}}]}}}});
            window.begun = performance.now(); document.body.replaceChildren(cell) }}"
        );
        page.browser.evaluate(&show).await;
        page.until("slow", &format!("all('{shown}').length"), json!(1)).await;
        let took = page.browser.evaluate("performance.now() - window.begun").await.as_f64().unwrap();
        eprintln!("{took:.0} ms for {kind} {text}");
        assert!(took < 4000.0, "{took} ms for {kind} {text}");
    }
    assert_eq!(page.end().await, [""; 0]);
}

/// Adds a notebook cell with one HTML output to the page.
async fn show_html(page: &mut Mounted, html: &str, fields: &str) {
    let show = format!(
        "document.body.replaceChildren(Object.assign(document.createElement('cellkeep-cell'), {{id: 'shown', {fields} content: {{cell_type: 'code', source: '', outputs: [{{output_type: 'display_data', metadata: {{}}, data: {{'text/html': {}}}}}]}}}}))",
        json!(html)
    );
    // Simulates a recent click of the person.
    page.browser.call("Runtime.evaluate", json!({"expression": show, "userGesture": true})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_person_follows_links_of_frames() {
    let Some(mut page) = start("elements-links", &[]).await else { return };
    page.browser.evaluate("window.open = address => { window.opened = address }; 0").await;
    let html =
        "<a id=out href='https://elsewhere.invalid/?secret'>x</a><script>document.getElementById('out').click()</script>";
    show_html(&mut page, html, "").await;
    let link = "(a => [a?.href, a?.textContent, a?.rel, window.opened ?? null])(all('cellkeep-frame')[0]?.renderRoot.querySelector('.link a'))";
    let address = "https://elsewhere.invalid/?secret";
    page.until("shown", link, json!([address, address, "noopener noreferrer nofollow", null])).await;
    // Frames come from `server`, also for a cell without a session. This one is out of view, so it is not loaded.
    page.browser.evaluate("document.body.style.paddingTop = '5000px'; 0").await;
    show_html(&mut page, html, "server: 'https://other.invalid/',").await;
    page.until("shown", "all('cellkeep-frame')[0]?.server", json!("https://other.invalid")).await;
    assert_eq!(page.end().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reused_cell_id_shows_no_old_outputs() {
    let Some(mut page) = start("elements-reused", &[("a", "print('one')")]).await else { return };
    page.until("a", "[phase, raw]", json!(["ok", "one"])).await;
    page.held.client.delete(&page.held.path("/cells/a")).await;
    page.until("a", "outputs.length", json!(0)).await;
    page.held.begin("a", "print('two')").await;
    page.until("a", "[phase, raw, button('Previous run') === undefined]", json!(["ok", "two", true])).await;
    assert_eq!(page.end().await, [""; 0]);
}

async fn press(page: &mut Mounted, cell: &str, key: &str, with: &str) {
    let event = format!("{{key: '{key}', {with}: true, bubbles: true, cancelable: true}}");
    page.look(cell, &format!("root.querySelector('.cm-content').dispatchEvent(new KeyboardEvent('keydown', {event}))"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edited_cell_shows_its_previous_run() {
    let Some(mut page) = start("elements-edit", &[("a", "some_long_name = 41\nprint('one')"), ("b", "6 * 7")]).await else {
        return;
    };
    page.until("a", "[phase, raw]", json!(["ok", "one"])).await;
    assert_eq!(page.look("a", "button('Previous run') === undefined").await, true);
    let loaded = "performance.getEntriesByType('resource').map(one => one.name).join()";
    let first = page.look("a", loaded).await;
    // The editor has the position of the source.
    let first_character = |place: &str| {
        format!(
            "((text, range) => (range.setStart(text, 0), range.setEnd(text, 1), (at => [at.left, at.top].map(Math.round).join())(range.getBoundingClientRect())))
            (document.createTreeWalker(root.querySelector('{place}'), NodeFilter.SHOW_TEXT, text => text.length ? 1 : 2).nextNode(), document.createRange())"
        )
    };
    let stood = page.look("a", &first_character(".source")).await;
    page.look("a", "root.querySelector('.source').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, cancelable: true}))").await;
    page.until("a", "root.activeElement?.classList.contains('cm-content')", json!(true)).await;
    // It gets the focus before its lines are drawn.
    page.until("a", "root.querySelector('.cm-line').textContent", json!("some_long_name = 41")).await;
    assert_eq!(page.look("a", &first_character(".cm-line")).await, stood, "it moved");
    assert_ne!(page.look("a", loaded).await, first, "the editor was there before it was needed");
    // Escape closes the editor without a change.
    page.browser.insert("# more").await;
    press(&mut page, "a", "Escape", "bubbles").await;
    page.until("a", "root.querySelector('pre.source')?.textContent", json!("some_long_name = 41\nprint('one')")).await;
    // The kernel completes, and Shift+Enter runs.
    page.look("a", "button('Edit').click()").await;
    page.until("a", "root.activeElement?.classList.contains('cm-content')", json!(true)).await;
    press(&mut page, "a", "a", "ctrlKey").await;
    page.browser.insert("é = some_lon").await;
    // The first completion of a kernel may take several seconds.
    let asked = json!({"code": "some_lon", "cursor_pos": 8});
    while page.held.client.post(&page.held.path("/complete"), asked.clone()).await.status == 409 {}
    press(&mut page, "a", "Tab", "bubbles").await;
    page.until("a", "root.querySelector('.cm-tooltip-autocomplete li')?.textContent", json!("some_long_name")).await;
    press(&mut page, "a", "Enter", "bubbles").await;
    page.until("a", "root.querySelector('.cm-content').textContent", json!("é = some_long_name")).await;
    page.browser.insert("\nprint(é)").await;
    press(&mut page, "a", "Enter", "shiftKey").await;
    page.until(
        "a",
        "[phase, raw, root.querySelector('pre.source')?.textContent]",
        json!(["ok", "41", "é = some_long_name\nprint(é)"]),
    )
    .await;
    assert_eq!(page.held.cell("a").await["source"], "é = some_long_name\nprint(é)");
    // The outputs of the previous execution.
    page.until("a", "button('Previous run') !== undefined", json!(true)).await;
    page.look("a", "button('Previous run').click()").await;
    page.until("a", "[...root.querySelectorAll('.earlier cellkeep-output')].map(one => one.renderRoot.querySelector('pre')?.textContent.trim()).join()", json!("one")).await;
    assert_eq!(page.look("a", "button('Previous run').ariaPressed").await, "true");
    assert_eq!(page.end().await, [""; 0]);
}

const PLOT: &str =
    "import matplotlib.pyplot as plt\nprint('some text')\nplt.figure(figsize=(2, 1)); plt.plot([1, 2]); plt.show()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chips_show_phases_and_collapsed_cells_keep_plots() {
    let waits = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)";
    let cells =
        [("plot", PLOT), ("asks", "word = input('שם? ')"), ("runs", waits), ("queued", "1"), ("rtl", "print('שלום abc')")];
    let Some(mut page) = start("elements-chips", &cells).await else { return };
    page.until("plot", "[phase, all('img').length]", json!(["ok", 1])).await;
    page.until(
        "asks",
        "[phase, root.querySelector('[data-phase]').textContent.startsWith('waiting for input')]",
        json!(["input", true]),
    )
    .await;
    page.until("queued", "[phase, root.querySelector('[data-phase]').textContent.trim()]", json!(["queued", "queued"]))
        .await;
    // The question has the focus, since no other element had it.
    page.until("asks", "root.activeElement?.id", json!("answer")).await;
    page.browser.insert("x").await;
    page.look("asks", "root.querySelector('.question').requestSubmit()").await;
    page.until("runs", "phase", json!("running")).await;
    // The timer runs, and the animation respects reduced motion.
    let timer = page.look("runs", "root.querySelector('[data-phase]').textContent").await;
    page.until("runs", &format!("root.querySelector('[data-phase]').textContent !== {timer}"), json!(true)).await;
    page.browser.media(&[("prefers-reduced-motion", "reduce")]).await;
    assert_eq!(page.look("runs", "getComputedStyle(root.querySelector('.chip'), '::before').animationName").await, "none");
    page.held.client.put(&page.held.path("/files/go"), "").await;
    page.until("rtl", "[phase, raw, getComputedStyle(all('pre')[0]).unicodeBidi]", json!(["ok", "שלום abc", "plaintext"]))
        .await;
    // Collapsed: the first line of the source, and the plots.
    page.look("plot", "root.querySelector('.collapse').click()").await;
    let collapsed = "[root.querySelector('pre.source'), root.querySelector('.line')?.textContent, raw, all('img').length, root.querySelector('.collapse').ariaExpanded]";
    page.until("plot", collapsed, json!([null, "import matplotlib.pyplot as plt", "", 1, "false"])).await;
    page.look("plot", "root.querySelector('.collapse').click()").await;
    page.until("plot", "raw", json!("some text")).await;
    assert_eq!(page.end().await, [""; 0]);
}

/// The findings of axe. A page of cells only has neither landmarks nor a heading, so those rules are skipped.
const AXE: &str = "(rules => { window.found = undefined;
    axe.run(document, {iframes: false, rules: Object.fromEntries(rules.map(rule => [rule, {enabled: false}]))})
      .then(({violations}) => window.found = violations.map(({id, nodes}) => `${id}: ${nodes.slice(0, 4).map(node => node.target.join(' ') + ' ' + node.html.slice(0, 120) + ' ' + node.failureSummary).join(' | ')}`), error => window.found = [String(error)]) })(RULES); 0";
const NOT_OF_CELLS: &[&str] = &["region", "landmark-one-main", "page-has-heading-one"];

pub fn axe_file() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("web/node_modules/axe-core/axe.min.js")
}

/// Runs axe on a page in light and dark, wide and narrow. The page must not be wider than the window.
pub async fn check_accessibility(browser: &mut Browser, script: &str, name: &str, without: &[&str]) {
    browser.evaluate(&format!("{script}; 0")).await;
    let mut all = Vec::new();
    for scheme in ["light", "dark"] {
        for (width, height) in [(1280, 900), (390, 800)] {
            browser.media(&[("prefers-color-scheme", scheme)]).await;
            browser.resize(width, height).await;
            browser.evaluate(&AXE.replace("RULES", &json!(without).to_string())).await;
            let found = browser.until("0", "JSON.stringify(window.found ?? null)", |found| !found.is_null()).await;
            all.extend(found.as_array().unwrap().iter().map(|one: &Value| format!("{scheme} {width}: {one}")));
            let wide = browser.evaluate("document.documentElement.scrollWidth - innerWidth").await;
            assert!(wide.as_i64().unwrap() <= 0, "{scheme} {width}: it is {wide} pixels too wide");
            for at in 0..5 {
                browser.evaluate(&format!("(document.querySelector('cellkeep-page')?.renderRoot.querySelector('.cells') ?? document.scrollingElement).scrollTop = {}", at * height * 8 / 10)).await;
                browser.screenshot(&format!("{name}-{scheme}-{width}-{at}")).await;
            }
        }
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_and_cells_are_accessible() {
    let Ok(script) = std::fs::read_to_string(axe_file()) else { return skip("axe is not installed; run: make web") };
    let cells = [
        ("frame", SMALL),
        ("plot", PLOT),
        ("error", "def f():\n    return pd.DataFrame()['x']\nf()"),
        (
            "colours",
            "for code in range(16): print(f'\\x1b[38;5;{code}mcolour {code}\\x1b[0m', end=' ')\nimport sys; print('e', file=sys.stderr)",
        ),
        ("long", "for i in range(1000): print(i)"),
        ("json", "from IPython.display import *\nJSON({'a': [1, {'b': None}]})"),
        ("text", "Markdown('# h\\n\\ntext $x^2$\\n\\n- [l](http://a.invalid)\\n\\n|a|b|\\n|-|-|\\n|1|2|')"),
        ("map", "GeoJSON({'type': 'Point', 'coordinates': [1, 2]})"),
        ("large", LARGE),
        ("asks", "input('name? ')"),
        ("waits", "2"),
    ];
    let Some(mut page) = start("elements-axe", &cells).await else { return };
    page.until("asks", "phase", json!("input")).await;
    page.until("large", "all('.pager').length", json!(1)).await;
    page.look("plot", "button('Edit').click()").await;
    page.until("plot", "root.querySelector('.cm-content') !== null", json!(true)).await;
    page.look("error", "all('details').forEach(one => one.open = true)").await;
    check_accessibility(&mut page.browser, &script, "elements", NOT_OF_CELLS).await;
    // The page itself, with the same session.
    let link = format!("{}/#token={}", page.origin(), crate::server::TOKEN);
    // Only another address in between reloads the page.
    page.browser.open("about:blank").await;
    page.browser.open(&link).await;
    let choose = "document.querySelector('cellkeep-page')?.renderRoot?.querySelector('nav li:not(.here) .open')?.click()";
    let cells =
        "JSON.stringify(document.querySelector('cellkeep-page')?.renderRoot?.querySelectorAll('cellkeep-cell').length ?? 0)";
    page.browser.until(choose, cells, |cells| *cells == json!(11)).await;
    check_accessibility(&mut page.browser, &script, "page", &[]).await;
    assert_eq!(page.end().await, [""; 0]);
}
