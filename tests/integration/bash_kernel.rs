//! The bash kernel: one shell for the whole session. Its state persists, or the cell says that it is lost.

use serde_json::{Value, json};

use crate::server::{RemoteSession, Server, printed, text_of};
use crate::support::TestSandbox;

in_every_sandbox!(
    state_of_the_shell_persists,
    end_of_the_shell_is_an_error_that_says_so,
    errors_and_incomplete_code_leave_the_shell_usable,
    input_is_empty_unless_it_is_allowed,
    interrupt_keeps_the_state,
    many_lines_are_complete,
    rich_output_is_shown_in_order,
);

async fn session(place: TestSandbox) -> (Server, RemoteSession) {
    let server = Server::start("bash-kernel", place, &[]).await;
    let session = server.client().create(json!({"kernel": "bash"})).await;
    (server, session)
}

async fn state_of_the_shell_persists(place: TestSandbox) {
    let (_server, session) = session(place).await;
    let begin = "cd /tmp; x=5; export Y=6; f() { echo \"f $x\"; }; shopt -s extglob; alias greet='echo hello'
        trap 'echo trapped' USR1; PS1='prompt> '; PROMPT_COMMAND='echo asked'; exec 7>kept; arr=(a b); sleep 0.2 &";
    assert_eq!(text_of(&session.run(begin).await, "stdout"), "");
    let seen = "pwd; f; echo $Y ${arr[1]} \"$PS1\" \"$PROMPT_COMMAND\"; shopt -q extglob && echo glob; greet
kill -USR1 $$; echo to seven >&7; cat kept; wait; jobs; echo end";
    let expected = "/tmp\nf 5\n6 b prompt>  echo asked\nglob\nhello\ntrapped\nto seven\nend\n";
    assert_eq!(text_of(&session.run(seen).await, "stdout"), expected);
    assert_eq!(session.run("false").await["error"]["evalue"], "1");
    assert_eq!(printed(&session.run("echo $?").await), "1\n");
    assert_eq!(printed(&session.run("cat <<END\r\nhere $x\r\nEND\r\n").await), "here 5\n");
    let traced = session.run("set -x; echo traced").await;
    assert_eq!(
        (text_of(&traced, "stdout"), text_of(&traced, "stderr")),
        ("traced\n".to_owned(), "++ echo traced\n".to_owned())
    );
}

async fn end_of_the_shell_is_an_error_that_says_so(place: TestSandbox) {
    let (_server, session) = session(place).await;
    for (code, how) in [
        ("echo seen; exit 3", "with status 3"),
        ("set -e; echo seen; false; echo never", "with status 1"),
        ("exec echo seen", "with status 0"),
        ("echo seen; kill -9 $$", "by signal 9"),
    ] {
        session.run("x=1").await;
        let cell = session.run(code).await;
        assert_eq!((&cell["status"], text_of(&cell, "stdout").as_str()), (&json!("error"), "seen\n"), "{cell}");
        let error = &cell["error"];
        assert!(error["evalue"].as_str().unwrap().contains(how) && error["state_lost"] == true, "{error}");
        assert_eq!(printed(&session.run("echo \"[$x]\"").await), "[]\n", "a new shell");
    }
}

async fn errors_and_incomplete_code_leave_the_shell_usable(place: TestSandbox) {
    let (_server, session) = session(place).await;
    session.run("x=kept").await;
    for code in [
        "if true; then",
        "echo 'open",
        "echo \"open",
        "echo $(echo",
        "}",
        "case x in",
        "echo ${none:?missing}",
        "local x=1",
        "nonexistent-command",
    ] {
        let cell = session.run(code).await;
        assert_eq!(cell["status"], "error", "{code}: {cell}");
        assert_eq!(cell["error"]["state_lost"], false, "{code}: {cell}");
        assert_eq!(printed(&session.run("echo $x").await), "kept\n", "after {code}");
    }
    assert_eq!(text_of(&session.run("break; continue; echo still").await, "stdout"), "still\n");
}

async fn input_is_empty_unless_it_is_allowed(place: TestSandbox) {
    let (_server, session) = session(place).await;
    assert_eq!(printed(&session.run("read x; echo \"[$x] $?\"; cat; echo end").await), "[] 1\nend\n");
    let mut events = session.events(0).await;
    session.begin("asks", "read x; echo \"got $x\"; read -r y; echo \"and $y\"").await;
    for answer in ["one", "two words"] {
        events.next_of("input.requested").await;
        session.client.post(&session.path("/input"), json!({"value": answer})).await.is(202);
    }
    assert_eq!(printed(&session.finished("asks").await), "got one\nand two words\n");
}

async fn interrupt_keeps_the_state(place: TestSandbox) {
    let (_server, session) = session(place).await;
    session.run("x=kept").await;
    for code in [
        "while true; do :; done",
        "sleep 1000; echo never",
        "cat <(sleep 1000)",
        "seq 1 3 | while read i; do sleep 1000; done",
    ] {
        let fields = json!({"source": code, "timeout_seconds": 1});
        let cell = session.client.post(&session.path("/cells?wait=60"), fields).await.is(201);
        assert_eq!((&cell["status"], &cell["error"]["state_lost"]), (&json!("timeout"), &json!(false)), "{code}: {cell}");
        assert_eq!(printed(&session.run("echo $x").await), "kept\n", "after {code}");
    }
}

async fn many_lines_are_complete(place: TestSandbox) {
    let (_server, session) = session(place).await;
    let cell = session.run("for ((i = 0; i < 50000; i++)); do echo \"line $i\"; done").await;
    let text = printed(&cell);
    assert!(text.lines().enumerate().all(|(number, line)| line == format!("line {number}")));
    assert_eq!(text.lines().count(), 50_000);
}

async fn rich_output_is_shown_in_order(place: TestSandbox) {
    let (_server, session) = session(place).await;
    let cell = session
        .run("echo first; echo '<b>bold</b>' | displayHTML; echo '<svg/>' | display; echo text | display; echo last")
        .await;
    let kinds: Vec<&Value> = cell["outputs"].as_array().unwrap().iter().map(|output| &output["output_type"]).collect();
    assert_eq!(kinds[..3], ["stream", "display_data", "display_data"], "{cell}");
    assert_eq!(cell["outputs"][1]["data"]["text/html"], "<b>bold</b>\n");
    assert!(text_of(&cell, "stderr").contains("not an image"), "{cell}");
}
