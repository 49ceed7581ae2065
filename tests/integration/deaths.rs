//! Kernels that die during an execution: it ends at once, reports the cause, and keeps the outputs until then.

use cellkeep::policy::Limits;
use cellkeep::session::{EventBody, ExecutionStatus};

use crate::support::{TestSandbox, cell};

in_every_sandbox!(
    kernel_death_is_reported_and_kernel_restarts,
    kernel_over_memory_limit_is_killed,
    killed_child_process_is_reported,
    restart_keeps_workspace,
    input_fails_unless_stdin_is_allowed
);

async fn kernel_death_is_reported_and_kernel_restarts(place: TestSandbox) {
    let living = place.session("python").await;
    // The pause is for the kernel's ZeroMQ thread: messages that it has not sent when the process ends are lost.
    for (code, cause) in [
        ("import os\nos._exit(0)", "exit code 0"),
        ("import os\nos._exit(3)", "exit code 3"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
    ] {
        let ran = living.run(&format!("print('before', flush=True)\nimport time; time.sleep(0.3)\n{code}")).await;
        assert_eq!(ran.status(), ExecutionStatus::KernelDied, "{code}: {}", ran.error());
        assert!(ran.error().contains(cause), "{code}: {}", ran.error());
        assert!(ran.text().contains("before"), "{code}: {}", ran.text());
        // The kernel restarts by itself.
        living.assert_works().await;
    }
    living.end().await;
}

async fn kernel_over_memory_limit_is_killed(place: TestSandbox) {
    let living = place.session_with("python", Limits { memory_mb: 256, ..Limits::default() }).await;
    let ran = living.run("print('before', flush=True)\nkept = []\nwhile True: kept.append(bytearray(8 << 20))").await;
    assert_eq!(ran.status(), ExecutionStatus::MemoryExceeded, "{}", ran.error());
    assert!(ran.error().contains("256 MB") && ran.text().contains("before"), "{} {}", ran.error(), ran.text());
    living.assert_works().await;
    living.end().await;
}

async fn killed_child_process_is_reported(place: TestSandbox) {
    let living = place.session_with("python", Limits { memory_mb: 256, ..Limits::default() }).await;
    let ran = living.run("import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'x = [bytearray(8 << 20) for _ in range(1000)]']).returncode)").await;
    assert_eq!(ran.status(), ExecutionStatus::Ok, "{}", ran.error());
    assert!(ran.text().contains("-9"), "{}", ran.text());
    assert!(ran.notices.iter().any(|notice| notice.contains("memory")), "{:?}", ran.notices);
    living.assert_works().await;
    living.end().await;
}

async fn restart_keeps_workspace(place: TestSandbox) {
    let living = place.session("python").await;
    living.ok("x = 1\nopen('kept', 'w').write('kept')").await;
    living.session.handle.restart().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    living.session.handle.ready().await.unwrap();
    assert_eq!(living.ok("print(open('kept').read(), 'x' in dir())").await.trim(), "kept False");
    living.end().await;
}

async fn input_fails_unless_stdin_is_allowed(place: TestSandbox) {
    let living = place.session("python").await;
    let ran = living.run("input('who? ')").await;
    assert_eq!(ran.status(), ExecutionStatus::Error);
    assert!(ran.error().contains("StdinNotImplemented"), "{}", ran.error());
    // With stdin allowed, an answer arrives.
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
                assert_eq!(result.status, ExecutionStatus::Ok);
                break;
            }
            _ => {}
        }
    }
    drop(events);
    assert!(handle.input("not requested").await.is_err());
    assert_eq!(text.trim(), "hello you");
    living.end().await;
}
