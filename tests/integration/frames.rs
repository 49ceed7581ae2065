//! Frames of outputs: scripts that try to escape, themes, and many frames at once.

use serde_json::{Value, json};

use crate::embedding::serve;
use crate::support::mounted::Mounted;

async fn start(name: &str) -> Option<Mounted> {
    let mut page = Mounted::start(name, "bash", json!({})).await?;
    page.mount(&[]).await;
    Some(page)
}

/// Adds a notebook cell with these HTML outputs to the page.
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

/// Ways to a document without the guard. Each reports whether it finds `RTCPeerConnection` there. The first ones are for
/// pages that let scripts create the Trusted Types policy.
const WAYS: &str = r#"<div id=place></div>
<iframe SrcDoc="<script>parent.postMessage(['initial', typeof RTCPeerConnection], '*')</script>"></iframe>
<script>
window.told = {}; window.threw = {};
addEventListener("message", ({data}) => { if (Array.isArray(data)) told[data[0]] = data[1] });
const page = way => `<script>parent.postMessage(['${way}', typeof RTCPeerConnection], '*')<\/script>`;
const quoted = way => page(way).replaceAll('"', '&quot;').replaceAll("'", '&apos;').replaceAll('<', '&lt;');
// The name is assembled, since the guard would rename it in the text.
const name = "src" + "doc", tag = "if" + "rame";
const make = () => place.appendChild(document.createElement(tag));
const native = Element.prototype.setAttribute;
const ways = {
  policy: way => native.call(make(), name, trustedTypes.createPolicy("default", {createHTML: text => text, createScript: text => text}).createHTML(page(way))),
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
  entity: way => place.append(document.adoptNode(new DOMParser().parseFromString(`<!DOCTYPE x [<!ENTITY e "<i:ifr&#97;me xmlns:i='http://www.w3.org/1999/xhtml' srcd&#111;c='${quoted(way)}'/>">]><x>&e;</x>`, "text/xml").documentElement.firstChild)),
  inert: way => { const other = document.implementation.createHTMLDocument(), frame = other.createElement(tag); native.call(frame, name, page(way)); place.append(frame) },
  cloned: way => { const template = document.createElement("template"); template.innerHTML = `<${tag} ${name}="${quoted(way)}"></${tag}>`; place.append(template.content.cloneNode(true)) },
  xslt: way => { const sheet = new DOMParser().parseFromString(`<x:stylesheet version="1.0" xmlns:x="http://www.w3.org/1999/XSL/Transform"><x:template match="/"><x:element name="${tag}" namespace="http://www.w3.org/1999/xhtml"><x:attribute name="{concat('src','doc')}">${quoted(way)}</x:attribute></x:element></x:template></x:stylesheet>`, "text/xml");
    const processor = new XSLTProcessor(); processor.importStylesheet(sheet); place.append(processor.transformToFragment(new DOMParser().parseFromString("<a/>", "text/xml"), document)) },
  approved: way => native.call(make(), name, trustedTypes.defaultPolicy.createHTML(page(way))),
  // The sandbox refuses these two.
  script: way => { make().src = `javascript:parent.postMessage(['${way}', typeof RTCPeerConnection], '*')` },
  reached: way => told[way] = typeof make().contentWindow.RTCPeerConnection,
  command: way => { const box = document.createElement("div"); box.contentEditable = true; place.append(box); box.focus(); document.execCommand("insertHTML", false, `<${tag} ${name}="${quoted(way)}"></${tag}>`) },
};
for (const [way, go] of Object.entries(ways)) try { go(way) } catch (error) { threw[way] = String(error) }
window.tried = Object.keys(ways);
window.last = () => make()[name] = page("last");
told.here = typeof RTCPeerConnection;
</script>"#;

/// `document.write` in pieces replaces the document, so it is tried alone.
const WRITTEN: &str = r#"<script>
window.told = {};
try { trustedTypes.createPolicy("default", {createHTML: text => text, createScript: text => text}) } catch {}
addEventListener("message", ({data}) => { if (Array.isArray(data)) told[data[0]] = data[1] });
const page = way => `&lt;script>parent.postMessage(['${way}', typeof RTCPeerConnection], '*')&lt;/script>`;
document.open();
document.write("<p>w</p><ifr"); document.write(`ame srcd`); document.write(`oc="${page("pieces")}"></iframe>`);
document.write(`<if${"rame"} src${"doc"}="${page("written")}"></iframe>`);
document.write("<iframe "); document.writeln(`srcdoc="${page("parts")}"></iframe>`);
addEventListener("message", ({data}) => { if (Array.isArray(data)) told[data[0]] = data[1] });
window.last = () => document.body.appendChild(document.createElement("if" + "rame"))["src" + "doc"] = page("last").replaceAll("&lt;", "<");
</script>"#;

/// The ways that report from an unguarded frame, as from an ordinary page.
const WORK: &[&str] = &["initial", "property", "attribute", "inner", "outer", "adjacent", "fragment", "parsed", "cloned"];
/// Ways that no frame without an origin permits, with or without the guard.
const REFUSED: &[&str] = &["script", "reached"];

/// The reports of all ways, after the last one has arrived.
async fn reports(page: &mut Mounted, work: &[&str]) -> Value {
    for way in work {
        in_frames(page, &format!("globalThis.told?.{way}"), json!("undefined")).await;
    }
    page.browser.evaluate_in_frames("globalThis.last?.(); 0").await;
    in_frames(page, "globalThis.told?.last", json!("undefined")).await;
    let told = page.browser.evaluate_in_frames("globalThis.told ? JSON.stringify(told) : null").await;
    let told = told.iter().find_map(Value::as_str).unwrap();
    serde_json::from_str(told).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guarded_frames_have_no_webrtc() {
    let Some(mut page) = start("frames-rtc").await else { return };
    for (html, work) in [(WAYS, WORK), (WRITTEN, &["written"][..])] {
        show(&mut page, &[html.to_owned()], "id").await;
        let told = reports(&mut page, work).await;
        for (way, found) in told.as_object().unwrap() {
            assert_eq!(found, "undefined", "{way} of {told}");
        }
    }
    // Each refused way is a console error, and none made a request.
    page.end().await;
}

/// Control of the test above: with the same policies but without the guard, each way finds WebRTC.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unguarded_frames_have_webrtc_by_each_way() {
    let Some(mut page) = start("frames-unguarded").await else { return };
    let ours = page.server.client().anonymous().get("/-/frame/inner").await;
    let policy = format!("{}, frame-src {}/-/frame/inner", ours.header("content-security-policy"), page.origin());
    for (html, ways) in [(WAYS, "[...tried, 'initial', 'here']"), (WRITTEN, "['pieces', 'written', 'parts']")] {
        let address = serve(format!("<!doctype html><body>{html}").into_bytes(), &policy).await;
        page.browser.open(&format!("http://{address}/")).await;
        let open = format!("JSON.stringify(globalThis.last ? {ways}.filter(way => told[way] !== 'function') : null)");
        let refused: &[&str] = if html == WAYS { REFUSED } else { &[] };
        page.browser.until("0", &open, |left| *left == json!(refused)).await;
    }
    page.browser.finish().await;
    page.server.end().await;
}

/// Other documents of the server have other policies, so frames must not load them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nested_frame_cannot_load_other_server_documents() {
    let Some(mut page) = start("frames-narrow").await else { return };
    let origin = page.origin();
    let html = format!(
        "<script>document.addEventListener('securitypolicyviolation', ({{effectiveDirective: rule, blockedURI}}) => window.refused = [rule, blockedURI]);
        document.body.append(Object.assign(document.createElement('iframe'), {{src: '{origin}/docs'}}))</script>"
    );
    show(&mut page, &[html], "id").await;
    in_frames(&mut page, "globalThis.refused", json!(["frame-src", origin])).await;
    // The refusal is the only console error.
    page.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_follow_the_theme_of_their_cell() {
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
async fn only_few_of_many_frames_stay_loaded() {
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
        // Before they are drawn they are low, so many are near the view.
        let alive = page.look("shown", alive).await.as_u64().unwrap();
        most = most.max(if at < 40 { 0 } else { alive });
    }
    assert!((20..=24).contains(&most), "{most} were alive");
    // An unloaded frame keeps its height, and is drawn again when it comes into view.
    let heights = page.look("shown", "new Set(all('cellkeep-frame').map(frame => frame.offsetHeight)).size").await;
    assert_eq!(heights, 1, "something around them moved");
    let first = "outputs[0].querySelector('cellkeep-frame').dataset.drawn ?? null";
    assert_eq!(page.look("shown", first).await, Value::Null);
    page.look("shown", "(outputs[0].host.scrollIntoView(), 0)").await;
    page.until("shown", first, json!("html")).await;
    assert_eq!(page.end().await, [""; 0]);
}
