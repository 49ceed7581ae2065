//! Large outputs are complete; outputs over the limit are stopped.

use std::time::Duration;

use cellkeep::policy::Limits;
use cellkeep::session::{EventBody, ExecutionStatus};

use crate::support::{TestSandbox, TestSession, cell};

in_every_sandbox!(
    sixty_thousand_lines_are_complete,
    slow_reader_and_kernel_lose_nothing,
    fifty_megabytes_are_complete,
    short_lines_count_by_their_text,
    repeated_floods_stay_within_memory,
    endless_output_is_stopped_at_limit,
    single_output_over_limit_is_stopped,
);

const LINES: &str = "for i in range(60000): print(f'{i:06d} ' + 'x' * 1016, flush=True)";

fn assert_all_lines(text: &str, count: usize) {
    let mut expected = 0;
    for line in text.lines() {
        assert_eq!(line.get(..6), Some(format!("{expected:06}").as_str()), "line {expected}");
        assert_eq!(line.len(), 1023);
        expected += 1;
    }
    assert_eq!(expected, count);
}

async fn sixty_thousand_lines_are_complete(place: TestSandbox) {
    let living = place.session("python").await;
    assert_all_lines(&living.ok(LINES).await, 60_000);
    living.end().await;
}

async fn slow_reader_and_kernel_lose_nothing(place: TestSandbox) {
    let living = place.session_with("python", Limits { cpus: 0.3, ..Limits::default() }).await;
    let code = LINES.replace("60000", "20000");
    let mut events = living.events.lock().await;
    living.session.handle.add_cell(cell(&code, None)).await.unwrap();
    let mut text = String::new();
    while let Some(event) = events.recv().await {
        match event.body {
            EventBody::Message { message, .. } => {
                text.push_str(message.content_value()["text"].as_str().unwrap());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            EventBody::Finished(result) => {
                assert_eq!(result.status, ExecutionStatus::Ok);
                break;
            }
            _ => {}
        }
    }
    assert_all_lines(&text, 20_000);
    drop(events);
    living.end().await;
}

async fn fifty_megabytes_are_complete(place: TestSandbox) {
    let living = place.session("python").await;
    let ran = living.run("print('y' * 50_000_000)\nfrom IPython.display import display\ndisplay({'text/plain': 'z' * 20_000_000}, raw=True)").await;
    assert_eq!(ran.status(), ExecutionStatus::Ok, "{}", ran.error());
    assert_eq!(ran.outputs[0]["text"].as_str().unwrap().len(), 50_000_001);
    assert_eq!(ran.outputs[1]["data"]["text/plain"].as_str().unwrap().len(), 20_000_000);
    living.assert_works().await;
    living.end().await;
}

/// The limit counts the printed text: the messages that carry it are five times as large.
async fn short_lines_count_by_their_text(place: TestSandbox) {
    let living = place.session_with("python", Limits { output_mb: 1, ..Limits::default() }).await;
    let text = living.ok("for i in range(6000): print(i, flush=True)").await;
    assert!(text.lines().eq((0..6000).map(|line| line.to_string())), "{} bytes", text.len());
    living.end().await;
}

/// The kernel retains no printed output, and its send queue stays small.
async fn repeated_floods_stay_within_memory(place: TestSandbox) {
    let living = place.session_with("python", Limits { memory_mb: 256, ..Limits::default() }).await;
    for round in 0..3 {
        let ran = living.run("for _ in range(50): print('y' * (1 << 20))").await;
        assert_eq!(ran.status(), ExecutionStatus::Ok, "round {round}: {}", ran.error());
        assert_eq!(ran.text().len(), 50 * ((1 << 20) + 1));
    }
    living.assert_works().await;
    living.end().await;
}

async fn endless_output_is_stopped_at_limit(place: TestSandbox) {
    let living = place.session_with("python", Limits { output_mb: 2, ..Limits::default() }).await;
    let ran = living.run("while True: print('z' * 1000)").await;
    assert_eq!(ran.status(), ExecutionStatus::OutputExceeded, "{}", ran.error());
    let kept = ran.text().len();
    assert!((1 << 20..3 << 20).contains(&kept), "{kept} bytes were kept");
    assert!(ran.error().contains("2 MB"), "{}", ran.error());
    living.assert_works().await;
    let ran = living.run("import os\nwhile True: os.write(1, b'y' * 1000)").await;
    assert_eq!(ran.status(), ExecutionStatus::OutputExceeded, "{}", ran.error());
    living.assert_works().await;
    living.end().await;
}

async fn single_output_over_limit_is_stopped(place: TestSandbox) {
    let living = place.session_with("python", Limits { output_mb: 2, ..Limits::default() }).await;
    let ran = living
        .run("from IPython.display import display\nprint('before')\ndisplay({'text/plain': 'z' * 5_000_000}, raw=True)")
        .await;
    assert_eq!(ran.status(), ExecutionStatus::OutputExceeded, "{}", ran.error());
    assert!(ran.text().contains("before"));
    living.assert_works().await;
    living.end().await;
}

/// Anonymous memory of the agent's process, bytes; `None` without permission (not root).
fn agent_memory(living: &TestSession) -> Option<u64> {
    let pid = living.session.record.agent?.pid;
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_releases_memory_after_flood() {
    let living = TestSandbox::process().session("python").await;
    let mut seen = Vec::new();
    let big = "print('y' * 50_000_000)";
    let flood = &LINES.replace("60000", "10000");
    for code in [flood, big, big, flood] {
        // Events are received late, so that the agent's buffer fills, and are dropped, since processing takes long.
        let mut events = living.events.lock().await;
        living.session.handle.add_cell(cell(code, None)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        while !matches!(events.recv().await.unwrap().body, EventBody::Finished(_)) {}
        drop(events);
        // zeromq releases the memory into which it reads once further messages have arrived.
        for _ in 0..3 {
            living.ok("1").await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        living.session.handle.usage().await.unwrap();
        let Some(memory) = agent_memory(&living) else { return living.end().await };
        seen.push(memory >> 10);
    }
    assert!(seen.iter().all(|kilobytes| *kilobytes < 1024), "{seen:?} KB");
    living.end().await;
}
