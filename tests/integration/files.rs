//! Files in and out of the workspace, against code that tries to trick the server.

use bytes::Bytes;
use cellkeep::agent_protocol::{AnswerBody, EntryKind, PutOptions, Request};

use crate::support::{TestSandbox, TestSession};

in_every_sandbox!(in_and_out, tricks);

async fn get(living: &TestSession, path: &str) -> Result<Bytes, String> {
    let request = Request::FileGet { path: path.to_owned(), offset: 0, length: 1 << 20 };
    living.session.handle.ask_agent(request, Bytes::new()).await.map(|(_, data)| data).map_err(|error| error.to_string())
}

async fn put(living: &TestSession, path: &str, data: &'static [u8]) -> Result<(), String> {
    let request =
        Request::FilePut { upload: 1, path: path.to_owned(), offset: 0, last: true, options: PutOptions::default() };
    living.session.handle.ask_agent(request, Bytes::from_static(data)).await.map(drop).map_err(|error| error.to_string())
}

async fn in_and_out(place: TestSandbox) {
    let living = place.session("python").await;
    put(&living, "data/in.bin", b"\x00\xffin").await.unwrap();
    living.ok("open('out.bin', 'wb').write(open('data/in.bin', 'rb').read() + b'out')").await;
    assert_eq!(get(&living, "out.bin").await.unwrap(), b"\x00\xffinout".as_slice());
    let list = Request::FileList { path: String::new(), after: "a".to_owned(), limit: 10 };
    let (answer, _) = living.session.handle.ask_agent(list, Bytes::new()).await.unwrap();
    let AnswerBody::Listing { entries, next: None } = answer else { panic!("{answer:?}") };
    let entries: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.kind, entry.size)).collect();
    assert_eq!((entries[0].0, entries[0].1), ("data", EntryKind::Folder));
    assert_eq!(entries[1..], [("out.bin", EntryKind::File, 7)]);
    let usage = living.session.handle.usage().await.unwrap();
    assert!(
        usage.memory_bytes > 10 << 20 && usage.peak_memory_bytes >= usage.memory_bytes && usage.cpu_seconds > 0.05,
        "{usage:?}"
    );
    living.end().await;
}

async fn tricks(place: TestSandbox) {
    let living = place.session("python").await;
    living.ok("import os\nos.symlink('/etc/passwd', 'link')\nos.symlink('/', 'root')\nos.mkfifo('fifo')\nos.symlink('/dev/zero', 'zero')\nos.symlink('/proc/1/environ', 'agent')").await;
    for path in ["link", "root/etc/passwd", "fifo", "zero", "agent", "../etc/passwd", "/etc/passwd", "no-such", "a\0b", ""] {
        assert!(get(&living, path).await.is_err(), "{path:?} was given out");
    }
    for path in ["link", "root/tmp/x", "fifo", "../x", "/tmp/x", ""] {
        assert!(put(&living, path, b"x").await.is_err(), "{path:?} was written");
    }
    // The code swaps a file and a symlink as fast as it can. A read returns the file or fails, and never returns the target.
    let swap = "import os, time\nopen('swap', 'w').write('mine')\nend = time.time() + 3\nwhile time.time() < end:\n    os.symlink('/etc/passwd', 's'); os.replace('s', 'swap')\n    open('f', 'w').write('mine'); os.replace('f', 'swap')";
    let swapping = living.run(swap);
    let reading = async {
        for _ in 0..500 {
            if let Ok(data) = get(&living, "swap").await {
                assert!(data.is_empty() || data == "mine", "{data:?}");
            }
        }
    };
    tokio::join!(swapping, reading);
    living.assert_works().await;
    living.end().await;
}
