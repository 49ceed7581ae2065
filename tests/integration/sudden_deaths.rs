//! What a kernel has written is in its cell, however suddenly its process ends. Each way of dying is repeated, since what was lost
//! once was lost in one of three to twenty tries.

use serde_json::Value;

use crate::server::Server;
use crate::support::TestSandbox;

in_every_sandbox!(
    python_output_outlives_its_process,
    r_output_outlives_its_process,
    deno_output_outlives_its_process,
    bash_output_outlives_its_process,
);

const TRIES: usize = 4;

/// Runs each code several times. Each ends its kernel, and all outputs together contain `MARK`.
async fn assert_kept(place: TestSandbox, kernel: &str, codes: &[&str]) {
    let server = Server::start("sudden-deaths", place, &[]).await;
    let session = server.client().create(serde_json::json!({"kernel": kernel, "limits": {"memory_mb": 512}})).await;
    for code in codes {
        for _ in 0..TRIES {
            let cell = session.run(code).await;
            assert!(shown(&cell).contains("MARK"), "{code}: {cell}");
            assert_eq!(cell["error"]["state_lost"], true, "{cell}");
            // A kernel that dies again and again is given up.
            session.run("1").await;
        }
    }
    session.delete().await;
}

/// All that the cell shows but its error, which may quote the code.
fn shown(cell: &Value) -> String {
    let outputs = cell["outputs"].as_array().unwrap();
    outputs.iter().filter(|output| output["output_type"] != "error").map(Value::to_string).collect()
}

async fn python_output_outlives_its_process(place: TestSandbox) {
    let ways = [
        "import os; print('MARK', flush=True); os._exit(0)",
        "import os; print('MARK'); os.kill(os.getpid(), 9)",
        "import ctypes; print('MARK', flush=True); ctypes.string_at(0)",
        "import os, sys; print('MARK', file=sys.stderr); os.abort()",
        "import os; from IPython.display import HTML, display; display(HTML('MARK')); os._exit(1)",
        "import os, subprocess; subprocess.run(['echo', 'MARK']); os._exit(1)",
        "import os, multiprocessing as m; p = m.Process(target=print, args=('MARK',)); p.start(); p.join(); os._exit(1)",
        "import os\nfor i in range(20000): print(i, 'x' * 50)\nprint('MARK'); os.kill(os.getpid(), 9)",
        "import os, threading, time\ndef end():\n    print('MARK', flush=True); os._exit(3)\nthreading.Thread(target=end).start(); time.sleep(60)",
    ];
    assert_kept(place, "python", &ways).await;
    assert_kept(place, "python", &["print('MARK', flush=True)\nkept = []\nwhile True: kept.append(bytearray(50_000_000))"])
        .await;
}

async fn r_output_outlives_its_process(place: TestSandbox) {
    let ways = [
        "cat('MARK\n'); flush.console(); tools::pskill(Sys.getpid(), 9)",
        "print('MARK'); tools::pskill(Sys.getpid(), 11)",
        "message('MARK'); tools::pskill(Sys.getpid(), 9)",
        "IRdisplay::display_html('MARK'); tools::pskill(Sys.getpid(), 9)",
        "for (i in 1:20000) cat(i, 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n'); cat('MARK\n'); tools::pskill(Sys.getpid(), 9)",
    ];
    assert_kept(place, "r", &ways).await;
}

async fn deno_output_outlives_its_process(place: TestSandbox) {
    let ways = [
        "console.log('MARK'); Deno.exit(1)",
        "console.error('MARK'); Deno.kill(Deno.pid, 'SIGKILL')",
        "Deno.stdout.writeSync(new TextEncoder().encode('MARK\\n')); Deno.kill(Deno.pid, 'SIGKILL')",
        "process.stdout.write('MARK\\n'); Deno.kill(Deno.pid, 'SIGKILL')",
        "for (let i = 0; i < 20000; i++) console.log(i, 'x'.repeat(50)); console.log('MARK'); Deno.exit(1)",
    ];
    assert_kept(place, "deno", &ways).await;
}

async fn bash_output_outlives_its_process(place: TestSandbox) {
    let ways = [
        "echo MARK; exit 3",
        "echo MARK; kill -9 $$",
        "echo MARK >&2; kill -9 $PPID; sleep 60",
        "for i in {1..20000}; do echo $i xxxxxxxxxxxxxxxxxxxxxxxxxx; done; echo MARK; exec true",
    ];
    assert_kept(place, "bash", &ways).await;
}
