//! Much output, whole; too much output, stopped.

use std::time::Duration;

use cellkeep::policy::Limits;
use cellkeep::session::{RunEvent, RunRequest, RunStatus};

use crate::support::Place;

in_every_sandbox!(sixty_thousand_lines, slow_reader_and_slow_kernel, fifty_megabytes, endless_output, one_output_too_large);

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

async fn sixty_thousand_lines(place: Place) {
    let living = place.session("python").await;
    assert_all_lines(&living.ok(LINES).await, 60_000);
    living.end().await;
}

async fn slow_reader_and_slow_kernel(place: Place) {
    let living = place.session_with("python", Limits { cpus: 0.3, ..Limits::default() }).await;
    let code = LINES.replace("60000", "20000");
    let mut events = living.session.handle.run(RunRequest { code, ..RunRequest::default() }).unwrap();
    let mut text = String::new();
    while let Some(event) = events.recv().await {
        match event {
            RunEvent::Output { message, .. } => {
                text.push_str(message.content_value()["text"].as_str().unwrap());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            RunEvent::Finished(result) => assert_eq!(result.status, RunStatus::Ok),
            _ => {}
        }
    }
    assert_all_lines(&text, 20_000);
    living.end().await;
}

async fn fifty_megabytes(place: Place) {
    let living = place.session("python").await;
    let ran = living.run("print('y' * 50_000_000)\nfrom IPython.display import display\ndisplay({'text/plain': 'z' * 20_000_000}, raw=True)").await;
    assert_eq!(ran.status(), RunStatus::Ok, "{}", ran.error());
    assert_eq!(ran.outputs[0]["text"].as_str().unwrap().len(), 50_000_001);
    assert_eq!(ran.outputs[1]["data"]["text/plain"].as_str().unwrap().len(), 20_000_000);
    living.still_works().await;
    living.end().await;
}

async fn endless_output(place: Place) {
    let living = place.session_with("python", Limits { output_mb: 2, ..Limits::default() }).await;
    let ran = living.run("while True: print('z' * 1000)").await;
    assert_eq!(ran.status(), RunStatus::OutputExceeded, "{}", ran.error());
    let kept = ran.text().len();
    assert!((1 << 20..3 << 20).contains(&kept), "{kept} bytes were kept");
    assert!(ran.error().contains("2 MB"), "{}", ran.error());
    living.still_works().await;
    let ran = living.run("import os\nwhile True: os.write(1, b'y' * 1000)").await;
    assert_eq!(ran.status(), RunStatus::OutputExceeded, "{}", ran.error());
    living.still_works().await;
    living.end().await;
}

async fn one_output_too_large(place: Place) {
    let living = place.session_with("python", Limits { output_mb: 2, ..Limits::default() }).await;
    let ran = living
        .run("from IPython.display import display\nprint('before')\ndisplay({'text/plain': 'z' * 5_000_000}, raw=True)")
        .await;
    assert_eq!(ran.status(), RunStatus::OutputExceeded, "{}", ran.error());
    assert!(ran.text().contains("before"));
    living.still_works().await;
    living.end().await;
}
