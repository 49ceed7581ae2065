//! The record of a run in the metadata of an executed notebook (`metadata.cellkeep`), and its comparison with a later
//! environment.
//!
//! Values that are the same in every run with the same environment are at the top level; values of one run (times, its id)
//! are in `run`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::package_sets;
use super::packages::list_packages;
use super::silent_execution::plain_text;
use crate::config::Paths;
use crate::kernels::{self, KernelSpec};
use crate::notebook::Notebook;
use crate::sandbox::docker::Images;
use crate::sandbox::{SandboxKind, SandboxRecord};
use crate::session::SessionHandle;

/// The key in the notebook's metadata.
pub const KEY: &str = "cellkeep";

/// A kernel with its environment and the versions of its packages.
#[derive(Clone, Debug, PartialEq)]
pub struct EnvironmentRecord {
    kernel: Value,
    environment: Value,
    packages: BTreeMap<String, String>,
}

impl EnvironmentRecord {
    /// Collects the record from the kernel and from the files of its environment.
    pub async fn collect(
        paths: &Paths,
        kernel: &KernelSpec,
        session: &SessionHandle,
        sandbox: &SandboxRecord,
    ) -> Result<Self, String> {
        let info = session.kernel_info();
        let field = |object: &Value, key: &str| object.get(key).cloned().unwrap_or(Value::Null);
        let kernel_info = json!({
            "name": kernel.name, "language": kernel.language,
            "language_version": field(info.get("language_info").unwrap_or(&Value::Null), "version"),
            "implementation": field(&info, "implementation"),
            "implementation_version": field(&info, "implementation_version"),
        });
        let environment = environment_id(paths, kernel, sandbox).await;
        Ok(Self { kernel: kernel_info, environment, packages: list_packages(session, kernel).await? })
    }

    /// The differences from an earlier record, one sentence each.
    pub fn differences(&self, record: &Value) -> Vec<String> {
        let mut all = Vec::new();
        for (section, current) in [("kernel", &self.kernel), ("environment", &self.environment)] {
            for (key, now) in current.as_object().into_iter().flatten() {
                let then = &record[section][key];
                if then != now {
                    all.push(format!("{section} {key}: it was {}, it is {}", plain_text(then), plain_text(now)));
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
        let missing = then.iter().filter(|(name, _)| !self.packages.contains_key(**name));
        all.extend(missing.map(|(name, version)| format!("{name} {version} is missing")));
        all
    }

    pub fn write(&self, record: &mut Map<String, Value>) {
        record.insert("kernel".to_owned(), self.kernel.clone());
        record.insert("environment".to_owned(), self.environment.clone());
        record.insert("packages".to_owned(), json!(self.packages));
    }
}

/// The record in a notebook's metadata.
pub fn record_in(notebook: &Notebook) -> Option<&Value> {
    notebook.metadata()?.get(KEY).filter(|record| record.get("packages").is_some())
}

/// Identifies the environment or image that a sandbox uses, with its package set.
pub(super) async fn environment_id(paths: &Paths, kernel: &KernelSpec, sandbox: &SandboxRecord) -> Value {
    let mut id = base_id(paths, kernel, sandbox.kind).await;
    let set = sandbox.package_set.as_deref().and_then(|set| package_sets::read(paths, set));
    if let (Some(fields), Some(set)) = (id.as_object_mut(), set) {
        fields.insert("package_lock".to_owned(), set.lock_hash().into());
    }
    id
}

/// Identifies the environment or image of a kernel.
async fn base_id(paths: &Paths, kernel: &KernelSpec, kind: SandboxKind) -> Value {
    match kind {
        SandboxKind::Process => {
            let folder = kernels::environment(paths, kernel).ok();
            let name = folder.as_ref().and_then(|folder| folder.file_name()).map(|name| name.to_string_lossy().into_owned());
            let fingerprint = name.and_then(|name| name.rsplit_once('@').map(|(_, fingerprint)| fingerprint.to_owned()));
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

#[cfg(test)]
mod tests {
    use super::super::packages::parse_list;
    use super::*;

    #[test]
    fn changed_packages_and_environments_are_reported() {
        let packages = parse_list("numpy==2.0\npandas==3.1\nnonsense\n");
        let now = EnvironmentRecord {
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
