//! The peers: kernels started without us and spoken to by Python clients. See `benches/peers/direct.py`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::{Lab, project};

/// How a kernel is started without a sandbox of ours.
pub(crate) struct Launch(Value);

impl Launch {
    /// The kernel as a plain process.
    pub fn bare(lab: &Lab) -> Self {
        Self(json!({"argv": argv(lab), "env": environment_on_host(lab)}))
    }

    /// The kernel's image as `docker run` starts it.
    pub fn docker(lab: &Lab) -> Self {
        let name = format!("cellkeep-bench-{}", std::process::id());
        let mut argv: Vec<String> =
            ["docker", "run", "--rm", "--network", "none", "--name", &name, "--volume", "{dir}:/run/kernel"]
                .map(str::to_owned)
                .into();
        argv.extend(lab.kernel.env.iter().flat_map(|(name, value)| ["--env".to_owned(), format!("{name}={value}")]));
        argv.push(docker_image(lab));
        argv.extend(lab.kernel.argv.clone());
        Self(json!({
            "argv": argv, "env": {"PATH": std::env::var("PATH").unwrap_or_default()}, "inside": "/run/kernel",
            "end": ["docker", "rm", "--force", name],
        }))
    }
}

/// The image that the docker sandbox uses.
pub(crate) fn docker_image(lab: &Lab) -> String {
    format!("cellkeep/{}:latest", lab.kernel.name)
}

/// Why Docker cannot be measured. `None`: it can.
pub(crate) fn docker_is_missing(lab: &Lab) -> Option<String> {
    let image = docker_image(lab);
    match Command::new("docker").args(["image", "inspect", &image]).stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => None,
        Ok(_) => Some(format!("no Docker daemon, or no image {image}")),
        Err(error) => Some(format!("no docker command: {error}")),
    }
}

/// The kernel's command line with the environment where it lies on this machine.
pub(crate) fn argv(lab: &Lab) -> Vec<String> {
    lab.kernel.argv.iter().map(|argument| on_host(lab, argument)).collect()
}

/// The kernel's variables; each start has folders of its own, as in a new sandbox. `{dir}` is filled in by the peer.
fn environment_on_host(lab: &Lab) -> BTreeMap<String, String> {
    let mut env: BTreeMap<_, _> = lab.kernel.env.iter().map(|(name, value)| (name.clone(), on_host(lab, value))).collect();
    for (name, value) in [
        ("HOME", "{dir}"),
        ("TMPDIR", "{dir}"),
        ("IPYTHONDIR", "{dir}/ipython"),
        ("MPLCONFIGDIR", "{dir}/matplotlib"),
        ("OPENBLAS_NUM_THREADS", "1"),
    ] {
        env.insert(name.to_owned(), value.to_owned());
    }
    env
}

fn on_host(lab: &Lab, text: &str) -> String {
    text.replace("/opt/kernel", &lab.environment.display().to_string())
}

/// A Python process that measures.
pub(crate) struct Peer {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    pub fn start(lab: &Lab) -> anyhow::Result<Self> {
        let mut child = Command::new(&lab.python)
            .arg(project().join("benches/peers/direct.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", lab.python.display()))?;
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("the peer has no output")?);
        Ok(Self { child, commands, answers })
    }

    /// Starts a kernel and keeps it for [`Peer::rounds`] by a client: `jupyter_client` or `pyzmq`.
    pub fn open(&mut self, client: &str, launch: &Launch) -> anyhow::Result<()> {
        let mut how = launch.0.clone();
        how["client"] = json!(client);
        self.ask("open", how).map(drop)
    }

    /// Seconds of so many executions by the client.
    pub fn rounds(&mut self, count: usize) -> anyhow::Result<Vec<f64>> {
        self.ask("rounds", json!({"count": count}))
    }

    /// Seconds from starting a kernel to its first result; it is ended again.
    pub fn first_result(&mut self, launch: &Launch) -> anyhow::Result<f64> {
        self.ask("start", launch.0.clone())?.first().copied().context("the peer measured nothing")
    }

    fn ask(&mut self, what: &str, mut command: Value) -> anyhow::Result<Vec<f64>> {
        command["do"] = json!(what);
        let commands = self.commands.as_mut().context("the peer has ended")?;
        // In one piece: written bit by bit, the peer would wake for each.
        commands.write_all(format!("{command}\n").as_bytes()).context("the peer has ended")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).context("the peer ended without an answer")?;
        if let Some(error) = answer["error"].as_str() {
            bail!("peer: {error}");
        }
        Ok(answer["seconds"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The end of its input makes it end its kernel, too.
        self.commands = None;
        let _ = self.child.wait();
    }
}
