//! Kernels that die under a cell: the run ends at once, says how, and keeps what came before.

use cellkeep::policy::Limits;
use cellkeep::session::{EventBody, RunStatus};

use crate::support::{Place, cell};

in_every_sandbox!(every_way_to_die, out_of_memory, child_out_of_memory, restart_keeps_the_workspace, stdin_without_anyone);

async fn every_way_to_die(place: Place) {
    let living = place.session("python").await;
    // The pause is for the kernel's own ZeroMQ thread: what it had not sent when the process ended was never said.
    for (code, how) in [
        ("import os\nos._exit(0)", "exit code 0"),
        ("import os\nos._exit(3)", "exit code 3"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
    ] {
        let ran = living.run(&format!("print('before', flush=True)\nimport time; time.sleep(0.3)\n{code}")).await;
        assert_eq!(ran.status(), RunStatus::KernelDied, "{code}: {}", ran.error());
        assert!(ran.error().contains(how), "{code}: {}", ran.error());
        assert!(ran.text().contains("before"), "{code}: {}", ran.text());
        // It comes back by itself, empty but for the workspace.
        living.still_works().await;
    }
    living.end().await;
}

async fn out_of_memory(place: Place) {
    let living = place.session_with("python", Limits { memory_mb: 256, ..Limits::default() }).await;
    let ran = living.run("print('before', flush=True)\nkept = []\nwhile True: kept.append(bytearray(8 << 20))").await;
    assert_eq!(ran.status(), RunStatus::MemoryExceeded, "{}", ran.error());
    assert!(ran.error().contains("256 MB") && ran.text().contains("before"), "{} {}", ran.error(), ran.text());
    living.still_works().await;
    living.end().await;
}

async fn child_out_of_memory(place: Place) {
    let living = place.session_with("python", Limits { memory_mb: 256, ..Limits::default() }).await;
    let ran = living.run("import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'x = [bytearray(8 << 20) for _ in range(1000)]']).returncode)").await;
    assert_eq!(ran.status(), RunStatus::Ok, "{}", ran.error());
    assert!(ran.text().contains("-9"), "{}", ran.text());
    assert!(ran.notices.iter().any(|notice| notice.contains("memory")), "{:?}", ran.notices);
    living.still_works().await;
    living.end().await;
}

async fn restart_keeps_the_workspace(place: Place) {
    let living = place.session("python").await;
    living.ok("x = 1\nopen('kept', 'w').write('kept')").await;
    living.session.handle.restart().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    living.session.handle.ready().await.unwrap();
    assert_eq!(living.ok("print(open('kept').read(), 'x' in dir())").await.trim(), "kept False");
    living.end().await;
}

async fn stdin_without_anyone(place: Place) {
    let living = place.session("python").await;
    let ran = living.run("input('who? ')").await;
    assert_eq!(ran.status(), RunStatus::Error);
    assert!(ran.error().contains("StdinNotImplemented"), "{}", ran.error());
    // And with somebody who answers.
    let handle = living.session.handle.clone();
    let mut events = living.events.lock().await;
    let mut asking = cell("print('hello', input('who? '))", None);
    asking.options.allow_stdin = true;
    handle.add_cell(asking).await.unwrap();
    let mut text = String::new();
    while let Some(event) = events.recv().await {
        match event.body {
            EventBody::Input { prompt, password } => {
                assert_eq!((prompt.as_str(), password), ("who? ", false));
                handle.input("you").await.unwrap();
            }
            EventBody::Message { message, .. } => {
                text.push_str(message.content_value()["text"].as_str().unwrap_or_default());
            }
            EventBody::Finished(result) => {
                assert_eq!(result.status, RunStatus::Ok);
                break;
            }
            _ => {}
        }
    }
    drop(events);
    assert!(handle.input("nobody asked").await.is_err());
    assert_eq!(text.trim(), "hello you");
    living.end().await;
}
