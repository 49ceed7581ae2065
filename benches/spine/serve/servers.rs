//! The servers, each as a process on a port of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::client::{Http, TOKEN};
use crate::Lab;
use crate::flood::{Folder, write_kernel_spec};
use crate::peer::argv;

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// Between two tries whether a server answers: less than what is measured.
const TRY_AGAIN: Duration = Duration::from_micros(200);

/// A server that answers.
pub(crate) struct Server {
    child: Child,
    pub address: SocketAddr,
    /// Seconds from its start to its first answer.
    pub started_in: f64,
    /// Removed when the server has ended.
    _folder: Folder,
}

impl Server {
    /// `cellkeep serve` with the kernels of this machine, and a journal and sessions of its own.
    pub fn cellkeep(lab: &Lab, arguments: &[&str]) -> anyhow::Result<Self> {
        let folder = Folder::new("serve")?;
        symlink(lab.paths.data().join("kernels"), folder.0.join("kernels"))?;
        let address = free_address()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellkeep"));
        command.args([
            "serve",
            "--sandbox",
            "process",
            "--end-sessions",
            "--token",
            TOKEN,
            "--listen",
            &address.to_string(),
        ]);
        command.args(arguments).arg("--data").arg(&folder.0).current_dir(&folder.0);
        Self::start(command, address, "/healthz", folder)
    }

    /// jupyter_server with its own defaults, and our kernel's launcher as its kernel.
    pub fn jupyter(lab: &Lab) -> anyhow::Result<Self> {
        let folder = Folder::new("jupyter")?;
        write_kernel_spec(lab, &folder.0, &argv(lab))?;
        let address = free_address()?;
        let mut command = Command::new(&lab.python);
        command.args(["-m", "jupyter_server", "--no-browser", "--allow-root", "--ServerApp.port_retries=0"]);
        command.arg(format!("--ServerApp.ip={}", address.ip())).arg(format!("--ServerApp.port={}", address.port()));
        command.arg(format!("--IdentityProvider.token={TOKEN}")).arg("--ServerApp.root_dir=.");
        command.env("JUPYTER_PATH", &folder.0).env("HOME", &folder.0).env("IPYTHONDIR", folder.0.join("ipython"));
        command.current_dir(&folder.0);
        Self::start(command, address, "/api", folder)
    }

    fn start(mut command: Command, address: SocketAddr, health: &str, folder: Folder) -> anyhow::Result<Self> {
        let log = folder.0.join("log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?);
        let began = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let mut server = Self { child, address, started_in: f64::NAN, _folder: folder };
        loop {
            let answer = Http::connect(address).and_then(|mut http| http.exchange("GET", health, None));
            if let Ok((200, _)) = answer {
                server.started_in = began.elapsed().as_secs_f64();
                return Ok(server);
            }
            if server.child.try_wait()?.is_some() || began.elapsed() > START_DEADLINE {
                bail!("{command:?} did not start: {}", fs::read_to_string(log)?.trim());
            }
            std::thread::sleep(TRY_AGAIN);
        }
    }

    pub fn http(&self) -> anyhow::Result<Http> {
        Http::connect(self.address)
    }

    /// Makes a session of ours; gives its id.
    pub fn session(&self) -> anyhow::Result<String> {
        id_of(&self.http()?.ask("POST", "/v1/sessions", Some(&json!({"kernel": "python"})))?)
    }

    /// Makes a kernel of jupyter_server's; gives its id.
    pub fn kernel(&self) -> anyhow::Result<String> {
        id_of(&self.http()?.ask("POST", "/api/kernels", Some(&json!({"name": "bench"})))?)
    }

    /// Memory of the process that is in RAM, its program included, bytes.
    pub fn resident(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim_matches([' ', '\t', 'k', 'B']).parse::<u64>()? * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let until = Instant::now() + STOP_DEADLINE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Why jupyter_server cannot be measured. `None`: it can.
pub(super) fn jupyter_is_missing(lab: &Lab) -> Option<String> {
    let tried = Command::new(&lab.python).args(["-c", "import jupyter_server"]).stderr(Stdio::null()).status();
    let there = tried.is_ok_and(|status| status.success());
    (!there).then(|| "jupyter_server is not in target/test-venv; `make bench` installs it where PyPI answers".to_owned())
}

fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn id_of(made: &Value) -> anyhow::Result<String> {
    let id = made["id"].as_str().unwrap_or_default();
    ensure!(!id.is_empty(), "no id in {made}");
    Ok(id.to_owned())
}
