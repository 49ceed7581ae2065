//! Interrupts at any moment of an execution: it ends as interrupted or normally, and the kernel keeps its state.

use std::time::{Duration, Instant};

use cellkeep::notebook::Notebook;
use cellkeep::runner::{Progress, RunOptions, run_notebook};
use cellkeep::session::ExecutionStatus;

use serde_json::{Value, json};

use crate::support::{Execution, TestSandbox, TestSession, cell};

in_every_sandbox!(
    interrupt_at_any_moment_keeps_kernel,
    every_kind_of_code_is_interrupted,
    interrupt_between_executions_is_ignored,
    output_limit_keeps_the_kernel
);

/// A number that differs between test runs; failures print it.
fn random_below(limit: u128) -> u64 {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    u64::try_from(nanos / 1000 * 2_654_435_761 % limit).unwrap()
}

/// Executes code and interrupts it after `wait`.
async fn interrupted_after(living: &TestSession, code: &str, wait: Duration) -> (Execution, Duration) {
    let handle = living.session.handle.clone();
    let begun = Instant::now();
    let interrupting = async {
        tokio::time::sleep(wait).await;
        handle.interrupt().await.unwrap();
    };
    let (ran, ()) = tokio::join!(living.run_with(cell(code, None)), interrupting);
    assert!(!ran.result.kernel_gone, "the kernel was lost: {wait:?}, {}", ran.error());
    (ran, begun.elapsed())
}

async fn interrupt_at_any_moment_keeps_kernel(place: TestSandbox) {
    let living = place.session("python").await;
    living.ok("kept = 0").await;
    let (mut done, mut interrupted) = (0, 0);
    for round in 0..50 {
        // Ends before, during or after the interrupt.
        let code = ["kept += 1", "kept += 1\nimport time; time.sleep(0.01)", "kept += 1\nwhile True: pass"][round % 3];
        let wait = Duration::from_micros(random_below(30_000));
        let (ran, took) = interrupted_after(&living, code, wait).await;
        match ran.status() {
            ExecutionStatus::Ok => done += 1,
            ExecutionStatus::Interrupted => {
                assert!(
                    took < Duration::from_millis(1900),
                    "round {round}: only the second interrupt had an effect: {wait:?}, {took:?}"
                );
                interrupted += 1;
            }
            other => panic!("round {round}: {other:?} after {wait:?}: {}", ran.text()),
        }
        let begun = Instant::now();
        let kept: u32 = living.ok("print(kept)").await.trim().parse().expect("the state is kept");
        assert!(
            kept <= round as u32 + 1 && begun.elapsed() < Duration::from_secs(2),
            "round {round}: {kept}, {:?}",
            begun.elapsed()
        );
    }
    assert!(interrupted >= 16, "{done} done, {interrupted} interrupted");
    living.end().await;
}

async fn every_kind_of_code_is_interrupted(place: TestSandbox) {
    let living = place.session("python").await;
    // IPython imports its magics on first use; an import that is interrupted stays broken, as for any module.
    living.ok("kept = 'kept'\nimport asyncio, subprocess, threading, time\n%time pass").await;
    for code in [
        "time.sleep(600)",
        "while True: print('x' * 100); time.sleep(0.0001)",
        "await asyncio.sleep(600)",
        "await asyncio.sleep(0)\nwhile True: pass",
        "for i in range(10 ** 9): await asyncio.sleep(0)",
        "await asyncio.gather(*(asyncio.sleep(600) for _ in range(10)))",
        "exec('while True: pass')",
        "get_ipython().run_cell('while True: pass')",
        "%time time.sleep(600)",
        "threading.Thread(target=time.sleep, args=(3,)).start()\ntime.sleep(600)",
        "subprocess.run(['sleep', '600'])",
        "class Slow:\n    def __repr__(self): time.sleep(600)\nSlow()",
        "get_ipython().events.register('post_execute', f := lambda: (get_ipython().events.unregister('post_execute', f), time.sleep(600)))",
    ] {
        // Twice: the first interrupt must not affect the second.
        for wait in [0, 300] {
            let (ran, took) = interrupted_after(&living, code, Duration::from_millis(wait)).await;
            assert_eq!(ran.status(), ExecutionStatus::Interrupted, "{code}: {}", ran.text());
            assert!(!ran.text().contains("cellkeep_interrupts"), "{}", ran.text());
            // One in hundreds arrives between CPython's last check for signals and a blocking system call; only the second
            // interrupt wakes that.
            assert!(took < Duration::from_millis(3900), "{code}: {took:?}");
            assert_eq!(living.ok("print(kept)").await.trim(), "kept", "{code}");
        }
    }
    // Code may catch an interrupt; the next one is raised again.
    let code = "caught = 0\nwhile caught < 1:\n    try: time.sleep(600)\n    except KeyboardInterrupt: caught += 1\nprint('went on')";
    let (ran, _) = interrupted_after(&living, code, Duration::from_millis(300)).await;
    assert_eq!(ran.status(), ExecutionStatus::Interrupted);
    assert_eq!(living.ok("print(caught)").await.trim(), "1");
    living.end().await;
}

async fn interrupt_between_executions_is_ignored(place: TestSandbox) {
    let living = place.session("python").await;
    living.ok("kept = 'kept'").await;
    for _ in 0..10 {
        // Sent from inside, where the agent cannot defer it; between two requests nothing must receive it.
        living
            .ok("import os, signal, threading\nthreading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()")
            .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(living.ok("print(kept)").await.trim(), "kept");
        // A handler that a cell installs is removed at its end.
        living.ok("signal.signal(signal.SIGINT, signal.default_int_handler)\nthreading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(living.ok("print(kept)").await.trim(), "kept");
    }
    living.end().await;
}

async fn output_limit_keeps_the_kernel(place: TestSandbox) {
    let limits = cellkeep::policy::Limits { output_mb: 1, ..Default::default() };
    let living = place.session_with("python", limits).await;
    for _ in 0..5 {
        // The code has ended by the time it is stopped.
        let ran = living.run("kept = 'kept'\nprint('x' * 2_000_000)").await;
        assert_eq!(ran.status(), ExecutionStatus::OutputExceeded, "{}", ran.error());
        assert!(!ran.result.kernel_gone);
        assert_eq!(living.ok("print(kept)").await.trim(), "kept");
    }
    living.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupt_between_two_cells_stops_notebook() {
    let cells: Vec<Value> = ["'one'", "import time; time.sleep(60)", "'three'"]
        .iter()
        .enumerate()
        .map(|(id, source)| json!({"cell_type": "code", "id": format!("c{id}"), "metadata": {}, "execution_count": null, "outputs": [], "source": source}))
        .collect();
    let json = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}).to_string();
    // At the end of the first cell, and when the second is announced but not yet queued.
    for announced in [false, true] {
        let living = TestSandbox::process().session("python").await;
        let mut events = living.events.lock().await;
        let mut notebook = Notebook::parse(json.as_bytes()).unwrap();
        let options = RunOptions::default();
        let mut progress = |progress: Progress<'_>| {
            let now = match progress {
                Progress::CellStarted { index, .. } => announced && index == 1,
                Progress::CellFinished { index, .. } => !announced && index == 0,
                _ => false,
            };
            if now {
                options.interrupt.request();
                let handle = living.session.handle.clone();
                tokio::spawn(async move { handle.interrupt().await.unwrap() });
            }
        };
        let begun = Instant::now();
        let report =
            run_notebook(&living.session.handle, &mut events, &mut notebook, &options, &mut progress).await.unwrap();
        assert_eq!((report.status(), report.cells.len()), (ExecutionStatus::Interrupted, 1 + usize::from(announced)));
        assert_eq!(report.interrupted, !announced);
        assert!(begun.elapsed() < Duration::from_secs(10));
        drop(events);
        living.end().await;
    }
}
