//! Version 2 of Piston's API (`/api/v2`): programs of several files, each request in a sandbox of its own.
//!
//! Source: the documentation of Piston, and nvidia-nat since 1.9, which sends `py`, `3.10.0` and a time limit with a fraction. The
//! version of a language is that of the kernel's environment, whatever version a request names.

use std::collections::BTreeMap;
use std::sync::Mutex;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{checked, command_run};
use crate::api::error::Problem;
use crate::api::extract::read_body;
use crate::api::new_session::{Create, RequestedLimits, bound_lifetime};
use crate::api::{Api, Caller, User, guard};
use crate::ids::{self, Access, SandboxId};
use crate::manager::NewProcess;

/// The time limit of a program, milliseconds.
const DEFAULT_TIMEOUT_MS: f64 = 3000.0;
/// How much longer its sandbox may live whose server ends meanwhile, seconds.
const GRACE: u64 = 60;
/// The most files, arguments, and bytes of each stream.
const MAX_FILES: usize = 100;
const MAX_ARGUMENTS: usize = 1000;
const MAX_OUTPUT: usize = 16 << 20;
const SIGNALS: &[(i32, &str)] = &[
    (2, "SIGINT"),
    (4, "SIGILL"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (9, "SIGKILL"),
    (11, "SIGSEGV"),
    (15, "SIGTERM"),
];

/// A language.
struct Runtime {
    language: &'static str,
    aliases: &'static [&'static str],
    /// Whose environment it has.
    kernel: &'static str,
    /// What runs the first file, which follows.
    command: &'static [&'static str],
    /// What prints its version.
    version: &'static [&'static str],
}

const RUNTIMES: &[Runtime] = &[
    Runtime {
        language: "python",
        aliases: &["py", "py3", "python3"],
        kernel: "python",
        command: &["python3"],
        version: &["python3", "-c", "import platform; print(platform.python_version())"],
    },
    Runtime {
        language: "javascript",
        aliases: &["js", "deno-js"],
        kernel: "deno",
        command: &["deno", "run", "--quiet", "--allow-all", "--ext=js"],
        version: &["deno", "eval", "console.log(Deno.version.deno)"],
    },
    Runtime {
        language: "typescript",
        aliases: &["ts", "deno", "deno-ts"],
        kernel: "deno",
        command: &["deno", "run", "--quiet", "--allow-all", "--ext=ts"],
        version: &["deno", "eval", "console.log(Deno.version.deno)"],
    },
    Runtime {
        language: "rscript",
        aliases: &["r"],
        kernel: "r",
        command: &["Rscript"],
        version: &["Rscript", "-e", "cat(as.character(getRversion()))"],
    },
    Runtime {
        language: "bash",
        aliases: &["sh"],
        kernel: "bash",
        command: &["/bin/bash"],
        version: &["/bin/bash", "-c", "echo ${BASH_VERSION%%(*}"],
    },
];

/// The versions of languages, by language, once they are known.
#[derive(Debug, Default)]
pub struct PistonVersions(Mutex<BTreeMap<&'static str, String>>);

impl PistonVersions {
    fn get(&self, language: &str) -> Option<String> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(language).cloned()
    }

    fn set(&self, language: &'static str, version: String) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(language, version);
    }
}

pub(super) fn routes(api: &Api) -> Router<Api> {
    let all = Router::new()
        .route("/runtimes", get(runtimes))
        .route("/packages", get(packages).post(install))
        .route("/execute", post(execute));
    checked(api, all, |detail| json!({"message": detail}))
}

/// A program of a request. Fields that Piston has for compilers are read and have no effect: nothing is compiled.
#[derive(Debug, Deserialize)]
struct Program {
    language: String,
    #[serde(default)]
    files: Vec<SourceFile>,
    #[serde(default)]
    stdin: Option<String>,
    #[serde(default)]
    args: Option<Vec<String>>,
    /// Milliseconds.
    #[serde(default)]
    run_timeout: Option<f64>,
    /// Bytes; -1 for the default.
    #[serde(default)]
    run_memory_limit: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct SourceFile {
    #[serde(default)]
    name: Option<String>,
    content: String,
    #[serde(default)]
    encoding: Option<String>,
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::bad_request("bad_field", detail)
}

impl SourceFile {
    fn bytes(&self) -> Result<Vec<u8>, Problem> {
        let decode_hex = |text: &str| hex::decode(text).map_err(|error| bad(format!("files: {error}")));
        match self.encoding.as_deref() {
            None | Some("utf8" | "utf-8") => Ok(self.content.as_bytes().to_vec()),
            Some("base64") => {
                let decoded = STANDARD.decode(&self.content).or_else(|_| URL_SAFE.decode(&self.content));
                decoded.map_err(|error| bad(format!("files: {error}")))
            }
            Some("hex") => decode_hex(&self.content),
            Some(_) => Err(bad("files[].encoding must be utf8, base64 or hex")),
        }
    }
}

/// A request with its fields checked.
struct Plan {
    runtime: &'static Runtime,
    /// By path, the program first.
    files: Vec<(String, Vec<u8>)>,
    stdin: String,
    args: Vec<String>,
    timeout_ms: f64,
    memory_mb: Option<u64>,
}

impl Plan {
    fn read(body: &[u8]) -> Result<Self, Problem> {
        let program: Program = serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?;
        let runtime = find(&program.language)?;
        if program.files.is_empty() || program.files.len() > MAX_FILES {
            return Err(bad(format!("files is required as an array of 1 to {MAX_FILES} files")));
        }
        let args = program.args.unwrap_or_default();
        if args.len() > MAX_ARGUMENTS || args.iter().any(|arg| arg.contains('\0')) {
            return Err(bad(format!("args is an array of at most {MAX_ARGUMENTS} texts without NUL")));
        }
        let timeout_ms = program.run_timeout.unwrap_or(DEFAULT_TIMEOUT_MS);
        if timeout_ms.is_nan() || timeout_ms <= 0.0 {
            return Err(bad("run_timeout must be a positive number of milliseconds"));
        }
        let memory = program.run_memory_limit.filter(|bytes| *bytes > 0.0);
        let named = |(index, file): (usize, &SourceFile)| {
            let name = file.name.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| format!("file{index}.code"));
            Ok((name, file.bytes()?))
        };
        Ok(Self {
            runtime,
            files: program.files.iter().enumerate().map(named).collect::<Result<_, Problem>>()?,
            stdin: program.stdin.unwrap_or_default(),
            args,
            timeout_ms,
            memory_mb: memory.map(|bytes| (bytes / f64::from(1 << 20)).ceil() as u64),
        })
    }
}

fn find(language: &str) -> Result<&'static Runtime, Problem> {
    let known = |runtime: &&Runtime| runtime.language == language || runtime.aliases.contains(&language);
    RUNTIMES.iter().find(known).ok_or_else(|| {
        let known: Vec<&str> = RUNTIMES.iter().map(|runtime| runtime.language).collect();
        bad(format!("{language} runtime is unknown; the runtimes are {}", known.join(", ")))
    })
}

async fn execute(State(api): State<Api>, User(caller): User, request: Request) -> Result<Response, Problem> {
    let plan = Plan::read(&read_body(request).await?)?;
    let _slot = guard::open_stream(&api, &caller.identity)?;
    let sandbox = Sandbox::create(&api, &caller, plan.runtime, plan.memory_mb, plan.timeout_ms / 1000.0).await?;
    let ran = run(&api, &sandbox, &plan).await;
    sandbox.discard(&api);
    let version = version(&api, &caller, plan.runtime).await.unwrap_or_default();
    Ok(Json(json!({"language": plan.runtime.language, "version": version, "run": ran?})).into_response())
}

/// Runs the program in its sandbox, and describes its end.
async fn run(api: &Api, sandbox: &Sandbox, plan: &Plan) -> Result<Value, Problem> {
    for (name, bytes) in &plan.files {
        sandbox.write(api, name, bytes).await?;
    }
    let stdin = match plan.stdin.as_str() {
        "" => "/dev/null".to_owned(),
        text => {
            let name = format!(".stdin-{}", ids::random_uuid());
            sandbox.write(api, &name, text.as_bytes()).await?;
            name
        }
    };
    // A path that begins with a dash is no option.
    let main = format!("./{}", plan.files.first().map(|(name, _)| name.as_str()).unwrap_or_default());
    let script = "exec < \"$1\"; shift; exec \"$@\"";
    let mut command: Vec<String> = ["/bin/bash", "-c", script, "-", &stdin].map(str::to_owned).to_vec();
    command.extend(plan.runtime.command.iter().map(|&part| part.to_owned()).chain([main]));
    command.extend(plan.args.iter().cloned());
    let timeout_ms = Some(plan.timeout_ms.ceil().max(1.0) as u64);
    let process = NewProcess { command, timeout_ms, ..NewProcess::default() };
    let ran = command_run::run(api, &sandbox.id, &sandbox.access, process, MAX_OUTPUT).await?;
    let (stdout, stderr) = (ran.stdout.text(), ran.stderr.text());
    let signal = ran.exit.signal.map(name_of_signal);
    let (status, message) = if ran.exit.timed_out {
        (Some("TO"), Some("Time limit exceeded (wall clock)"))
    } else if ran.exit.out_of_memory {
        (Some("RE"), Some("Memory limit exceeded"))
    } else if ran.stdout.is_cut || ran.stderr.is_cut {
        (Some("OL"), Some("Output limit exceeded"))
    } else if signal.is_some() {
        (Some("SG"), None)
    } else {
        ((ran.exit.code != Some(0)).then_some("RE"), None)
    };
    Ok(json!({
        "stdout": stdout, "stderr": stderr, "output": format!("{stdout}{stderr}"), "code": ran.exit.code, "signal": signal,
        "message": message, "status": status, "wall_time": ran.wall.as_secs_f64() * 1000.0, "cpu_time": null, "memory": null,
    }))
}

fn name_of_signal(number: i32) -> String {
    let known = SIGNALS.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("SIG{number}"), |(_, name)| (*name).to_owned())
}

/// The sandbox of one request.
struct Sandbox {
    id: SandboxId,
    access: Access,
}

impl Sandbox {
    async fn create(
        api: &Api,
        caller: &Caller,
        runtime: &Runtime,
        memory_mb: Option<u64>,
        timeout: f64,
    ) -> Result<Self, Problem> {
        let create = Create {
            kernel: Some(runtime.kernel.to_owned()),
            limits: Some(RequestedLimits::of_execution(memory_mb, None)),
            timeout_seconds: Some(timeout),
            ..Create::default()
        };
        let mut new = create.validate(&api.sessions)?;
        bound_lifetime(&mut new, &api.sessions, GRACE);
        let id = api.sessions.create_one_shot_sandbox(&caller.identity.principal, new).await?;
        Ok(Self { id, access: caller.access() })
    }

    async fn write(&self, api: &Api, name: &str, bytes: &[u8]) -> Result<(), Problem> {
        let workspace = api.sessions.workspace_of_sandbox(&self.id, &self.access)?;
        workspace.write_bytes(name, Bytes::copy_from_slice(bytes)).await?;
        Ok(())
    }

    /// Deletes it in the background.
    fn discard(self, api: &Api) {
        api.sessions.finish_one_shot_sandbox(self.id, self.access);
    }
}

/// The version of a language, which its own environment says once.
async fn version(api: &Api, caller: &Caller, runtime: &'static Runtime) -> Result<String, Problem> {
    if let Some(known) = api.piston_versions.get(runtime.language) {
        return Ok(known);
    }
    let sandbox = Sandbox::create(api, caller, runtime, None, DEFAULT_TIMEOUT_MS / 1000.0).await?;
    let command = runtime.version.iter().map(|&part| part.to_owned()).collect();
    let process = NewProcess { command, timeout_ms: Some(DEFAULT_TIMEOUT_MS as u64), ..NewProcess::default() };
    let ran = command_run::run(api, &sandbox.id, &sandbox.access, process, MAX_OUTPUT).await;
    sandbox.discard(api);
    let version = ran?.stdout.text().trim().to_owned();
    if !version.is_empty() {
        api.piston_versions.set(runtime.language, version.clone());
    }
    Ok(version)
}

/// The languages whose kernels this server can run.
async fn available(api: &Api, caller: &Caller) -> Vec<(&'static Runtime, String)> {
    let kernels = api.sessions.kernels().await;
    let mut all = Vec::new();
    for runtime in RUNTIMES {
        let is_ready = kernels.iter().any(|(kernel, sandboxes)| kernel.name == runtime.kernel && !sandboxes.is_empty());
        if is_ready && let Ok(version) = version(api, caller, runtime).await {
            all.push((runtime, version));
        }
    }
    all
}

async fn runtimes(State(api): State<Api>, User(caller): User) -> Json<Value> {
    let described = available(&api, &caller)
        .await
        .into_iter()
        .map(|(runtime, version)| json!({"language": runtime.language, "version": version, "aliases": runtime.aliases}));
    Json(described.collect())
}

async fn packages(State(api): State<Api>, User(caller): User) -> Json<Value> {
    let described = available(&api, &caller)
        .await
        .into_iter()
        .map(|(runtime, version)| json!({"language": runtime.language, "language_version": version, "installed": true}));
    Json(described.collect())
}

#[derive(Debug, Deserialize)]
struct Package {
    language: String,
}

/// Languages are installed by the operator. What is there needs nothing more.
async fn install(State(api): State<Api>, User(caller): User, request: Request) -> Result<Response, Problem> {
    let package: Package = serde_json::from_slice(&read_body(request).await?).map_err(|error| bad(error.to_string()))?;
    let runtime = find(&package.language)?;
    let available = available(&api, &caller).await;
    match available.into_iter().find(|(known, _)| known.language == runtime.language) {
        Some((_, version)) => Ok(Json(json!({"language": runtime.language, "version": version})).into_response()),
        None => {
            let detail = format!("the operator installs it: cellkeep kernels install {}", runtime.kernel);
            Err(Problem::new(StatusCode::BAD_REQUEST, "no_kernel", detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_checked() {
        let refusal = |body: Value| {
            Plan::read(body.to_string().as_bytes()).err().map(|problem| json!(problem.view())["detail"].to_string())
        };
        assert!(
            refusal(json!({"language": "cobol", "files": [{"content": ""}]})).unwrap().contains("cobol runtime is unknown")
        );
        assert!(refusal(json!({"language": "py", "files": []})).unwrap().contains("files"));
        assert!(refusal(json!({"language": "py", "files": [{"content": "!", "encoding": "base64"}]})).is_some());
        assert!(refusal(json!({"language": "py", "files": [{"content": ""}], "args": ["\0"]})).is_some());
        assert!(
            refusal(json!({"language": "py", "files": [{"content": ""}], "run_timeout": -1}))
                .unwrap()
                .contains("run_timeout")
        );
        let files = json!([{"content": "6869", "encoding": "hex"}, {"name": "b", "content": ""}]);
        let body =
            json!({"language": "py", "version": "3.10.0", "files": files, "run_timeout": 500.5, "run_memory_limit": -1});
        let plan = Plan::read(body.to_string().as_bytes()).unwrap();
        assert_eq!((plan.runtime.language, plan.timeout_ms, plan.memory_mb), ("python", 500.5, None));
        assert_eq!(plan.files, [("file0.code".to_owned(), b"hi".to_vec()), ("b".to_owned(), Vec::new())]);
    }
}
