//! The page beside cells: conversations, shares, variables, and a lost network.

use hyper::Method;
use serde_json::{Value, json};

use crate::elements::{axe_file, check_accessibility};
use crate::opened::Opened;
use crate::server::Client;
use crate::support::model::{Model, Say};
use crate::support::skip;

/// Types into the composer in one of its modes, and sends with its button.
async fn compose(opened: &mut Opened, kind: &str, text: &str) {
    opened.act(&format!("[...page.querySelectorAll('.kinds input')].find(input => input.value === '{kind}').click()")).await;
    opened.until("page.querySelector('#composer').className", &json!(kind)).await;
    opened
        .act(&format!("page.querySelector('#composer').value = {}; page.querySelector('#run').click()", json!(text)))
        .await;
}

/// Opens one of the side panels.
async fn open_panel(opened: &mut Opened, name: &str) {
    opened
        .act(&format!("[...page.querySelectorAll('.tools button')].find(button => button.textContent === '{name}').click()"))
        .await;
}

fn but_network(complaints: Vec<String>, allowed: &[&str]) -> Vec<String> {
    complaints.into_iter().filter(|text| !allowed.iter().any(|words| text.contains(words))).collect()
}

/// An answer grows as it arrives, continues while no page is open, runs cells, and fails with an explanation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn person_chats_with_model() {
    let plot = "import matplotlib.pyplot as plt\nplt.plot([3, 1, 2])\nplt.show()";
    let model = Model::start([
        Say::Hold("One **moment**. "),
        Say::Run("I draw it.", plot),
        Say::Text("There <img src=x onerror=alert(1)> it is."),
        Say::Refuse(429, "{\"error\": \"quota\"}"),
        Say::Run("I wait.", "import time; time.sleep(600)"),
    ])
    .await;
    let url = model.url();
    let Some(mut opened) = Opened::start_with("talk", &["--model-url", &url, "--model", "tiny"]).await else { return };
    compose(&mut opened, "ask", "Are you there?").await;
    opened.until("[cells.length, cells[1] && text(cells[1])]", &json!([2, "One moment."])).await;
    opened.until("page.querySelector('.answers')?.textContent.includes('tiny answers')", &json!(true)).await;
    // The session is named after the first message.
    opened.until("page.querySelector('.bar strong').textContent", &json!("Are you there?")).await;
    assert_eq!(opened.look("within(cells[1])[0].querySelector('strong').textContent").await, "moment");
    // The page is reloaded during an answer.
    opened.browser.evaluate("location.reload()").await;
    opened.until("[cells.length, cells[1] && text(cells[1])]", &json!([2, "One moment."])).await;
    model.go_on();
    opened.until("[text(cells[1]), page.querySelector('.answers')]", &json!(["One moment. And on.", null])).await;
    compose(&mut opened, "ask", "Draw").await;
    opened.until("within(cells[4])[0]?.querySelector('img')?.naturalWidth > 100", &json!(true)).await;
    opened.until("[cells.length, cells[5] && text(cells[5]).startsWith('There')]", &json!([6, true])).await;
    assert_eq!(opened.look("page.querySelectorAll('.said').length").await, 2);
    compose(&mut opened, "ask", "Again?").await;
    opened.until("page.querySelector('.notice.bad')?.textContent.includes('429: quota')", &json!(true)).await;
    opened.act("page.querySelector('.notice.bad button').click()").await;
    opened.until("page.querySelector('#composer').value", &json!("Again?")).await;
    compose(&mut opened, "ask", "Wait").await;
    opened.until("[phase(cells[9])]", &json!(["running"])).await;
    opened.act("page.querySelector('.answers button').click()").await;
    opened.until("[phase(cells[9]), page.querySelector('.answers')]", &json!(["interrupted", null])).await;
    // The whole conversation is one notebook.
    opened
        .act("window.saved = ''; URL.createObjectURL = blob => { blob.text().then(text => window.saved = text); return 'blob:none' };
              HTMLAnchorElement.prototype.click = () => {};
              const select = page.querySelector('[aria-label=Export]'); select.value = 'ipynb'; select.dispatchEvent(new Event('change'))")
        .await;
    opened.until("window.saved.includes('nbformat_minor')", &json!(true)).await;
    let saved = opened.look("window.saved").await;
    let notebook: Value = serde_json::from_str(saved.as_str().unwrap()).unwrap();
    let roles: Vec<&str> = notebook["cells"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cell| cell["metadata"]["cellkeep"]["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles.iter().filter(|role| **role == "user").count(), 4, "{roles:?}");
    assert_eq!(opened.end().await, [""; 0]);
}

/// The session ends during an answer: an open page shows that by itself, and the text so far stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_shows_turn_ended_by_session() {
    let model = Model::start([Say::Hold("This much ")]).await;
    let url = model.url();
    let Some(mut opened) = Opened::start_with("talk-gone", &["--model-url", &url, "--model", "tiny"]).await else { return };
    compose(&mut opened, "ask", "Tell").await;
    opened.until("[cells.length, cells[1] && text(cells[1])]", &json!([2, "This much"])).await;
    let client = opened.server.client();
    let id = client.session_ids().await.remove(0);
    client.patch(&format!("/v1/sessions/{id}"), json!({"ttl_seconds": 1})).await.is(200);
    opened
        .until("[page.querySelector('.state').dataset.state, page.querySelector('.answers')]", &json!(["gone", null]))
        .await;
    opened.until("page.querySelector('.notice.bad') !== null", &json!(true)).await;
    assert_eq!(opened.look("[cells.length, text(cells[1])]").await, json!([2, "This much"]));
    assert_eq!(opened.end().await, [""; 0]);
}

/// A share that was created on the page shows the session live, offers no changes, and ends when it is revoked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_is_shared_from_the_page() {
    let Some(mut opened) = Opened::start("share-page").await else { return };
    let client = opened.server.client();
    let held = client.create(json!({"kernel": "bash", "name": "mine"})).await;
    client.create(json!({"kernel": "bash", "name": "other"})).await;
    held.ok("echo before").await;
    opened.browser.evaluate(&format!("location.hash = '#/{}'; location.reload()", held.id)).await;
    opened.until("[page?.querySelector('.bar strong')?.textContent, cells.length]", &json!(["mine", 1])).await;
    open_panel(&mut opened, "Share").await;
    let shares = "page.querySelector('cellkeep-shares')?.renderRoot";
    opened.until(&format!("{shares}?.querySelector('#share') != null"), &json!(true)).await;
    let shares = "page.querySelector('cellkeep-shares').renderRoot";
    opened
        .act(&format!("{shares}.querySelector('[name=name]').value = 'Bo'; {shares}.querySelector('#share').click()"))
        .await;
    opened.until(&format!("{shares}.querySelector('#link')?.value.includes('session=')"), &json!(true)).await;
    let link = opened.look(&format!("{shares}.querySelector('#link').value")).await;
    let link = link.as_str().unwrap();
    assert!(link.ends_with(&format!("&session={}", held.id)), "{link}");
    opened.browser.open("about:blank").await;
    opened.browser.open(link).await;
    opened
        .until(
            "[page?.querySelectorAll('nav li').length, cells.length, cells[0] && text(cells[0])]",
            &json!([1, 1, "before"]),
        )
        .await;
    opened.until("location.href.includes('token')", &json!(false)).await;
    let changes = "[page.querySelector('#composer'), page.querySelector('#create'), page.querySelector('.actions'), cells[0].renderRoot.querySelector('.actions')]";
    opened.until(changes, &json!([null, null, null, null])).await;
    opened
        .act("cells[0].renderRoot.querySelector('.source').dispatchEvent(new MouseEvent('dblclick', {bubbles: true}))")
        .await;
    held.ok("echo after").await;
    opened.until("[cells.length, cells[1] && text(cells[1])]", &json!([2, "after"])).await;
    assert_eq!(opened.look("cells[0].renderRoot.querySelector('textarea')").await, Value::Null);
    // The share is revoked: the page says so, and shows nothing new.
    let listed = client.get(&held.path("/shares")).await.is(200);
    let id = listed["shares"][0]["id"].as_str().unwrap();
    client.delete(&held.path(&format!("/shares/{id}"))).await.is(204);
    opened.until("page.querySelector('.notice.bad')?.textContent.includes('revoked or expired')", &json!(true)).await;
    // A new share in the same tab replaces the old one.
    let renewed = client.post(&held.path("/shares"), json!({"days": 1})).await.is(201);
    let renewed = format!("{}{}", opened.origin(), renewed["path"].as_str().unwrap());
    opened.browser.open("about:blank").await;
    opened.browser.open(&renewed).await;
    opened
        .until(
            "[cells.length, cells[1] && text(cells[1]), page?.querySelector('.reader')?.textContent]",
            &json!([2, "after", "read only"]),
        )
        .await;
    opened.browser.evaluate("location.reload()").await;
    opened.until("[cells.length, page?.querySelector('.notice.bad')]", &json!([2, null])).await;
    let complaints = but_network(opened.end().await, &["401"]);
    assert_eq!(complaints, [""; 0]);
}

/// Variables are listed when the panel is open, and again after a cell has changed them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_are_listed_on_the_page() {
    let Some(mut opened) = Opened::start("variables-page").await else { return };
    opened.act("page.querySelector('#create').click()").await;
    opened.until("page.querySelector('.state')?.dataset.state", &json!("idle")).await;
    opened.run("word = '<b>bold</b>'").await;
    open_panel(&mut opened, "Variables").await;
    let listed = "[...page.querySelector('cellkeep-variables')?.renderRoot.querySelectorAll('li') ?? []].map(one => one.textContent.replace(/\\s+/g, ' ').trim())";
    opened.until(listed, &json!(["wordstr'<b>bold</b>'"])).await;
    opened.run("n = 3; del word").await;
    opened.until(listed, &json!(["nint3"])).await;
    assert_eq!(opened.end().await, [""; 0]);
}

/// The network is lost and comes back while a cell runs: the page says so, and shows each line once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_recovers_from_network_loss() {
    let Some(mut opened) = Opened::start("offline").await else { return };
    opened.act("page.querySelector('#create').click()").await;
    opened.until("page.querySelector('.state')?.dataset.state", &json!("idle")).await;
    let cell = opened
        .run("import os, time\nprint('before')\nwhile not os.path.exists('go'): time.sleep(0.02)\nfor n in range(3): print('line', n)")
        .await;
    opened.until(&format!("[phase(cells[{cell}]), text(cells[{cell}])]"), &json!(["running", "before"])).await;
    let network = async |opened: &mut Opened, offline: bool| {
        let conditions = json!({"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
        opened.browser.call("Network.emulateNetworkConditions", conditions).await;
    };
    network(&mut opened, true).await;
    opened.until("page.querySelector('.state').dataset.state", &json!("lost")).await;
    opened.until(&format!("phase(cells[{cell}])"), &json!("lost")).await;
    let client: Client = opened.server.client();
    let id = client.session_ids().await.remove(0);
    client.send(Method::PUT, &format!("/v1/sessions/{id}/files/go"), "").await;
    client.until(&format!("/v1/sessions/{id}/cells"), |reply| reply.json()["cells"][0]["state"] == "finished").await;
    network(&mut opened, false).await;
    opened
        .until(&format!("[phase(cells[{cell}]), text(cells[{cell}])]"), &json!(["ok", "before line 0 line 1 line 2"]))
        .await;
    let complaints = but_network(opened.end().await, &["ERR_INTERNET_DISCONNECTED"]);
    assert_eq!(complaints, [""; 0]);
}

/// Holds back the first response to such a request until `release()`.
fn hold(path: &str) -> String {
    format!(
        "const real = window.fetch; window.release = undefined; window.released = false; window.fetch = (address, ...rest) => {{
           const asked = real(address, ...rest);
           if (window.release || !address.includes('{path}')) return asked;
           return new Promise(go => {{ window.release = () => asked.then(answer => {{ go(answer); setTimeout(() => {{ window.released = true }}, 300) }}) }}) }};"
    )
}

/// Late responses about a session that was left are not shown for the current one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_panel_responses_are_dropped() {
    let Some(mut opened) = Opened::start("panels-late").await else { return };
    let client = opened.server.client();
    for name in ["one", "two"] {
        let held = client.create(json!({"kernel": "bash", "name": name})).await;
        held.ok(&format!("of_{name}=1")).await;
        client.post(&held.path("/shares"), json!({"name": format!("of_{name}")})).await.is(201);
    }
    opened.open().await;
    opened.until("page.querySelectorAll('nav li').length", &json!(2)).await;
    for (panel, element, path, listed) in
        [("Variables", "cellkeep-variables", "/variables", "li .name"), ("Share", "cellkeep-shares", "/shares", "li > span")]
    {
        open_panel(&mut opened, panel).await;
        let here = "page.querySelector('.bar strong').textContent";
        let own = format!(
            "[...page.querySelector('{element}')?.renderRoot.querySelectorAll('{listed}') ?? []].map(one => [...one.childNodes].find(node => node.nodeType === 3 && node.data.trim())?.data.trim() ?? '').filter(name => name.startsWith('of_')).map(name => name === 'of_' + {here})"
        );
        opened.until(&own, &json!([true])).await;
        let left = opened.look(here).await;
        opened
            .act(&format!(
                "{} page.querySelector('{element}').load(); page.querySelector('nav li:not(.here) .open').click()",
                hold(path)
            ))
            .await;
        opened.until(&format!("[{here} !== {left}, {own}]"), &json!([true, [true]])).await;
        opened.act("window.release()").await;
        opened.until("window.released", &json!(true)).await;
        assert_eq!(opened.look(&own).await, json!([true]), "{panel}");
        open_panel(&mut opened, panel).await;
    }
    assert_eq!(opened.end().await, [""; 0]);
}

/// The gallery of a session with many plots loads those that come into view.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gallery_loads_visible_plots() {
    let Some(mut opened) = Opened::start("plots-lazy").await else { return };
    let client = opened.server.client();
    let held = client.create(json!({"kernel": "python"})).await;
    held.ok("from PIL import Image\nfor n in range(60): display(Image.effect_noise((120, 90), 99))").await;
    opened.open().await;
    opened.until("cells.length", &json!(1)).await;
    opened.act("cells[0].collapsed = true").await;
    // Reloaded, so that no image of the cell is cached.
    open_panel(&mut opened, "Plots").await;
    let gallery = "page.querySelector('cellkeep-panel')?.renderRoot";
    opened.until(&format!("{gallery}?.querySelectorAll('figure').length"), &json!(120)).await;
    opened.until(&format!("{gallery}.querySelectorAll('figure img').length > 0"), &json!(true)).await;
    let shown = format!("{gallery}.querySelectorAll('figure img').length");
    let first = opened.look(&shown).await.as_u64().unwrap();
    assert!(first < 60, "{first} are loaded at once");
    let last = format!("{gallery}.querySelector('figure:last-of-type img')?.naturalWidth ?? 0");
    assert_eq!(opened.look(&last).await, 0);
    opened.act(&format!("{gallery}.querySelector('figure:last-of-type').scrollIntoView()")).await;
    opened.until(&last, &json!(120)).await;
    assert_eq!(opened.end().await, [""; 0]);
}

/// A long conversation with all kinds of output passes the accessibility checks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversation_passes_accessibility_checks() {
    let Ok(script) = std::fs::read_to_string(axe_file()) else { return skip("axe is not installed; run: make web") };
    let model = Model::start([
        Say::Run("I load the table and look at its first rows.", "import pandas as pd\ntable = pd.DataFrame({'city': ['Oslo', 'Rome', 'Lima'], 'people': [709037, 2748109, 10092000]})\ntable"),
        Say::Run("Now a bar for each city, by its **people**:", "import plotly.express as px\npx.bar(table, x='city', y='people')"),
        Say::Run("And the mean of a column that is not there, by mistake.", "def mean(frame):\n    return frame['height'].mean()\nmean(table)"),
        Say::Text("Lima is the largest. What I did:\n\n1. made a `DataFrame`\n2. drew *one* plot\n\n| city | people |\n|---|---|\n| Lima | 10.1 million |\n\n> The sum is $\\sum_i p_i = 13.5$ million.\n\n```python\ntable.people.sum()\n```"),
        Say::Text("Yes: run the cell below, it asks you for a name."),
        Say::Refuse(429, "{\"error\": \"quota\"}"),
    ])
    .await;
    let url = model.url();
    let Some(mut opened) = Opened::start_with("talk-axe", &["--model-url", &url, "--model", "tiny-model-7b"]).await else {
        return;
    };
    check_accessibility(&mut opened.browser, &script, "welcome", &[]).await;
    compose(&mut opened, "ask", "Which of Oslo, Rome and Lima has the most people? Show me a plot, please.").await;
    opened.until("[cells.length, page.querySelector('.answers')]", &json!([8, null])).await;
    compose(&mut opened, "ask", "Can I run something by hand as well?").await;
    opened.until("[cells.length, page.querySelector('.answers')]", &json!([10, null])).await;
    compose(&mut opened, "code", "for n in range(400): print('line', n, 'of a long text that is folded')").await;
    opened.until("phase(cells[10])", &json!("ok")).await;
    compose(&mut opened, "markdown", "A **note** of mine, with a [link](https://example.org).").await;
    opened.until("cells.length", &json!(12)).await;
    compose(&mut opened, "ask", "And again?").await;
    opened.until("page.querySelector('.notice.bad') !== null", &json!(true)).await;
    compose(&mut opened, "code", "name = input('Your name? ')").await;
    opened.until("phase(cells.at(-1))", &json!("input")).await;
    check_accessibility(&mut opened.browser, &script, "talk", &[]).await;
    for panel in ["Files", "Plots", "Variables", "Share"] {
        open_panel(&mut opened, panel).await;
        opened.until("page.querySelector('.panel')?.ariaLabel", &json!(panel)).await;
        check_accessibility(&mut opened.browser, &script, &format!("panel-{panel}"), &[]).await;
    }
    opened.end().await;
}
