//! The link without a session: a manager that dies during an execution, and another that takes over.

use std::sync::Arc;
use std::time::Duration;

use cellkeep::agent_protocol::{Event, KernelEvent, Target};
use cellkeep::config::Paths;
use cellkeep::ids::{Seq, SessionId};
use cellkeep::kernels;
use cellkeep::link::{Link, LinkEvent, LinkEvents, Position};
use cellkeep::manager::Manager;
use cellkeep::policy::{Limits, Network};
use cellkeep::sandbox::{Sandbox, SandboxRecord, SandboxSpec, SandboxState};
use cellkeep::wire::{Channel, Message};
use serde_json::json;

use crate::support::{PATIENCE, TestSandbox};

in_every_sandbox!(
    new_manager_replays_events_of_killed_one,
    newest_manager_replaces_older_one,
    repeated_submission_runs_once,
    buffer_overflow_is_reported_as_gap
);

async fn sandbox(place: TestSandbox, limits: Limits, orphan_seconds: Option<u64>) -> (Arc<dyn Sandbox>, SandboxRecord) {
    let sandbox = Manager::new(Paths::from_environment()).sandbox(place.kind).await.unwrap();
    let session = SessionId::random();
    let spec = SandboxSpec {
        id: session.clone().into(),
        session: Some(session),
        kernel: kernels::find("python").unwrap().clone(),
        limits,
        network: Network::None,
        certificates: None,
        own_certificate: None,
        network_env: Vec::new(),
        env: Vec::new(),
        mounts: Vec::new(),
        package_set: None,
        orphan_seconds,
    };
    let record = sandbox.create(&spec).await.unwrap();
    (sandbox, record)
}

fn execute(id: &str, code: &str) -> Message {
    Message::request(id, "test", "execute_request", &json!({"code": code, "silent": false, "allow_stdin": false}))
}

async fn next(events: &mut LinkEvents) -> LinkEvent {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("the link lives")
}

async fn until_ready(events: &mut LinkEvents) -> Seq {
    loop {
        if let LinkEvent::Event { seq, event: Event::Kernel { event: KernelEvent::Ready { .. }, .. } } = next(events).await {
            return seq;
        }
    }
}

/// Reads events until the reply to `id`, or `at_most` bytes of text. Returns the text, the event numbers, and whether the
/// reply came.
async fn read_run(events: &mut LinkEvents, id: &str, at_most: usize) -> (String, Vec<u64>, bool) {
    let (mut text, mut numbers, mut replied) = (String::new(), Vec::new(), false);
    while !replied && text.len() < at_most {
        if let LinkEvent::Event { seq, event } = next(events).await {
            numbers.push(seq.0);
            if let Event::Message { message, .. } = event {
                match message.header().msg_type.as_str() {
                    "stream" => text.push_str(message.content_value()["text"].as_str().unwrap()),
                    "execute_reply" => replied = message.parent().msg_id == id,
                    _ => {}
                }
            }
        }
    }
    (text, numbers, replied)
}

fn lines(count: usize) -> String {
    (0..count).map(|i| format!("line {i}\n")).collect()
}

async fn new_manager_replays_events_of_killed_one(place: TestSandbox) {
    let (sandbox, record) = sandbox(place, Limits::default(), None).await;
    let (first, mut events) =
        Link::open(sandbox.clone(), record.clone(), Target::Kernel(record.id.as_session().clone()), Position::default());
    until_ready(&mut events).await;
    let code = "import time\nfor i in range(3000):\n    print('line', i, flush=True)\n    if i % 100 == 0: time.sleep(0.02)";
    assert_eq!(first.submit(Channel::Shell, None, execute("run", code)).await, Ok(false));
    let (seen, _, replied) = read_run(&mut events, "run", 2000).await;
    assert!(!replied && lines(3000).starts_with(&seen));
    // Dropped without an acknowledgement, as after kill -9. Meanwhile the execution continues.
    drop((first, events));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (second, mut events) =
        Link::open(sandbox.clone(), record.clone(), Target::Kernel(record.id.as_session().clone()), Position::default());
    let (all, numbers, replied) = read_run(&mut events, "run", usize::MAX).await;
    assert!(replied);
    assert_eq!(all, lines(3000), "every line once, in order");
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "numbered without gaps");
    // A third manager that has committed half of the events receives the other half.
    let LinkEvent::Attached(hello) = ({
        drop((second, events));
        let (_, mut events) =
            Link::open(sandbox.clone(), record.clone(), Target::Kernel(record.id.as_session().clone()), Position::default());
        next(&mut events).await
    }) else {
        panic!("no hello")
    };
    let half = Seq(numbers.len() as u64 / 2);
    let (third, mut events) = Link::open(
        sandbox.clone(),
        record.clone(),
        Target::Kernel(record.id.as_session().clone()),
        Position { epoch: hello.epoch, seq: half },
    );
    next(&mut events).await;
    let LinkEvent::Event { seq, .. } = next(&mut events).await else { panic!("no event") };
    assert_eq!(seq, half.next());
    // Acknowledged events are not replayed.
    third.ack(Seq(numbers.len() as u64));
    // The answer arrives behind the events, which must be received first.
    let draining = async { while events.recv().await.is_some() {} };
    let repeated = tokio::select! {
        repeated = third.submit(Channel::Shell, None, execute("run", code)) => repeated,
        () = draining => panic!("the link ended"),
    };
    assert_eq!(repeated, Ok(true), "a repeated submission does not run");
    drop((third, events));
    let (_fourth, mut events) =
        Link::open(sandbox.clone(), record.clone(), Target::Kernel(record.id.as_session().clone()), Position::default());
    let LinkEvent::Attached(hello) = next(&mut events).await else { panic!("no hello") };
    assert!(hello.first_seq.0 > numbers.len() as u64, "{hello:?}");
    sandbox.destroy(&record).await.unwrap();
}

async fn newest_manager_replaces_older_one(place: TestSandbox) {
    let (sandbox, record) = sandbox(place, Limits::default(), None).await;
    let (first, mut first_events) =
        Link::open(sandbox.clone(), record.clone(), Target::Kernel(record.id.as_session().clone()), Position::default());
    until_ready(&mut first_events).await;
    let (second, mut second_events) =
        Link::open(sandbox.clone(), record.clone(), Target::Kernel(record.id.as_session().clone()), Position::default());
    until_ready(&mut second_events).await;
    loop {
        if let LinkEvent::Detached { .. } = next(&mut first_events).await {
            break;
        }
    }
    drop((first, first_events));
    assert_eq!(second.submit(Channel::Shell, None, execute("run", "print('hi')")).await, Ok(false));
    sandbox.destroy(&record).await.unwrap();
    assert!(matches!(sandbox.inspect(&record).await.unwrap(), SandboxState::Ended { .. }));
    sandbox.destroy(&record).await.expect("destroy is idempotent");
}

async fn repeated_submission_runs_once(place: TestSandbox) {
    let (sandbox, record) = sandbox(place, Limits::default(), None).await;
    let (link, mut events) =
        Link::open(sandbox.clone(), record.clone(), Target::Kernel(record.id.as_session().clone()), Position::default());
    until_ready(&mut events).await;
    assert_eq!(link.submit(Channel::Shell, None, execute("a", "print('once')")).await, Ok(false));
    assert_eq!(link.submit(Channel::Shell, None, execute("a", "print('once')")).await, Ok(true));
    assert_eq!(link.submit(Channel::Shell, None, execute("b", "print('end')")).await, Ok(false));
    let (text, _, _) = read_run(&mut events, "b", usize::MAX).await;
    assert_eq!(text, "once\nend\n");
    sandbox.destroy(&record).await.unwrap();
}

async fn buffer_overflow_is_reported_as_gap(place: TestSandbox) {
    // The buffer holds the output limit and 32 MB more; nothing of several executions is acknowledged.
    let (sandbox, record) = sandbox(place, Limits { output_mb: 20, ..Limits::default() }, None).await;
    let (first, mut events) =
        Link::open(sandbox.clone(), record.clone(), Target::Kernel(record.id.as_session().clone()), Position::default());
    until_ready(&mut events).await;
    for run in 0..5 {
        // Concurrently: the answer may arrive behind more events than the queue holds.
        let name = format!("run-{run}");
        let submitted = first.submit(Channel::Shell, None, execute(&name, "print('x' * 18_000_000)"));
        let (submitted, (_, _, replied)) = tokio::join!(submitted, read_run(&mut events, &name, usize::MAX));
        assert!(submitted.is_ok() && replied);
    }
    drop((first, events));
    let (_second, mut events) =
        Link::open(sandbox.clone(), record.clone(), Target::Kernel(record.id.as_session().clone()), Position::default());
    let LinkEvent::Attached(hello) = next(&mut events).await else { panic!("no hello") };
    assert!(hello.first_seq > Seq::FIRST, "{hello:?}");
    let LinkEvent::Lost { from, to } = next(&mut events).await else { panic!("the gap is not reported") };
    // The last execution's output may have arrived after the hello and displaced more events.
    assert!(from == Seq::FIRST && to.next() >= hello.first_seq, "{from:?} to {to:?} {hello:?}");
    let (_, numbers, replied) = read_run(&mut events, "run-4", usize::MAX).await;
    assert!(replied, "the newest events are kept");
    assert_eq!(numbers.first(), Some(&to.next().0));
    sandbox.destroy(&record).await.unwrap();
}
