//! Data mounts: read-only folders of the machine that an operator shares with sandboxes, under names that clients ask for. No client
//! names a path of the machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use thiserror::Error;

/// The folder in sandboxes that holds the mounts.
const ROOT: &str = "/mnt";
/// The longest name, bytes.
const MAX_NAME: usize = 64;

/// A folder, and where sandboxes see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataMount {
    pub name: String,
    /// On this machine, without symlinks.
    pub folder: PathBuf,
    /// For people and models that choose among mounts.
    pub description: Option<String>,
}

impl DataMount {
    /// The path in a sandbox.
    pub fn path(&self) -> String {
        format!("{ROOT}/{}", self.name)
    }
}

/// The mounts of a server, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataMounts(BTreeMap<String, DataMount>);

#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no mount {name:?}; {known}")]
pub struct UnknownMount {
    name: String,
    /// The mounts that there are, for people.
    known: String,
}

impl DataMounts {
    /// The mounts with these names, each once.
    ///
    /// # Errors
    /// [`UnknownMount`] for the first name that no mount has.
    pub fn find(&self, names: &[String]) -> Result<Vec<DataMount>, UnknownMount> {
        let mut found = BTreeMap::new();
        for name in names {
            let mount = self.0.get(name).ok_or_else(|| self.unknown(name))?;
            found.insert(name, mount.clone());
        }
        Ok(found.into_values().collect())
    }

    fn unknown(&self, name: &str) -> UnknownMount {
        let known = match self.0.is_empty() {
            true => "this server has none (the operator names them in cellkeep.toml or with --mount)".to_owned(),
            false => format!("available: {}", self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ")),
        };
        UnknownMount { name: name.chars().take(MAX_NAME).collect(), known }
    }

    pub fn iter(&self) -> impl Iterator<Item = &DataMount> {
        self.0.values()
    }
}

impl FromIterator<DataMount> for DataMounts {
    fn from_iter<I: IntoIterator<Item = DataMount>>(mounts: I) -> Self {
        Self(mounts.into_iter().map(|mount| (mount.name.clone(), mount)).collect())
    }
}

/// Whether a mount may have this name, which becomes the name of a folder.
pub fn is_mount_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut bytes = name.bytes();
    bytes.next().is_some_and(is_plain) && bytes.all(|byte| is_plain(byte) || b"-_".contains(&byte)) && name.len() <= MAX_NAME
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(name: &str) -> DataMount {
        DataMount { name: name.to_owned(), folder: format!("/srv/{name}").into(), description: None }
    }

    #[test]
    fn unknown_mount_names_the_known_ones() {
        let mounts: DataMounts = [mount("datasets"), mount("models")].into_iter().collect();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let found = mounts.find(&names(&["models", "datasets", "models"])).unwrap();
        assert_eq!(found.iter().map(DataMount::path).collect::<Vec<_>>(), ["/mnt/datasets", "/mnt/models"]);
        let error = mounts.find(&names(&["models", "../etc"])).unwrap_err().to_string();
        assert_eq!(error, "there is no mount \"../etc\"; available: datasets, models");
        assert!(DataMounts::default().find(&names(&["x"])).unwrap_err().to_string().contains("has none"));
        assert!(mounts.find(&names(&[&"x".repeat(1000)])).unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn names_are_plain_names_of_folders() {
        assert!(["datasets", "2026", "a-b_c"].into_iter().all(is_mount_name));
        let bad = ["", ".", "..", "a/b", "A", "-a", "a b", "é", "a\0"];
        assert!(!bad.into_iter().any(is_mount_name) && !is_mount_name(&"a".repeat(65)));
    }
}
