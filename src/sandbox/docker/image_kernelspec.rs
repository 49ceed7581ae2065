//! Reads the kernelspec of an operator's image.

use std::collections::BTreeMap;
use std::io;

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{DownloadFromContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use futures_util::StreamExt;

use super::engine::{call, explain};
use super::images::Images;
use crate::sandbox::SandboxError;

/// Where images have their kernelspecs: ours, then Jupyter's own paths.
const KERNEL_JSON: &str = "/opt/kernel/kernel.json";
const KERNELSPECS: &[&str] =
    &["/usr/local/share/jupyter/kernels", "/opt/conda/share/jupyter/kernels", "/usr/share/jupyter/kernels"];
/// The most bytes that are read from an image.
const MAX_ARCHIVE: usize = 32 << 20;

impl Images {
    /// The files of the one kernelspec that an image has: `kernel.json` and those beside it, by name.
    ///
    /// # Errors
    /// If the image is not there, or has none or several.
    pub async fn kernelspec(&self, image: &str) -> Result<Vec<(String, Vec<u8>)>, SandboxError> {
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            // Never started.
            entrypoint: Some(vec!["/none".to_owned()]),
            ..ContainerCreateBody::default()
        };
        let created = call(self.docker.create_container(None, body)).await;
        let container = created.map_err(|error| error.when(format!("cannot look into the image {image}")))?.id;
        let found = self.kernelspec_in(&container).await;
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        let removed = call(self.docker.remove_container(&container, Some(options))).await;
        removed.map_err(|error| error.when("cannot remove the container"))?;
        found.map_err(|reason| SandboxError::Engine { doing: format!("the image {image}"), reason })
    }

    async fn kernelspec_in(&self, container: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
        if let Some(files) = self.files(container, KERNEL_JSON).await? {
            let mut files: Vec<_> = files.into_iter().collect();
            // Beside ours there is a whole environment, of which only this file is part of the kernelspec.
            let spec: serde_json::Value = serde_json::from_slice(&files[0].1).map_err(|error| error.to_string())?;
            if let Some(startup) = spec["metadata"]["cellkeep"]["startup_file"].as_str().filter(|name| !name.contains('/')) {
                files.extend(self.files(container, &format!("/opt/kernel/{startup}")).await?.unwrap_or_default());
            }
            return Ok(files);
        }
        let mut all = Vec::new();
        for folder in KERNELSPECS {
            all.extend(self.files(container, folder).await?.unwrap_or_default());
        }
        let split = |path: &str| path.rsplit_once('/').map(|(folder, name)| (folder.to_owned(), name.to_owned()));
        let specs: Vec<_> =
            all.iter().filter_map(|(path, _)| split(path)).filter(|(_, name)| name == "kernel.json").collect();
        match &specs[..] {
            [(folder, _)] => {
                let of_spec = all.into_iter().filter_map(|(path, bytes)| {
                    let (parent, name) = split(&path)?;
                    (parent == *folder).then_some((name, bytes))
                });
                Ok(of_spec.collect())
            }
            [] => Err(format!("it has no kernelspec: neither {KERNEL_JSON} nor one in {}", KERNELSPECS.join(", "))),
            several => {
                let names: Vec<_> = several.iter().map(|(folder, _)| folder.as_str()).collect();
                Err(format!("it has several kernelspecs ({}); copy one to this machine and add that", names.join(", ")))
            }
        }
    }

    /// The regular files at a path of a container, by their path relative to its parent. `None` if there is nothing.
    async fn files(&self, container: &str, path: &str) -> Result<Option<BTreeMap<String, Vec<u8>>>, String> {
        let options = DownloadFromContainerOptionsBuilder::new().path(path).build();
        let mut chunks = Box::pin(self.docker.download_from_container(container, Some(options)));
        let mut archive = Vec::new();
        while let Some(chunk) = chunks.next().await {
            match chunk {
                Ok(chunk) if archive.len() + chunk.len() <= MAX_ARCHIVE => archive.extend_from_slice(&chunk),
                Ok(_) => return Err(format!("{path} has more than {} MB", MAX_ARCHIVE >> 20)),
                Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => return Ok(None),
                Err(error) => return Err(explain(&error)),
            }
        }
        let read = || -> io::Result<BTreeMap<String, Vec<u8>>> {
            let mut files = BTreeMap::new();
            for entry in tar::Archive::new(&archive[..]).entries()? {
                let mut entry = entry?;
                if entry.header().entry_type().is_file() {
                    let name = entry.path()?.to_string_lossy().into_owned();
                    let mut bytes = Vec::new();
                    io::Read::read_to_end(&mut entry, &mut bytes)?;
                    files.insert(name, bytes);
                }
            }
            Ok(files)
        };
        let files = read().map_err(|error| error.to_string())?;
        Ok((!files.is_empty()).then_some(files))
    }
}
