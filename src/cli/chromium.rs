//! Prints an HTML page to PDF with an installed Chromium.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

/// Names of the program in PATH, in order of preference.
const PROGRAMS: &[&str] = &["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
const PRINT_TIMEOUT: Duration = Duration::from_secs(120);
/// Time for plots to draw, in Chromium's virtual time, which runs as fast as the machine can.
const DRAW_BUDGET_MS: u32 = 15_000;

/// Finds Chromium: `CELLKEEP_CHROMIUM`, else in PATH.
pub(super) fn find() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("CELLKEEP_CHROMIUM").filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        return if named.is_file() {
            Ok(named)
        } else {
            Err(anyhow!("CELLKEEP_CHROMIUM names {}, which is not a file", named.display()))
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = PROGRAMS.iter().flat_map(|name| std::env::split_paths(&path).map(move |folder| folder.join(name)));
    found.into_iter().find(|program| program.is_file()).context(
        "PDF export needs Chromium, which is not in PATH; install it (Debian: apt-get install chromium), set \
         CELLKEEP_CHROMIUM=/path/to/chrome, or use --to html and print the page yourself",
    )
}

/// Prints a page to PDF. The browser gets a temporary profile and no network.
pub(super) async fn print(browser: &Path, page: &str) -> anyhow::Result<Vec<u8>> {
    let folder = TempFolder::create()?;
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
        // No host name resolves, and all requests go to a proxy that does not exist.
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--proxy-server=127.0.0.1:1",
        "--proxy-bypass-list=<-loopback>",
    ]
    .map(OsString::from)
    .to_vec();
    arguments.push(format!("--virtual-time-budget={DRAW_BUDGET_MS}").into());
    // Chromium cannot use its own sandbox as root. Foreign scripts of the page run only in frames without an origin.
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
    let output = match tokio::time::timeout(PRINT_TIMEOUT, child.wait_with_output()).await {
        Ok(output) => output.with_context(|| format!("{} failed", browser.display()))?,
        Err(_) => bail!("{} did not finish printing within {} s", browser.display(), PRINT_TIMEOUT.as_secs()),
    };
    let bytes = std::fs::read(&pdf).unwrap_or_default();
    if !bytes.starts_with(b"%PDF-") {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
        bail!("{} produced no PDF ({}); its last message: {last}", browser.display(), output.status);
    }
    Ok(bytes)
}

/// A temporary folder, removed on drop.
struct TempFolder(PathBuf);

impl TempFolder {
    fn create() -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = std::env::temp_dir().join(format!("cellkeep-pdf-{}", crate::ids::random_uuid()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        // Fails if a browser that is still running writes into it; the rest is left to the system's cleaning of /tmp.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
