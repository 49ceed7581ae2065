//! Results do not depend on what the machine has installed: both sandboxes have the same fonts, commands, packages, locale and time zone.

use std::collections::BTreeSet;
use std::fmt::Debug;

use cellkeep::config::Paths;
use cellkeep::kernels;
use cellkeep::manager::{Manager, SandboxChoice, SessionSpec};
use cellkeep::policy::{Limits, NetworkPolicy};
use cellkeep::session::ExecutionStatus;
use serde_json::Value;

use crate::support::{TestSandbox, TestSession};

/// What every script is tried with: Chinese, Japanese, Korean, Arabic, Hindi, Thai, Tamil, emoji old and new.
const TEXTS: &str = r#"["中文图表", "日本語カタカナ", "한국어", "العربية", "हिन्दी", "ภาษาไทย", "தமிழ்", "😀🎉🚀", "🤖🥳🦄"]"#;

/// The sandboxes of this machine.
async fn sandboxes() -> Vec<TestSandbox> {
    [Some(TestSandbox::process()), TestSandbox::docker().await].into_iter().flatten().collect()
}

async fn session(place: TestSandbox, kernel: &str, env: &[(&str, &str)]) -> TestSession {
    let spec = SessionSpec {
        kernel: kernels::find(kernel).unwrap().clone(),
        sandbox: SandboxChoice::Only(place.kind),
        limits: Limits { memory_mb: 1024, ..Limits::default() },
        network: NetworkPolicy::None,
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        mounts: Vec::new(),
        secrets: Vec::new(),
        package_set: None,
    };
    TestSession::new(Manager::new(Paths::from_environment()).create(spec).await.unwrap())
}

/// Runs cells in a session in each sandbox, and asserts that all succeed with the same outputs, which are returned.
async fn same_outputs(kernel: &str, env: &[(&str, &str)], cells: &[&str]) -> Vec<Vec<Value>> {
    let mut first: Option<Vec<Vec<Value>>> = None;
    for place in sandboxes().await {
        let session = session(place, kernel, env).await;
        let mut outputs = Vec::new();
        for code in cells {
            let ran = session.run(code).await;
            assert_eq!(ran.status(), ExecutionStatus::Ok, "{:?}: {code}\n{}\n{}", place.kind, ran.error(), ran.text());
            outputs.push(ran.outputs);
        }
        session.end().await;
        match &first {
            None => first = Some(outputs),
            Some(first) => first.iter().zip(&outputs).zip(cells).for_each(|((one, other), code)| {
                assert!(one == other, "{:?} differs in {code}:\n{}\n{}", place.kind, short(one), short(other));
            }),
        }
    }
    first.unwrap()
}

fn short(outputs: &impl Debug) -> String {
    format!("{outputs:?}").chars().take(2000).collect()
}

fn text(outputs: &[Value]) -> String {
    cellkeep::output::text_of(outputs).trim_end().to_owned()
}

fn pictures(outputs: &[Value]) -> usize {
    outputs.iter().filter(|output| output["data"]["image/png"].is_string()).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn matplotlib_draws_every_script_with_every_style() {
    let setup = format!(
        "import warnings; warnings.simplefilter('error')
import matplotlib.pyplot as plt, seaborn, numpy
texts = {TEXTS}
def draw(text, **how):
    figure = plt.figure(figsize=(4, 1)); figure.text(0.1, 0.3, text, fontsize=25, **how); figure.canvas.draw()
    drawn = bytes(figure.canvas.buffer_rgba()); plt.close(figure); return drawn"
    );
    let styles = "
def labelled():
    figure, axes = plt.subplots()
    axes.plot([1, 2], label=texts[0]); axes.set_title(' '.join(texts)); axes.set_xlabel('温度 ($^\\\\circ$C) हिन्दी'); axes.legend(); plt.show()
labelled()
with plt.style.context('ggplot'): labelled()
with plt.style.context('seaborn-v0_8'): labelled()
with plt.rc_context({'font.family': 'serif', 'mathtext.fontset': 'stix'}): labelled()
with plt.rc_context({'font.family': 'Arial'}): labelled()
with plt.rc_context({'font.sans-serif': ['SimHei'], 'axes.unicode_minus': False}): labelled()
with plt.rc_context(): seaborn.set_theme(); labelled()";
    let cells = [
        setup.as_str(),
        styles,
        // A missing glyph is the same box for all characters.
        "import unicodedata; letters = {one for one in ''.join(texts) if unicodedata.category(one)[0] in 'LS'}
assert len({draw(one) for one in letters}) == len(letters) > 30, len({draw(one) for one in letters})",
        "import matplotlib.font_manager as fonts, pathlib
assert fonts.fontManager.ttflist and all(pathlib.Path(font.fname).exists() for font in fonts.fontManager.ttflist)
print(sorted({font.name for font in fonts.fontManager.ttflist}))
print(sorted(map(str, fonts.findSystemFonts())))",
        "import io
for kind in 'pdf', 'svg', 'ps': plt.figure().text(0.1, 0.5, ' '.join(texts[:6])); plt.savefig(io.BytesIO(), format=kind); plt.close()",
        "from PIL import Image, ImageDraw, ImageFont
image = Image.new('RGB', (300, 40)); ImageDraw.Draw(image).text((0, 0), '中文', font=ImageFont.truetype('wqy-microhei.ttc', 30))
ImageFont.truetype('/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf'); image",
    ];
    let outputs = same_outputs("python", &[], &cells).await;
    assert_eq!((pictures(&outputs[1]), outputs[1].len()), (7, 7), "nothing is written beside: {}", text(&outputs[1]));
    assert!(text(&outputs[3]).contains("'SimHei'") && !text(&outputs[3]).contains("Roboto"), "{}", text(&outputs[3]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_draws_every_script() {
    let texts = TEXTS.replace('[', "c(").replace(']', ")");
    let setup = format!(
        "texts <- {texts}
draw <- function(text) {{ path <- tempfile(); png(path, 400, 60); par(mar = rep(0, 4)); plot.new(); text(0.5, 0.5, text, cex = 2); dev.off(); unname(tools::md5sum(path)) }}"
    );
    let cells = [
        setup.as_str(),
        "plot(1:3, main = paste(texts[1:5], collapse = ' '), xlab = texts[[8]], ylab = expression(alpha^2 + sqrt(x)))",
        "for (family in c('sans', 'serif', 'mono', 'Helvetica', 'Times', 'Courier', 'Arial')) { plot.new(); text(0.5, 0.5, paste(family, texts[[1]]), family = family, font = 4) }",
        "library(ggplot2); ggplot(mtcars, aes(wt, mpg)) + geom_point() + labs(title = paste(texts, collapse = ' '), x = '重量')",
        "stopifnot(length(unique(sapply(c('中', '国', '文', '한', 'さ', 'ह', 'अ', 'ع', 'ب', '😀', '🎉', '🥳', '🤖'), draw))) == 13)",
        "cat(system('fc-list | sort', intern = TRUE), sep = '\\n'); cat(system('fc-match Helvetica', intern = TRUE))",
        "pdf(NULL); cairo_pdf(tempfile()); plot.new(); text(0.5, 0.5, texts[[1]]); invisible(dev.off()); svg(tempfile()); plot(1); invisible(dev.off())",
    ];
    let outputs = same_outputs("r", &[], &cells).await;
    let drawn: Vec<usize> = outputs.iter().map(|outputs| pictures(outputs)).collect();
    assert_eq!(drawn, [0, 1, 7, 1, 0, 0, 0]);
    let fonts = text(&outputs[5]);
    assert!(
        fonts.lines().count() > 20 && fonts.lines().rev().skip(1).all(|line| line.starts_with("/opt/kernel/fonts/")),
        "{fonts}"
    );
    assert!(fonts.ends_with("LiberationSans-Regular.ttf: \"Liberation Sans\" \"Regular\""), "{fonts}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fonts_of_the_machine_are_hidden() {
    let list = "cd /usr/share/fonts && find . -type f | sort | xargs -r sha256sum; ls -A /etc/fonts";
    for kernel in ["python", "r"] {
        let code = match kernel {
            "python" => format!("!{list}"),
            _ => format!("cat(system('{list}', intern = TRUE), sep = '\\n')"),
        };
        let listed = text(&same_outputs(kernel, &[], &[&code]).await[0]);
        assert!(listed.contains("wqy-microhei.ttc") && listed.contains("fonts.conf"), "{listed}");
        assert!(!listed.contains("DejaVuMathTeXGyre"), "Chromium's fonts-dejavu-extra is on this machine: {listed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_those_of_the_list() {
    let names = kernels::commands();
    assert!(names.iter().any(|name| name == "git") && names.iter().collect::<BTreeSet<_>>().len() == names.len());
    let found = format!("for name in {}; do command -v \"$name\" >/dev/null || echo \"$name\"; done", names.join(" "));
    // What a desktop or a build machine has, and an image does not.
    let others = "for name in pip pip3 gcc cc xdg-open open chromium vim node dpkg apt-get; do command -v $name; done; true";
    let uses = "git --version; git config --list; jq -n '1+1'; echo 'a b' | awk '{print $2}'; sqlite3 :memory: 'select 2'; echo abc | rg -o b
bc <<< '2*3'; echo x | xz | unxz; echo x | zstd | zstdcat; tree --version | cut -c1-6; file /bin/sh; which ls; date +%Z; perl -e 'print 7'; python3 -c 'import sys; print(sys.path)'";
    let outputs = same_outputs("bash", &[], &[&found, others, uses, "bash -lc 'echo $PATH'; cat /etc/os-release"]).await;
    assert_eq!((text(&outputs[0]).as_str(), text(&outputs[1]).as_str()), ("", ""));
    for kernel in ["python", "r", "deno"] {
        let command = "command -v git rg python3 pip gcc; echo $PATH";
        let code = match kernel {
            "python" => format!("!{command}"),
            "r" => format!("cat(system('{command}', intern = TRUE), sep = '\\n')"),
            _ => format!(
                "console.log(new TextDecoder().decode(new Deno.Command('sh', {{args: ['-c', '{command}']}}).outputSync().stdout))"
            ),
        };
        let found = text(&same_outputs(kernel, &[], &[&code]).await[0]);
        assert!(found.contains("/commands/git") && !found.contains("gcc"), "{found}");
        assert_eq!(found.contains("/opt/kernel/bin/pip\n"), kernel == "python", "{found}");
        assert!(kernel == "python" || !found.contains("pip"), "{found}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packages_are_those_of_the_kernel() {
    let packages = "for (path in .libPaths()) cat(path, sort(rownames(installed.packages(path))), '\\n')
cat(getOption('repos'), extSoftVersion()[['BLAS']], La_library(), Sys.getlocale(), '\\n'); invisible(library(survival))";
    let listed = text(&same_outputs("r", &[], &[packages]).await[0]);
    assert!(listed.starts_with("/opt/kernel/library") && listed.contains("ggplot2"), "{listed}");
    let packages = "import sys, importlib.metadata as metadata, mimetypes
print(sys.path, sorted(one.name for one in metadata.distributions()), mimetypes.guess_type('a.parquet'), mimetypes.guess_type('a.png'))";
    let listed = text(&same_outputs("python", &[], &[packages]).await[0]);
    assert!(!listed.contains("dist-packages") && listed.contains("'matplotlib'"), "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_zone_is_utc_or_as_set() {
    for (kernel, code, utc, berlin) in [
        (
            "python",
            "import datetime, pandas\nprint(datetime.datetime.fromtimestamp(0).astimezone(), pandas.Timestamp.fromtimestamp(0))",
            "1970-01-01 00:00:00+00:00 1970-01-01 00:00:00",
            "1970-01-01 01:00:00+01:00 1970-01-01 01:00:00",
        ),
        (
            "r",
            "cat(format(as.POSIXct(0, origin = '1970-01-01'), '%H:%M %Z'), Sys.timezone())",
            "00:00 UTC Etc/UTC",
            "01:00 CET Europe/Berlin",
        ),
        (
            "deno",
            "console.log(new Date(0).getHours(), Intl.DateTimeFormat().resolvedOptions().timeZone)",
            "0 UTC",
            "1 Europe/Berlin",
        ),
        ("bash", "date -d @0 +'%H:%M %Z'", "00:00 UTC", "01:00 CET"),
    ] {
        assert_eq!(text(&same_outputs(kernel, &[], &[code]).await[0]), utc, "{kernel}");
        assert_eq!(text(&same_outputs(kernel, &[("TZ", "Europe/Berlin")], &[code]).await[0]), berlin, "{kernel}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locale_is_utf8_and_can_be_set() {
    let python = "import locale, sys\nprint(locale.setlocale(locale.LC_ALL, ''), sys.stdout.encoding, sys.getfilesystemencoding(), sorted(['b', 'A', 'a', 'ä']))";
    assert_eq!(text(&same_outputs("python", &[], &[python]).await[0]), "C.UTF-8 UTF-8 utf-8 ['A', 'a', 'b', 'ä']");
    assert!(text(&same_outputs("python", &[("LC_ALL", "C")], &[python]).await[0]).starts_with("C UTF-8 utf-8"));
    let r = "cat(Sys.getlocale('LC_CTYPE'), nchar('äß中'), sort(c('b', 'A', 'a')), toupper('ä'))";
    assert_eq!(text(&same_outputs("r", &[], &[r]).await[0]), "C.UTF-8 3 a A b Ä");
    assert_eq!(text(&same_outputs("bash", &[], &["locale -a; text=äß; echo ${#text}"]).await[0]), "C\nC.utf8\nPOSIX\n2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_hash_seed_can_be_set() {
    let code = "print(hash('cellkeep'), list({'a', 'b', 'c', 'd'}))";
    let seeded = [("PYTHONHASHSEED", "0")];
    let once = same_outputs("python", &seeded, &[code]).await;
    assert_eq!(once, same_outputs("python", &seeded, &[code]).await);
}
