//! Frames of outputs, with scripts that want out of them, and many at once.

use serde_json::{Value, json};

use crate::support::mounted::Mounted;

async fn start(name: &str) -> Option<Mounted> {
    let mut page = Mounted::start(name, "bash", json!({})).await?;
    page.mount(&[]).await;
    Some(page)
}

/// Puts a cell of a notebook with these HTML outputs into the page.
async fn show(page: &mut Mounted, outputs: &[String], attributes: &str) {
    let outputs: Vec<_> = outputs
        .iter()
        .map(|html| json!({"output_type": "display_data", "metadata": {}, "data": {"text/html": html}}))
        .collect();
    let content = json!({"cell_type": "code", "source": "", "outputs": outputs});
    page.browser
        .evaluate(&format!(
            "document.body.replaceChildren(Object.assign(document.createElement('cellkeep-cell'), {{id: 'shown', content: {content}}})); shown.{attributes}; 0"
        ))
        .await;
}

async fn in_frames(page: &mut Mounted, expression: &str, value: Value) {
    let begun = std::time::Instant::now();
    loop {
        let seen = page.browser.evaluate_in_frames(expression).await;
        if seen.contains(&value) {
            return;
        }
        assert!(begun.elapsed().as_secs() < 60, "{expression} is nowhere {value}: {seen:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// Ways to a document without our hand in it. Each tells what it finds of `RTCPeerConnection` there.
const WAYS: &str = r#"<div id=place></div>
<iframe SrcDoc="<script>parent.postMessage(['initial', typeof RTCPeerConnection], '*')</script>"></iframe>
<script>
window.told = {}; window.threw = {};
addEventListener("message", ({data}) => { if (Array.isArray(data)) told[data[0]] = data[1] });
const page = way => `<script>parent.postMessage(['${way}', typeof RTCPeerConnection], '*')<\/script>`;
const quoted = way => page(way).replaceAll('"', '&quot;').replaceAll('<', '&lt;');
// Not spelled out, or it would be our name for it already.
const name = "src" + "doc", tag = "if" + "rame";
const make = () => place.appendChild(document.createElement(tag));
const native = Element.prototype.setAttribute;
const ways = {
  property: way => make()[name] = page(way),
  attribute: way => make().setAttribute(name.toUpperCase(), page(way)),
  native: way => native.call(make(), name, page(way)),
  namespaced: way => make().setAttributeNS(null, name, page(way)),
  node: way => { const node = document.createAttribute(name); node.value = page(way); make().setAttributeNode(node) },
  named: way => { const node = document.createAttribute(name); node.value = page(way); make().attributes.setNamedItem(node) },
  changed: way => { const frame = make(), node = document.createAttribute(name); frame.setAttributeNode(node); node.value = page(way) },
  inner: way => { const box = document.createElement("div"); place.append(box); box.innerHTML = `<${tag} ${name}="${quoted(way)}"></${tag}>` },
  outer: way => { const box = document.createElement("div"); place.append(box); box.outerHTML = `<${tag} SRCdo${"c"}="${quoted(way)}"></${tag}>` },
  adjacent: way => place.insertAdjacentHTML("beforeend", `<${tag} ${name}="${quoted(way)}"></${tag}>`),
  unsafe: way => { const box = document.createElement("div"); place.append(box); box.setHTMLUnsafe(`<${tag} ${name}="${quoted(way)}"></${tag}>`) },
  fragment: way => place.append(document.createRange().createContextualFragment(`<${tag} ${name}="${quoted(way)}"></${tag}>`)),
  parsed: way => place.append(document.adoptNode(new DOMParser().parseFromString(`<${tag} ${name}="${quoted(way)}"></${tag}>`, "text/html").body.firstChild)),
  unsafely: way => place.append(document.adoptNode(Document.parseHTMLUnsafe(`<${tag} ${name}="${quoted(way)}"></${tag}>`).body.firstChild)),
  xml: way => place.append(document.adoptNode(new DOMParser().parseFromString(`<${tag} xmlns="http://www.w3.org/1999/xhtml" ${name}="${quoted(way)}"/>`, "text/xml").documentElement)),
  entity: way => place.append(document.adoptNode(new DOMParser().parseFromString(`<!DOCTYPE x [<!ENTITY e "<i:ifr&#97;me xmlns:i='http://www.w3.org/1999/xhtml' srcd&#111;c='${quoted(quoted(way))}'/>">]><x>&e;</x>`, "text/xml").documentElement.firstChild)),
  inert: way => { const other = document.implementation.createHTMLDocument(), frame = other.createElement(tag); native.call(frame, name, page(way)); place.append(frame) },
  cloned: way => { const template = document.createElement("template"); template.innerHTML = `<${tag} ${name}="${quoted(way)}"></${tag}>`; place.append(template.content.cloneNode(true)) },
  xslt: way => { const sheet = new DOMParser().parseFromString(`<x:stylesheet version="1.0" xmlns:x="http://www.w3.org/1999/XSL/Transform"><x:template match="/"><x:element name="${tag}" namespace="http://www.w3.org/1999/xhtml"><x:attribute name="{concat('src','doc')}">${quoted(way)}</x:attribute></x:element></x:template></x:stylesheet>`, "text/xml");
    const processor = new XSLTProcessor(); processor.importStylesheet(sheet); place.append(processor.transformToFragment(new DOMParser().parseFromString("<a/>", "text/xml"), document)) },
  approved: way => native.call(make(), name, trustedTypes.defaultPolicy.createHTML(page(way))),
  policy: way => native.call(make(), name, trustedTypes.createPolicy("default", {createHTML: text => text}).createHTML(page(way))),
  script: way => { make().src = `javascript:parent.postMessage(['${way}', typeof RTCPeerConnection], '*')` },
  reached: way => told[way] = typeof make().contentWindow.RTCPeerConnection,
  command: way => { const box = document.createElement("div"); box.contentEditable = true; place.append(box); box.focus(); document.execCommand("insertHTML", false, `<${tag} ${name}="${quoted(way)}"></${tag}>`) },
};
for (const [way, go] of Object.entries(ways)) try { go(way) } catch (error) { threw[way] = String(error) }
told.here = typeof RTCPeerConnection;
</script>"#;

/// What is written in pieces takes the place of the document: it is tried by itself.
const WRITTEN: &str = r#"<script>
window.told = {};
addEventListener("message", ({data}) => { if (Array.isArray(data)) told[data[0]] = data[1] });
const page = way => `&lt;script>parent.postMessage(['${way}', typeof RTCPeerConnection], '*')&lt;/script>`;
document.open();
document.write("<p>w</p><ifr"); document.write(`ame srcd`); document.write(`oc="${page("pieces")}"></iframe>`);
document.write(`<if${"rame"} src${"doc"}="${page("written")}"></iframe>`);
document.write("<iframe "); document.writeln(`srcdoc="${page("parts")}"></iframe>`);
addEventListener("message", ({data}) => { if (Array.isArray(data)) told[data[0]] = data[1] });
</script>"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_document_in_a_frame_has_webrtc() {
    let Some(mut page) = start("frames-rtc").await else { return };
    for (html, count) in [(WAYS, 12), (WRITTEN, 1)] {
        show(&mut page, &[html.to_owned()], "id").await;
        // Ordinary ones are frames of ours, and so they work.
        let told = "globalThis.told ? JSON.stringify([told, globalThis.threw ?? null]) : null";
        let shown = format!("Object.keys(globalThis.told ?? {{}}).length >= {count}");
        in_frames(&mut page, &shown, json!(true)).await;
        let expected: &[&str] = if count == 1 {
            &["written"]
        } else {
            &["initial", "property", "attribute", "inner", "outer", "adjacent", "fragment", "parsed", "cloned", "here"]
        };
        for way in expected {
            in_frames(&mut page, &format!("globalThis.told?.{way}"), json!("undefined")).await;
        }
        let told = page.browser.evaluate_in_frames(told).await;
        eprintln!("{told:?}");
        let told = told.iter().find(|told| told.is_string()).unwrap().as_str().unwrap();
        assert!(!told.contains("\"function\""), "{told}");
    }
    // Each way that was refused is complained of, and none of them asked anything of anybody.
    page.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_look_as_their_cell_does() {
    let Some(mut page) = start("frames-theme").await else { return };
    let nested = "<iframe srcdoc='<p>nested</p>'></iframe><script>window.mine = true</script>".to_owned();
    show(&mut page, &[nested], "theme = 'dark'").await;
    let look = "globalThis.mine && document.documentElement.dataset.theme";
    in_frames(&mut page, look, json!("dark")).await;
    page.browser.evaluate("shown.setAttribute('theme', 'light'); 0").await;
    in_frames(&mut page, look, json!("light")).await;
    page.browser.media(&[("prefers-color-scheme", "dark")]).await;
    page.browser.evaluate("shown.removeAttribute('theme'); 0").await;
    in_frames(&mut page, look, json!("dark")).await;
    assert_eq!(page.end().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_frames_a_few_are_alive() {
    let Some(mut page) = start("frames-many").await else { return };
    let plots: Vec<_> = (0..80)
        .map(|at| format!("<div style='height: 320px'>plot {at}</div><script>window.mark ??= Math.random()</script>"))
        .collect();
    show(&mut page, &plots, "id").await;
    let mut most = 0;
    for at in 0..80 {
        page.look("shown", &format!("(outputs[{at}].host.scrollIntoView(), 0)")).await;
        let drawn = format!("outputs[{at}].querySelector('cellkeep-frame')?.dataset.drawn");
        page.until("shown", &drawn, json!("html")).await;
        let alive = "all('cellkeep-frame').filter(frame => frame.renderRoot.querySelector('iframe')).length";
        // Before they are drawn they are low, and many are near the view.
        let alive = page.look("shown", alive).await.as_u64().unwrap();
        most = most.max(if at < 40 { 0 } else { alive });
    }
    assert!((20..=24).contains(&most), "{most} were alive");
    // What was given up keeps its place, and is there again when it is looked at.
    let heights = page.look("shown", "new Set(all('cellkeep-frame').map(frame => frame.offsetHeight)).size").await;
    assert_eq!(heights, 1, "something around them moved");
    let first = "outputs[0].querySelector('cellkeep-frame').dataset.drawn ?? null";
    assert_eq!(page.look("shown", first).await, Value::Null);
    page.look("shown", "(outputs[0].host.scrollIntoView(), 0)").await;
    page.until("shown", first, json!("html")).await;
    assert_eq!(page.end().await, [""; 0]);
}
