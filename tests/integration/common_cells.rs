//! Cells that people and models write all the time, and what they must show.

use serde_json::{Value, json};

use crate::server::{RemoteSession, Server, printed, text_of};
use crate::support::TestSandbox;

in_every_sandbox!(
    python_pictures_are_shown_once,
    python_text_is_kept_in_order,
    python_commands_and_exits_end,
    python_code_that_catches_interrupts_keeps_its_state,
    deno_text_of_every_kind_is_in_its_cell,
    images_of_every_kernel_have_their_size,
    r_tables_are_html_with_all_characters,
    r_text_is_streamed_and_unchanged,
);

async fn session(place: TestSandbox, kernel: &str) -> (Server, RemoteSession) {
    let server = Server::start("common-cells", place, &[]).await;
    let session = server.client().create(json!({"kernel": kernel})).await;
    (server, session)
}

fn pictures(cell: &Value) -> usize {
    cell["outputs"].as_array().unwrap().iter().filter(|output| output["data"]["image/png"].is_string()).count()
}

async fn python_pictures_are_shown_once(place: TestSandbox) {
    let (_server, session) = session(place, "python").await;
    for code in [
        "import matplotlib; matplotlib.use('Agg')\nimport matplotlib.pyplot as plt\nplt.plot([1]); plt.show()",
        "%matplotlib notebook\nplt.plot([1]); plt.show()",
        "fig, ax = plt.subplots(); ax.plot([1]); fig",
        "%matplotlib inline\nplt.plot([1])",
        "from PIL import Image\nImage.new('RGB', (9, 9)).show()",
    ] {
        let cell = session.run(code).await;
        assert_eq!((&cell["status"], pictures(&cell)), (&json!("ok"), 1), "{code}: {cell}");
        assert_eq!(text_of(&cell, "stderr"), "", "{code}");
    }
    for code in [
        "plt.plot([1]); plt.xlabel(r'$\\frac{$'); plt.show()",
        "class Broken:\n    def _repr_html_(self): raise OSError('x')\nBroken()",
    ] {
        let cell = session.run(code).await;
        assert_eq!((&cell["status"], &cell["error"]["state_lost"]), (&json!("error"), &json!(false)), "{code}: {cell}");
    }
}

async fn python_text_is_kept_in_order(place: TestSandbox) {
    let (_server, session) = session(place, "python").await;
    let code = "import ctypes, logging, os, subprocess, sys
logging.basicConfig(format='%(message)s')
for _ in range(20):
    print('1'); logging.warning('2'); print('3', file=sys.stderr); os.write(1, b'4\\n'); print('5', flush=True)
    subprocess.run(['echo', '6']); os.system('echo 7 >&2'); print('8'); ctypes.CDLL(None).dprintf(1, b'9\\n')";
    assert_eq!(printed(&session.run(code).await), "1\n2\n3\n4\n5\n6\n7\n8\n9\n".repeat(20));
    assert_eq!(printed(&session.run("print('a' + chr(0xd800) + 'b'); print('next')").await), "a\\ud800b\nnext\n");
    let cell = session.run("raise ValueError('a' + chr(0xd800))").await;
    assert_eq!((&cell["error"]["evalue"], cell["outputs"].as_array().unwrap().len()), (&json!("a\\ud800"), 1), "{cell}");
    let redirected = "os.dup2(os.open('file', os.O_CREAT | os.O_WRONLY), 1); print('shown')";
    assert_eq!(printed(&session.run(redirected).await), "shown\n");
}

async fn python_commands_and_exits_end(place: TestSandbox) {
    let (_server, session) = session(place, "python").await;
    assert_eq!(printed(&session.run("kept = 5\n!cat; read x; echo \"[$x]\"; exit 3\nprint(_exit_code)").await), "[]\n3\n");
    for code in ["exit()", "quit()"] {
        let cell = session.run(&format!("{code}\nprint('never')")).await;
        assert_eq!((&cell["status"], printed(&cell)), (&json!("error"), String::new()), "{cell}");
        assert!(cell["error"]["evalue"].as_str().unwrap().contains("kernel keeps running"), "{cell}");
        assert_eq!(session.ok("print(kept)").await, "5\n");
    }
}

async fn python_code_that_catches_interrupts_keeps_its_state(place: TestSandbox) {
    let (_server, session) = session(place, "python").await;
    session.ok("import time; kept = 5").await;
    for code in [
        "while True:\n    try: time.sleep(1)\n    except KeyboardInterrupt: pass",
        "while True:\n    try: time.sleep(1)\n    except: print('caught')",
        "while True:\n    !true",
        "while True:\n    try:\n        while True:\n            try: time.sleep(0.1)\n            except BaseException: pass\n    except Exception: pass",
    ] {
        let fields = json!({"source": code, "timeout_seconds": 0.5});
        let cell = session.client.post(&session.path("/cells?wait=60"), fields).await.is(201);
        assert_eq!((&cell["status"], &cell["error"]["state_lost"]), (&json!("timeout"), &json!(false)), "{code}: {cell}");
        assert_eq!(session.ok("print(kept)").await, "5\n", "{code}");
    }
}

/// The media types and sizes of the artifacts of one cell.
async fn artifact_sizes(place: TestSandbox, kernel: &str, code: &str) -> Vec<String> {
    let (_server, session) = session(place, kernel).await;
    let cell = session.run(code).await;
    assert_eq!(cell["status"], "ok", "{cell}");
    let listed = session.client.get(&session.path("/artifacts")).await.is(200);
    let size = |one: &Value| format!("{} {}x{}", one["mime"].as_str().unwrap(), one["width"], one["height"]);
    listed["artifacts"].as_array().unwrap().iter().map(size).collect()
}

async fn images_of_every_kernel_have_their_size(place: TestSandbox) {
    let python = "import io, base64
from PIL import Image
from IPython.display import display, SVG
for kind in 'png', 'jpeg', 'gif', 'webp':
    file = io.BytesIO(); Image.effect_noise((320, 200), 9).convert('RGB').save(file, kind)
    display({f'image/{kind}': base64.b64encode(file.getvalue()).decode()}, raw=True)
display(SVG('<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"30\" height=\"3in\"/>'))";
    let sizes = artifact_sizes(place, "python", python).await;
    assert_eq!(
        sizes,
        ["image/png 320x200", "image/jpeg 320x200", "image/gif 320x200", "image/webp 320x200", "image/svg+xml 30x288"]
    );
    let r = "options(repr.plot.width = 5, repr.plot.height = 4, repr.plot.res = 100); plot(1:3)";
    assert_eq!(artifact_sizes(place, "r", r).await, ["image/png 500x400"]);
    let svg = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 12 7'/>";
    let deno = format!("await Deno.jupyter.display({{'image/svg+xml': \"{svg}\"}}, {{raw: true}})");
    assert_eq!(artifact_sizes(place, "deno", &deno).await, ["image/svg+xml 12x7"]);
    assert_eq!(artifact_sizes(place, "bash", &format!("echo \"{svg}\" | display")).await, ["image/svg+xml 12x7"]);
}

async fn deno_text_of_every_kind_is_in_its_cell(place: TestSandbox) {
    let (_server, session) = session(place, "deno").await;
    let code = "console.log('1'); Deno.stdout.writeSync(new TextEncoder().encode('2\\n')); process.stdout.write('3\\n'); 4";
    let cell = session.run(code).await;
    assert_eq!(
        (text_of(&cell, "stdout").as_str(), &cell["outputs"][1]["data"]["text/plain"]),
        ("1\n2\n3\n", &json!("4")),
        "{cell}"
    );
    assert_eq!(text_of(&session.run("console.error('5'); process.stderr.write('6\\n')").await, "stderr"), "5\n6\n");
    let lines = text_of(&session.run("for (let i = 0; i < 50000; i++) console.log('line ' + i)").await, "stdout");
    assert!(
        lines.lines().enumerate().all(|(number, line)| line == format!("line {number}")) && lines.lines().count() == 50_000
    );
    for number in 0..20 {
        let cell = session.run(&format!("console.log({number}); {number} + 1")).await;
        assert_eq!(
            (printed(&cell), &cell["outputs"][1]["data"]["text/plain"]),
            (format!("{number}\n"), &json!((number + 1).to_string())),
            "{cell}"
        );
    }
}

async fn r_tables_are_html_with_all_characters(place: TestSandbox) {
    let (_server, session) = session(place, "r").await;
    session.ok("table <- data.frame(Stadt = c('Köln', '東京', '<b>'), Wert = c(1.5, NA, 3))").await;
    for code in ["table", "tibble::as_tibble(table)", "data.table::as.data.table(table)", "as.matrix(table)"] {
        let cell = session.run(code).await;
        let html = cell["outputs"][0]["data"]["text/html"].as_str().unwrap_or_default();
        let expected = ["<table", "Stadt", "Köln", "東京", "&lt;b&gt;", "1.5", "NA"];
        assert!(expected.iter().all(|part| html.contains(part)), "{code}: {cell}");
    }
    let cell = session.run("htmltools::tags$p('größer', style = 'color: red')").await;
    let html = cell["outputs"][0]["data"]["text/html"].as_str().unwrap_or_default();
    assert!(html.contains("<p style=\"color: red\">größer</p>"), "{cell}");
}

async fn r_text_is_streamed_and_unchanged(place: TestSandbox) {
    let (_server, session) = session(place, "r").await;
    let mut events = session.events(0).await;
    session.begin("slow", "cat('first\\n'); Sys.sleep(2); cat('no newline')").await;
    assert_eq!(events.next_of("output.append").await["output"]["text"], "first\n", "before the cell's end");
    assert_eq!(printed(&session.finished("slow").await), "first\nno newline");
    assert_eq!(printed(&session.run("for (i in 1:3) { cat(i, ''); message('m', i) }").await).matches('m').count(), 3);
    let hidden =
        session.run("x <- capture.output(print('hidden')); sink('file'); print('also'); sink(); cat('seen\\n')").await;
    assert_eq!(printed(&hidden), "seen\n");
    let flood = session.run("line <- strrep('x', 999); for (i in 1:95000) cat(line, '\\n', sep = '')").await;
    assert_eq!((&flood["status"], printed(&flood).len()), (&json!("ok"), 95_000_000));
}
