//! The terminal panel of the page in a real browser: a shell that survives reloads and servers, and bytes that mean no good.

use std::time::Duration;

use serde_json::{Value, json};

use crate::elements::{axe_file, check_accessibility};
use crate::opened::Opened;
use crate::server::PACE;
use crate::support::{PATIENCE, skip};

/// What the terminal shows. Text that depends on the layout would slow it down.
const SHOWN: &str = "[...document.querySelectorAll('.xterm-rows > div')].map(row => row.textContent).join('\\n').trim()";

/// Presses a key that types nothing, or the enter key.
async fn press(opened: &mut Opened, key: &str, code: u32, modifiers: u32) {
    let text = if key == "Enter" { "\r" } else { "" };
    for kind in ["keyDown", "keyUp"] {
        let event = json!({
            "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers, "text": if kind == "keyDown" { text } else { "" },
        });
        opened.browser.call("Input.dispatchKeyEvent", event).await;
    }
}

async fn type_line(opened: &mut Opened, line: &str) {
    opened.browser.insert(line).await;
    press(opened, "Enter", 13, 0).await;
}

/// What the terminal shows, once it fits.
async fn until_shown(opened: &mut Opened, fits: impl Fn(&str) -> bool) -> String {
    let mut last = Vec::new();
    let looking = async {
        loop {
            last = opened.browser.evaluate_in_frames(SHOWN).await;
            let shown = last.iter().filter_map(Value::as_str).collect::<String>().replace('\u{a0}', " ");
            if fits(&shown) {
                return shown;
            }
            tokio::time::sleep(PACE).await;
        }
    };
    let shown = tokio::time::timeout(Duration::from_secs(60), looking).await;
    match shown {
        Ok(shown) => shown,
        Err(_) => {
            let status = opened.look(STATUS).await;
            panic!("the terminal shows {last:?}, and says {status}")
        }
    }
}

fn has_line(shown: &str, line: &str) -> bool {
    shown.lines().any(|one| one.trim() == line)
}

/// Opens the panel and waits for the prompt.
async fn open_terminal(opened: &mut Opened) {
    opened.act("[...page.querySelectorAll('.tools button')].find(one => one.textContent === 'Terminal').click()").await;
    until_shown(opened, |shown| shown.contains("bash-")).await;
    opened.until("page.activeElement?.localName", &json!("cellkeep-terminal")).await;
}

async fn open_session(opened: &mut Opened) {
    opened.act("page.querySelector('#create').click()").await;
    opened.until("page.querySelector('.state')?.dataset.state", &json!("idle")).await;
}

const STATUS: &str = "page.querySelector('cellkeep-terminal')?.renderRoot.querySelector('[role=status]').textContent";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shell_survives_reloads_and_servers() {
    let Some(mut opened) = Opened::start("terminal-life").await else { return };
    open_session(&mut opened).await;
    let scripts =
        opened.look("performance.getEntriesByType('resource').filter(one => one.name.includes('terminal')).length").await;
    assert_eq!(scripts, json!(0), "its code is loaded when it is opened");
    open_terminal(&mut opened).await;
    type_line(&mut opened, "word=kept; echo made-$((6*7)) | tee -a lines").await;
    until_shown(&mut opened, |shown| has_line(shown, "made-42")).await;
    // The program knows the size of the panel, and learns of a new one.
    type_line(&mut opened, "clear; stty size").await;
    let sized = |shown: &str| {
        shown.lines().find_map(|line| {
            let (rows, cols) = line.trim().split_once(' ')?;
            Some((rows.parse::<u32>().ok()?, cols.parse::<u32>().ok()?))
        })
    };
    let before = sized(&until_shown(&mut opened, |shown| sized(shown).is_some()).await).unwrap();
    opened.browser.resize(1600, 700).await;
    let larger = async {
        loop {
            type_line(&mut opened, "clear; stty size").await;
            let now = sized(&until_shown(&mut opened, |shown| sized(shown).is_some()).await).unwrap();
            if now.1 > before.1 && now.0 < before.0 {
                return;
            }
            tokio::time::sleep(PACE).await;
        }
    };
    tokio::time::timeout(PATIENCE, larger).await.expect("it has the new size");
    opened.browser.evaluate("location.reload()").await;
    opened.until("page?.querySelector('.state')?.dataset.state", &json!("idle")).await;
    // It opens again by itself.
    opened.until("page.activeElement?.localName", &json!("cellkeep-terminal")).await;
    type_line(&mut opened, "clear; echo $word-after").await;
    until_shown(&mut opened, |shown| has_line(shown, "kept-after")).await;
    // The server dies while a command works and another one is typed.
    type_line(&mut opened, "clear; for i in 1 2 3 4 5 6; do echo tick-$i >> ticks; sleep 0.2; done; wc -l < ticks").await;
    opened.server.listen = opened.server.client().address();
    opened.server.kill().await;
    opened.browser.insert("echo typed >> meanwhile; wc -l < meanwhile; echo $word-again").await;
    press(&mut opened, "Enter", 13, 0).await;
    opened.until(STATUS, &json!("connection lost, trying again")).await;
    opened.server.start_again().await;
    until_shown(&mut opened, |shown| ["6", "1", "kept-again"].iter().all(|line| has_line(shown, line))).await;
    // No other shell was started, and nothing was typed twice.
    let session = opened.look("location.hash.slice(2)").await;
    let path = format!("/v1/sandboxes/{}/processes", session.as_str().unwrap());
    let processes = opened.server.client().get(&path).await.is(200);
    assert_eq!(processes["processes"].as_array().unwrap().len(), 1, "{processes}");
    // The shell ends, and another one begins.
    type_line(&mut opened, "exit 3").await;
    opened.until(STATUS, &json!("The shell has ended with exit code 3.")).await;
    opened.act("page.querySelector('cellkeep-terminal').renderRoot.querySelector('.head button').click()").await;
    until_shown(&mut opened, |shown| shown.contains("bash-") && !shown.contains("kept")).await;
    type_line(&mut opened, "echo new-${word:-none}; cat lines").await;
    until_shown(&mut opened, |shown| has_line(shown, "new-none") && has_line(shown, "made-42")).await;
    // A key leaves it; the tabulator does not.
    press(&mut opened, "Tab", 9, 0).await;
    press(&mut opened, "F6", 117, 0).await;
    opened.until("page.activeElement?.textContent", &json!("✕ Close")).await;
    press(&mut opened, "Escape", 27, 0).await;
    opened
        .until("page.querySelector('cellkeep-terminal') === null && page.activeElement.textContent", &json!("Terminal"))
        .await;
    let complaints = opened.end().await;
    let serious: Vec<_> = complaints.iter().filter(|one| !is_of_dead_server(one)).collect();
    assert_eq!(serious, [""; 0]);
}

/// What the browser says of requests to a server that was killed.
fn is_of_dead_server(complaint: &str) -> bool {
    [
        "ERR_CONNECTION_REFUSED",
        "ERR_CONNECTION_RESET",
        "ERR_INCOMPLETE_CHUNKED",
        "ERR_EMPTY_RESPONSE",
        "WebSocket connection",
    ]
    .iter()
    .any(|error| complaint.contains(error))
}

/// A flood, and sequences with which terminals were attacked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_bytes_do_nothing() {
    let Some(mut opened) = Opened::start("terminal-hostile").await else { return };
    open_session(&mut opened).await;
    open_terminal(&mut opened).await;
    let title = opened.look("document.title").await;
    // The page answers while the terminal is flooded, and the flood can be stopped.
    type_line(&mut opened, "clear; yes flood").await;
    until_shown(&mut opened, |shown| shown.matches("flood").count() > 10).await;
    opened.act("page.querySelector('#composer').value = 'answers'").await;
    opened.until("page.querySelector('#composer').value", &json!("answers")).await;
    press(&mut opened, "c", 67, 2).await;
    type_line(&mut opened, "echo stopped-$?").await;
    until_shown(&mut opened, |shown| has_line(shown, "stopped-130")).await;
    // Sequences that ask for answers, set titles or the clipboard, or hide what a link does.
    let attacks = [
        "\x1bP$q\"p\x1b\\",
        "\x1bP$qevil\n\x1b\\",
        "\x1b]52;c;ZXZpbA==\x07",
        "\x1b]52;c;?\x07",
        "\x1b]0;evil title\x07",
        "\x1b[21t\x1b[20t\x1b[18t\x1b[8;5;5t",
        "\x1b[>q",
        "\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\",
        "\x1b[?1337;evil",
        "x\x1b[999999999b\x1b[2147483647b\x1b[999999999;999999999H",
        "\x1b[H\x1b[2147483647L\x1b[2147483647M\x1b[2147483647S\x1b[2147483647T\x1b[2147483647I\x1b[2147483647Z",
        "\x1b[2147483647@\x1b[2147483647P\x1b[2147483647X\x1b[2147483647 @\x1b[2147483647 A\x1b[2147483647'}\x1b[2147483647'~",
        "\x1b]1337;File=:ZXZpbA==\x07",
        "\x1b_evil\x1b\\\x1b^evil\x1b\\",
    ];
    let script = attacks.concat();
    let session = opened.look("location.hash.slice(2)").await;
    let files = format!("/v1/sandboxes/{}/files", session.as_str().unwrap());
    opened.server.client().put(&format!("{files}/attack"), script).await.is(204);
    // What the terminal would answer is typed: `read` sees it.
    type_line(&mut opened, "stty -echo; cat attack; IFS= read -r -t 1 -n 1000 -d '' typed; stty echo; clear; printf '%s' \"$typed\" > typed; echo typed-$((6*7))").await;
    until_shown(&mut opened, |shown| shown.contains("typed-42")).await;
    let typed = opened.server.client().get(&format!("{files}/typed")).await.text();
    assert_eq!(typed, "", "the terminal answers nothing that it was told");
    assert_eq!(opened.look("document.title").await, title);
    assert_eq!(opened.end().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_output_is_named() {
    let Some(mut opened) = Opened::start("terminal-lost").await else { return };
    open_session(&mut opened).await;
    let session = opened.look("location.hash.slice(2)").await;
    let path = format!("/v1/sandboxes/{}/processes", session.as_str().unwrap());
    // More than is kept, before the panel is opened.
    let client = opened.server.client();
    let fields = json!({"command": ["/bin/bash"], "pty": {"rows": 24, "cols": 80}, "key": "page-terminal-1"});
    let shell = client.post(&path, fields).await.is(201)["id"].as_str().unwrap().to_owned();
    let flood = "head -c 20000000 /dev/zero | tr '\\0' x; echo; echo flooded > done\n";
    client.send(hyper::Method::POST, &format!("{path}/{shell}/input"), flood).await.is(200);
    let done = format!("/v1/sandboxes/{}/files/done", session.as_str().unwrap());
    client.until(&done, |reply| reply.status == 200).await;
    open_terminal(&mut opened).await;
    let notice = "page.querySelector('cellkeep-terminal').renderRoot.querySelector('p')?.textContent";
    opened.until(notice, &json!("The output before this is not kept any more.")).await;
    type_line(&mut opened, "clear; echo on-$((6*7))").await;
    until_shown(&mut opened, |shown| shown.contains("on-42")).await;
    let complaints = opened.end().await;
    assert_eq!(complaints, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminal_fits_themes_and_screens() {
    let Some(mut opened) = Opened::start("terminal-look").await else { return };
    open_session(&mut opened).await;
    open_terminal(&mut opened).await;
    type_line(&mut opened, "clear; for i in 0 1 2 3 4 5 6 7; do printf '\\033[3%dmcolour-%d\\033[0m \\033[9%dmbright\\033[0m\\n' $i $i $i; done; ls -la / | head -8").await;
    until_shown(&mut opened, |shown| shown.contains("colour-7") && shown.contains("total")).await;
    for (width, height, screen) in [(1280, 800, "desktop"), (390, 780, "phone")] {
        opened.browser.resize(width, height).await;
        for theme in ["light", "dark"] {
            opened.act(&format!("document.querySelector('cellkeep-page').setAttribute('theme', '{theme}')")).await;
            let background = if theme == "dark" { "rgb(20, 23, 27)" } else { "rgb(255, 255, 255)" };
            let look = "getComputedStyle(document.documentElement).backgroundColor";
            let themed = async {
                while !opened.browser.evaluate_in_frames(look).await.contains(&json!(background)) {
                    tokio::time::sleep(PACE).await;
                }
            };
            tokio::time::timeout(PATIENCE, themed).await.expect("the terminal follows the theme");
            let overflow = opened.look("document.documentElement.scrollWidth > innerWidth").await;
            assert_eq!(overflow, json!(false), "{theme} {screen}");
            opened.browser.screenshot(&format!("terminal-{screen}-{theme}")).await;
        }
    }
    let Ok(script) = std::fs::read_to_string(axe_file()) else { return skip("axe is not installed; run: make web") };
    opened.act("document.querySelector('cellkeep-page').removeAttribute('theme')").await;
    check_accessibility(&mut opened.browser, &script, "terminal-axe", &[]).await;
    assert_eq!(opened.end().await, [""; 0]);
}
