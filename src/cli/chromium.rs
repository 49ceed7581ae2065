//! Printing a page to PDF with the machine's Chromium.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

/// The programs that will do, in the order they are looked for.
const PROGRAMS: &[&str] = &["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
/// How long printing may take.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long plots may take to draw themselves, in the page's own time, which runs as fast as the machine can.
const DRAWING_MS: u32 = 15_000;

/// The Chromium of this machine.
pub(super) fn find() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("CELLKEEP_CHROMIUM").filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        return if named.is_file() {
            Ok(named)
        } else {
            Err(anyhow!("CELLKEEP_CHROMIUM names {}, which is no program", named.display()))
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = PROGRAMS.iter().flat_map(|name| std::env::split_paths(&path).map(move |folder| folder.join(name)));
    found.into_iter().find(|program| program.is_file()).context(
        "PDF needs a Chromium, and there is none in PATH; install one (Debian: apt-get install chromium), name one with \
         CELLKEEP_CHROMIUM=/path/to/chrome, or use --to html and print that",
    )
}

/// Prints a page. The browser has a profile of its own that is thrown away, and no network.
pub(super) async fn print(browser: &Path, page: &str) -> anyhow::Result<Vec<u8>> {
    let folder = Folder::make()?;
    let (html, pdf) = (folder.0.join("page.html"), folder.0.join("page.pdf"));
    std::fs::write(&html, page).with_context(|| format!("cannot write {}", html.display()))?;
    let mut arguments: Vec<OsString> = [
        "--headless=new",
        "--disable-gpu",
        "--disable-extensions",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-default-apps",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--no-pdf-header-footer",
        "--run-all-compositor-stages-before-draw",
        // No name resolves, and whatever is asked for goes to a proxy that is not there.
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--proxy-server=127.0.0.1:1",
        "--proxy-bypass-list=<-loopback>",
    ]
    .map(OsString::from)
    .to_vec();
    arguments.push(format!("--virtual-time-budget={DRAWING_MS}").into());
    // Chromium refuses its own sandbox to root. The page has no foreign script outside of frames without an origin.
    if rustix::process::geteuid().is_root() {
        arguments.push("--no-sandbox".into());
    }
    for (flag, path) in [("--user-data-dir=", folder.0.join("profile")), ("--print-to-pdf=", pdf.clone())] {
        let mut argument = OsString::from(flag);
        argument.push(path);
        arguments.push(argument);
    }
    let mut url = OsString::from("file://");
    url.push(&html);
    arguments.push(url);
    let child = tokio::process::Command::new(browser)
        .args(arguments)
        .env("HOME", &folder.0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", browser.display()))?;
    let output = match tokio::time::timeout(DEADLINE, child.wait_with_output()).await {
        Ok(output) => output.with_context(|| format!("{} failed", browser.display()))?,
        Err(_) => bail!("{} did not finish printing in {} s", browser.display(), DEADLINE.as_secs()),
    };
    let bytes = std::fs::read(&pdf).unwrap_or_default();
    if !bytes.starts_with(b"%PDF-") {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
        bail!("{} printed no PDF ({}); its last words: {last}", browser.display(), output.status);
    }
    Ok(bytes)
}

/// A folder that goes when it is no longer needed.
struct Folder(PathBuf);

impl Folder {
    fn make() -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = std::env::temp_dir().join(format!("cellkeep-pdf-{}", crate::ids::random_uuid()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A browser that is still going may write into it; what is left is in the system's folder for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
