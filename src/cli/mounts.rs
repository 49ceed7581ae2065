//! `--mount NAME=FOLDER` and `[mounts]` of the configuration file: the folders that an operator shares with sandboxes.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, anyhow, bail};

use crate::config::{MountConfig, Paths};
use crate::policy::{DataMount, DataMounts, is_mount_name};

/// Folders of the system that are no data: files in them act, or tell of the machine.
const REFUSED: &[&str] = &["/proc", "/sys", "/dev", "/run"];

/// The most mounts of a server. A session may have all of them.
const MAX_MOUNTS: usize = 100;

/// Parses the value of `--mount`.
pub(super) fn parse(text: &str) -> Result<(String, MountConfig), String> {
    match text.split_once('=') {
        Some((name, folder)) if is_mount_name(name) && !folder.is_empty() => {
            Ok((name.to_owned(), MountConfig { path: folder.into(), description: None }))
        }
        _ => Err(format!("{text:?} is not of the form NAME=FOLDER, for example datasets=/srv/datasets")),
    }
}

/// Checks the folders, and resolves their symlinks.
///
/// # Errors
/// If one does not exist, or must not be seen by sandboxes.
pub(super) fn open(mounts: BTreeMap<String, MountConfig>, paths: &Paths) -> anyhow::Result<DataMounts> {
    if mounts.len() > MAX_MOUNTS {
        bail!("{} mounts are more than {MAX_MOUNTS}; share a folder that contains several", mounts.len());
    }
    let open = |(name, config): (String, MountConfig)| {
        let mount = open_one(&name, config, paths);
        mount.with_context(|| format!("the mount {name:?}"))
    };
    mounts.into_iter().map(open).collect()
}

fn open_one(name: &str, config: MountConfig, paths: &Paths) -> anyhow::Result<DataMount> {
    if !is_mount_name(name) {
        bail!("its name is not made of lower-case letters, digits, - and _, at most 64");
    }
    let folder = std::fs::canonicalize(&config.path).with_context(|| config.path.display().to_string())?;
    if !folder.is_dir() {
        bail!("{} is not a folder", folder.display());
    }
    if let Some(refused) = refusal(&folder, paths.data()) {
        return Err(refused.context(folder.display().to_string()));
    }
    Ok(DataMount { name: name.to_owned(), folder, description: config.description })
}

fn refusal(folder: &Path, data: &Path) -> Option<anyhow::Error> {
    let data = std::fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
    if folder == Path::new("/") || REFUSED.iter().any(|refused| folder.starts_with(refused)) {
        return Some(anyhow!("folders of the system are not shared with sandboxes; name the folder that has the data"));
    }
    let overlaps = data.starts_with(folder) || folder.starts_with(&data);
    overlaps.then(|| anyhow!("it has Cellkeep's own data ({}) in it, or is a part of it", data.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_system_and_server_are_refused() {
        let data = std::env::temp_dir().join(format!("cellkeep-mounts-{}", std::process::id()));
        std::fs::create_dir_all(data.join("kernels")).unwrap();
        let open_one = |name: &str, path: &Path| {
            let config = MountConfig { path: path.to_owned(), description: None };
            open([(name.to_owned(), config)].into(), &Paths::new(&data)).map_err(|error| format!("{error:#}"))
        };
        let (inside, above, missing) = (data.join("kernels"), std::env::temp_dir(), data.join("missing"));
        for (path, reason) in [
            ("/", "folders of the system"),
            ("/proc/self", "folders of the system"),
            ("/usr/bin/env", "not a folder"),
            (inside.to_str().unwrap(), "own data"),
            (above.to_str().unwrap(), "own data"),
            (missing.to_str().unwrap(), "No such file"),
        ] {
            let error = open_one("a", Path::new(path)).unwrap_err();
            assert!(error.contains(reason) && error.starts_with("the mount \"a\""), "{path}: {error}");
        }
        assert!(open_one("A", Path::new("/usr")).unwrap_err().contains("lower-case"));
        assert_eq!(open_one("a", Path::new("/usr/share")).unwrap().iter().next().unwrap().path(), "/mnt/a");
        std::fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn mount_option_has_name_and_folder() {
        assert_eq!(parse("a=/srv/x=y").unwrap().1.path, Path::new("/srv/x=y"));
        assert!(["a", "a=", "=/srv", "../a=/srv"].into_iter().all(|text| parse(text).is_err()));
    }
}
