//! What an executed notebook records of its run, and whether it can be repeated: `metadata.cellkeep`.
//!
//! What is the same in every run with the same kernel stands for itself; what never is (times, the run's id) is in `run`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::agent_protocol::{AnswerBody, Request};
use crate::config::Paths;
use crate::kernels::{self, Kernel};
use crate::notebook::Notebook;
use crate::sandbox::SandboxKind;
use crate::sandbox::docker::Images;
use crate::session::SessionHandle;

/// Our key in the notebook's metadata.
pub const KEY: &str = "cellkeep";
/// The file in which the kernel leaves the versions of its packages, for a moment.
const FILE: &str = ".cellkeep-packages";
/// How long the kernel may take for what nobody sees.
const PATIENCE: Duration = Duration::from_secs(60);
/// Packages of one record.
const MAX_PACKAGES: usize = 5_000;

/// What the kernel runs in: its environment and the versions of its packages.
#[derive(Clone, Debug, PartialEq)]
pub struct Surroundings {
    kernel: Value,
    environment: Value,
    packages: BTreeMap<String, String>,
}

impl Surroundings {
    /// Asks the kernel and whoever made its environment.
    ///
    /// # Errors
    /// Why it cannot be told, in words.
    pub async fn ask(paths: &Paths, kernel: &Kernel, session: &SessionHandle, kind: SandboxKind) -> Result<Self, String> {
        let info = session.kernel_info();
        let version = |object: &Value, key: &str| object.get(key).cloned().unwrap_or(Value::Null);
        let kernel_facts = json!({
            "name": kernel.name, "language": kernel.language,
            "language_version": version(info.get("language_info").unwrap_or(&Value::Null), "version"),
            "implementation": version(&info, "implementation"),
            "implementation_version": version(&info, "implementation_version"),
        });
        let environment = environment(paths, kernel, kind).await;
        Ok(Self { kernel: kernel_facts, environment, packages: packages(session, kernel).await? })
    }

    /// How they differ from those of a record, in words, one for each thing.
    pub fn differences(&self, record: &Value) -> Vec<String> {
        let mut all = Vec::new();
        for (what, now) in [("kernel", &self.kernel), ("environment", &self.environment)] {
            for (key, now) in now.as_object().into_iter().flatten() {
                let then = &record[what][key];
                if then != now {
                    all.push(format!("{what} {key}: it was {}, it is {}", shown(then), shown(now)));
                }
            }
        }
        let then: BTreeMap<&str, &str> = record["packages"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))
            .collect();
        for (name, now) in &self.packages {
            match then.get(name.as_str()) {
                Some(then) if then == now => {}
                Some(then) => all.push(format!("{name}: it was {then}, it is {now}")),
                None => all.push(format!("{name} {now} was not there")),
            }
        }
        let gone = then.iter().filter(|(name, _)| !self.packages.contains_key(**name));
        all.extend(gone.map(|(name, version)| format!("{name} {version} is missing")));
        all
    }

    /// Writes them into the record.
    pub fn write(&self, record: &mut Map<String, Value>) {
        record.insert("kernel".to_owned(), self.kernel.clone());
        record.insert("environment".to_owned(), self.environment.clone());
        record.insert("packages".to_owned(), json!(self.packages));
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "not recorded".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The record that a notebook carries.
pub fn of(notebook: &Notebook) -> Option<&Value> {
    notebook.metadata()?.get(KEY).filter(|record| record.get("packages").is_some())
}

/// What names the environment or image that a kernel's sandboxes are made of.
pub(super) async fn environment(paths: &Paths, kernel: &Kernel, kind: SandboxKind) -> Value {
    match kind {
        SandboxKind::Process => {
            let folder = kernels::environment(paths, kernel).ok();
            let name = folder.as_ref().and_then(|folder| folder.file_name()).map(|name| name.to_string_lossy().into_owned());
            let fingerprint = name.and_then(|name| name.rsplit_once('-').map(|(_, fingerprint)| fingerprint.to_owned()));
            json!({"sandbox": "process", "fingerprint": fingerprint})
        }
        SandboxKind::Docker => {
            let image = match Images::connect().await {
                Ok(images) => images.status(kernel).await.ok(),
                Err(_) => None,
            };
            json!({"sandbox": "docker", "image": image.and_then(|image| image.id)})
        }
    }
}

/// Asks the kernel for the versions of its packages, between two cells. It writes them into a file, since what silent code prints
/// is shown to nobody.
async fn packages(session: &SessionHandle, kernel: &Kernel) -> Result<BTreeMap<String, String>, String> {
    let Some(code) = lister(&kernel.language) else { return Ok(BTreeMap::new()) };
    silently(session, &code).await?;
    let get = Request::FileGet { path: FILE.to_owned(), offset: 0 };
    let answer = session.ask_agent(get, Bytes::new()).await.map_err(|error| error.to_string())?;
    let _ = session.ask_agent(Request::FileRemove { path: FILE.to_owned() }, Bytes::new()).await;
    match answer {
        (AnswerBody::File { .. }, data) => Ok(parse(&String::from_utf8_lossy(&data))),
        (AnswerBody::Refused(refused), _) => Err(refused.reason),
        _ => Err("the sandbox gave something else than a file".to_owned()),
    }
}

fn parse(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once("=="));
    pairs.take(MAX_PACKAGES).map(|(name, version)| (name.trim().to_owned(), version.trim().to_owned())).collect()
}

/// Code that writes a line `name==version` for each package, and leaves no name behind.
fn lister(language: &str) -> Option<String> {
    let path = format!("/work/{FILE}");
    Some(match language {
        "python" => format!(
            "exec('''import importlib.metadata as m\nwith open(\"{path}\", \"w\") as f:\n    for d in m.distributions(): f.write(str(d.metadata[\"Name\"]) + \"==\" + str(d.version) + \"\\\\n\")''', {{}})"
        ),
        "R" => format!(
            "local({{ p <- utils::installed.packages()[, c(\"Package\", \"Version\"), drop = FALSE]; writeLines(paste0(p[, 1], \"==\", p[, 2]), \"{path}\") }})"
        ),
        "julia" => format!(
            "let p = Base.require(Base.PkgId(Base.UUID(\"44cfe95a-1eb2-52ea-b672-e2afdf69b78f\"), \"Pkg\")); open(\"{path}\", \"w\") do f; for d in values(Base.invokelatest(p.dependencies)); println(f, d.name, \"==\", something(d.version, VERSION)); end; end; nothing; end"
        ),
        "typescript" | "javascript" => format!(
            "void Deno.writeTextFileSync(\"{path}\", Object.entries(Deno.version).map(([n, v]) => n + \"==\" + v + \"\\n\").join(\"\"));"
        ),
        "bash" => format!("printf 'bash==%s\\n' \"$BASH_VERSION\" > {path}"),
        _ => return None,
    })
}

/// The variables that a seed needs before the kernel starts.
pub fn seed_env(kernel: &Kernel, seed: u32) -> Vec<(String, String)> {
    let hash = ("PYTHONHASHSEED".to_owned(), seed.to_string());
    if kernel.language == "python" { vec![hash] } else { Vec::new() }
}

/// Seeds the generators of random numbers, before the first cell and unseen by it. `false`: this kernel has none that can be.
///
/// # Errors
/// Why it cannot be seeded, in words.
pub async fn seed(session: &SessionHandle, kernel: &Kernel, seed: u32) -> Result<bool, String> {
    let code = match kernel.language.as_str() {
        "python" => format!(
            "exec('''import random\nrandom.seed({seed})\ntry:\n    import numpy\nexcept ImportError:\n    pass\nelse:\n    numpy.random.seed({seed})''', {{}})"
        ),
        "R" => format!("set.seed({seed})"),
        "julia" => format!(
            "let r = Base.require(Base.PkgId(Base.UUID(\"9a3f8284-a2c9-5f02-9a11-845980a1fd5c\"), \"Random\")); Base.invokelatest(r.seed!, {seed}); nothing; end"
        ),
        "bash" => format!("RANDOM={seed}"),
        _ => return Ok(false),
    };
    silently(session, &code).await.map(|()| true)
}

async fn silently(session: &SessionHandle, code: &str) -> Result<(), String> {
    let reply = tokio::time::timeout(PATIENCE, session.run_silently(code)).await;
    let reply = reply.map_err(|_| "the kernel did not answer".to_owned())?.map_err(|error| error.to_string())?;
    match reply["status"].as_str() {
        Some("error") => Err(format!("{}: {}", shown(&reply["ename"]), shown(&reply["evalue"]))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named() {
        let packages = parse("numpy==2.0\npandas==3.1\nnonsense\n");
        let now = Surroundings {
            kernel: json!({"name": "python", "language_version": "3.11"}),
            environment: json!({"sandbox": "process", "fingerprint": "a"}),
            packages,
        };
        let mut record = Map::new();
        now.write(&mut record);
        let mut record = Value::Object(record);
        assert_eq!(now.differences(&record), Vec::<String>::new());
        record["environment"]["fingerprint"] = json!("b");
        record["packages"] = json!({"numpy": "1.0", "scipy": "1.1"});
        assert_eq!(
            now.differences(&record),
            [
                "environment fingerprint: it was b, it is a",
                "numpy: it was 1.0, it is 2.0",
                "pandas 3.1 was not there",
                "scipy 1.1 is missing"
            ]
        );
    }
}
