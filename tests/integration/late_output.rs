//! Output that a thread prints after the end of its cell goes to the cell that started the thread, whatever runs meanwhile and
//! whichever process is killed.

use serde_json::{Value, json};

use crate::server::{RemoteSession, Server, printed};
use crate::support::TestSandbox;

in_every_sandbox!(threads_print_into_the_cell_that_started_them);

/// A thread that prints a line whenever a file appears, and ends with a picture and a line on stderr.
const THREAD: &str = r"
import os, sys, threading, time
def wait(name):
    while not os.path.exists(name):
        time.sleep(0.01)
def work():
    for number in range(100):
        wait(f'go{number}')
        if os.path.exists('last'):
            break
        print('late', number, flush=True)
    from IPython.display import display
    display({'text/plain': 'a picture'}, raw=True)
    print('warned', file=sys.stderr, flush=True)
threading.Thread(target=work).start()
print('begun')
";

/// A thread that has ended goes at once, and not when the garbage collector comes by.
const ENDED: &str = r"
import gc, threading, time, weakref
class Thread(threading.Thread):
    def run(self):
        pass
gc.disable()
thread = Thread()
thread.start()
thread.join()
ended = weakref.ref(thread)
del thread
until = time.time() + 30
while ended() and time.time() < until:
    time.sleep(0.01)
print(ended())
gc.enable()
";

fn go(number: usize) -> String {
    format!("open('go{number}', 'w').close(); print('told')")
}

async fn shows(session: &RemoteSession, cell: &str, wanted: &str) -> Value {
    session.cell_until(cell, |cell| printed(cell) == wanted).await
}

async fn threads_print_into_the_cell_that_started_them(place: TestSandbox) {
    let mut server = Server::start("late-output", place, &["--compact-after", "1"]).await;
    let session = server.client().create(json!({"kernel": "python"})).await;
    let run = async |id: String, source: String| {
        session.begin(&id, &source).await;
        session.finished(&id).await
    };
    run("thread".to_owned(), THREAD.to_owned()).await;
    let mut text = "begun\n".to_owned();
    for number in 0..20 {
        let told = run(format!("go{number}"), go(number)).await;
        text += &format!("late {number}\n");
        shows(&session, "thread", &text).await;
        assert_eq!(printed(&told), "told\n");
    }
    // The output of a pool's thread goes to the cell that submitted its work.
    let pool =
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\npool.submit(print, 'a').result()";
    assert_eq!(printed(&run("makes".to_owned(), pool.to_owned()).await), "a\n");
    assert_eq!(printed(&run("uses".to_owned(), "pool.submit(print, 'b').result()".to_owned()).await), "b\n");
    assert_eq!(printed(&run("ended".to_owned(), ENDED.to_owned()).await), "None\n");
    // It goes on while no server is there, and is in no other cell, however many have run.
    server
        .client()
        .post(&session.path("/cells"), json!({"id": "waits", "source": format!("time.sleep(1); {}", go(20))}))
        .await
        .is(201);
    session.cell_until("waits", |cell| cell["state"] == "running").await;
    server.kill().await;
    server.start_again().await;
    text += "late 20\n";
    shows(&session, "thread", &text).await;
    assert_eq!(printed(&session.finished("waits").await), "told\n");
    run("last".to_owned(), "open('last', 'w').close(); open('go21', 'w').close()".to_owned()).await;
    let cell = session.cell_until("thread", |cell| cell["outputs"].as_array().unwrap().len() == 3).await;
    assert_eq!((&cell["state"], &cell["status"]), (&json!("finished"), &json!("ok")));
    assert_eq!(cell["outputs"][1]["data"]["text/plain"], "a picture");
    assert_eq!(cell["outputs"][2]["text"], "warned\n");
    // Its events come after its end, each once and in order; those of its text are merged some time later.
    let merged = async || {
        let mut stream = session.events(0).await;
        let (mut seen, mut ended) = (Vec::new(), false);
        loop {
            let event = stream.next().await.unwrap().unwrap();
            ended |= event["type"] == "cell.finished" && event["cell"] == "thread";
            if ended && event["cell"] == "thread" && event["type"] != "cell.finished" {
                seen.push(event.clone());
            }
            if event["output"]["text"] == "warned\n" {
                return seen;
            }
        }
    };
    let texts: String =
        merged().await.iter().map(|event| event["output"]["text"].as_str().unwrap_or("|").to_owned()).collect();
    assert_eq!(texts, text.trim_start_matches("begun\n").to_owned() + "|warned\n");
    let file = server.client().get(&session.path("/notebook")).await.is(200);
    let written = &file["cells"][0]["outputs"];
    assert_eq!(written.as_array().unwrap().len(), 3);
    assert_eq!(written[0]["text"].as_array().unwrap().last().unwrap(), "late 20\n");
    session.delete().await;
    server.end().await;
}
