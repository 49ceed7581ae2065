//! Inspects the images of kernels, and builds them from the embedded kernel folders.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bollard::Docker;
use bollard::models::BuildInfo;
use bollard::query_parameters::{BuildImageOptions, BuildImageOptionsBuilder};
use futures_util::StreamExt;
use thiserror::Error;

use super::engine::{Client, call, explain};
use crate::kernels::{self, KernelSpec, Status};
use crate::sandbox::SandboxError;

/// Holds [`KernelSpec::fingerprint`]; an image with another one is stale.
const LABEL_FINGERPRINT: &str = "cellkeep.fingerprint";
/// How many of its last lines the error of a failed step contains.
const MAX_LINES: usize = 30;
/// Timeout until the engine starts a build; the build itself has none.
const BUILD_START_TIMEOUT: Duration = Duration::from_secs(600);

/// The image of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Name and tag.
    pub reference: String,
    pub status: Status,
    /// The digest of its content (`sha256:...`).
    pub id: Option<String>,
    pub size_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// Ignore the engine's build cache, and build even if the image is up to date.
    pub no_cache: bool,
    /// Use the host's network, where the engine's own reaches nothing.
    pub host_network: bool,
    /// Values of the Dockerfile's `ARG`s.
    pub arguments: HashMap<String, String>,
}

#[derive(Debug, Error)]
pub enum BuildError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("the base image is not available: {reason}\n  {remedy}")]
    Base { reason: String, remedy: String },
    #[error("{step}\n{reason}\nThe end of its output:\n{output}")]
    Step {
        /// As the engine names it.
        step: String,
        reason: String,
        /// The last lines that it printed.
        output: String,
    },
    #[error("cannot pack the kernel's files: {0}")]
    Pack(#[from] io::Error),
}

/// The images of the container engine.
pub struct Images {
    pub(super) docker: Docker,
}

impl Images {
    /// Connects to the engine of this machine.
    pub async fn connect() -> Result<Self, SandboxError> {
        Ok(Self { docker: Client::open().await?.docker })
    }

    /// Inspects the image of a kernel.
    pub async fn status(&self, kernel: &KernelSpec) -> Result<Image, SandboxError> {
        let Some(reference) = kernel.image() else {
            return Ok(Image { reference: "-".to_owned(), status: Status::Missing, id: None, size_bytes: None });
        };
        match call(self.docker.inspect_image(&reference)).await {
            Ok(image) => {
                let labels = image.config.and_then(|config| config.labels).unwrap_or_default();
                let fresh = labels.get(LABEL_FINGERPRINT) == Some(&kernel.fingerprint());
                let status = match fresh {
                    _ if kernel.is_own() => Status::Own,
                    true => Status::Ready,
                    false => Status::Stale,
                };
                Ok(Image {
                    reference,
                    status,
                    id: image.id,
                    size_bytes: image.size.and_then(|size| u64::try_from(size).ok()),
                })
            }
            Err(error) if error.status == Some(404) => {
                Ok(Image { reference, status: Status::Missing, id: None, size_bytes: None })
            }
            Err(error) => Err(error.when(format!("cannot inspect the image {reference}"))),
        }
    }

    /// Builds a kernel's image. `progress` receives each line; the first line of a step starts with `Step `.
    ///
    /// # Errors
    /// [`BuildError`]; an existing image stays unchanged.
    pub async fn build(
        &self,
        kernel: &KernelSpec,
        options: &BuildOptions,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), BuildError> {
        let context = archive(kernels::context(kernel))?;
        let label = (LABEL_FINGERPRINT, kernel.fingerprint());
        self.run_build(&kernel.image().unwrap_or_default(), label, context, options, progress).await
    }

    /// Builds an image with this name and label from an archive with a Dockerfile.
    pub(super) async fn run_build(
        &self,
        reference: &str,
        label: (&str, String),
        context: Vec<u8>,
        options: &BuildOptions,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), BuildError> {
        let docker = self.docker.clone().with_timeout(BUILD_START_TIMEOUT);
        let request = build_options(reference, label, options);
        let mut answers = Box::pin(docker.build_image(request, None, Some(bollard::body_full(context.into()))));
        let given = options.arguments.iter().map(|(name, value)| (format!("${{{name}}}"), value.clone()));
        let mut transcript = Transcript { arguments: given.collect(), ..Transcript::default() };
        while let Some(answer) = answers.next().await {
            let failure = match answer {
                Ok(info) => {
                    transcript.add(&info, progress);
                    info.error_detail.and_then(|detail| detail.message)
                }
                Err(error) => Some(explain(&error)),
            };
            if let Some(reason) = failure {
                return Err(transcript.failure(reason));
            }
        }
        Ok(())
    }
}

/// The command that gets the image of a kernel.
pub fn how_to_get(kernel: &KernelSpec) -> String {
    match kernel.image() {
        _ if !kernel.is_own() => format!("run: cellkeep images build {}", kernel.name),
        Some(image) => format!("build {image}, or run: docker pull {image}"),
        None => format!("add it again with an image: cellkeep kernels add FOLDER --name {} --image IMAGE", kernel.name),
    }
}

fn build_options(reference: &str, (name, value): (&str, String), options: &BuildOptions) -> BuildImageOptions {
    let builder = BuildImageOptionsBuilder::new()
        .dockerfile("Dockerfile")
        .t(reference)
        .labels(&HashMap::from([(name, value)]))
        .buildargs(&options.arguments)
        .nocache(options.no_cache)
        .rm(true)
        .forcerm(true);
    if options.host_network { builder.networkmode("host").build() } else { builder.build() }
}

/// Files as a tar archive. Deterministic, so that the engine's build cache works.
pub(super) fn archive(files: impl IntoIterator<Item = (String, impl AsRef<[u8]>)>) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let data = data.as_ref();
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, name, data)?;
    }
    archive.into_inner()
}

/// The current step of a build and its last lines, for error messages.
#[derive(Default)]
struct Transcript {
    step: String,
    /// The build arguments (`${NAME}`) and their values.
    arguments: Vec<(String, String)>,
    lines: Vec<String>,
}

impl Transcript {
    fn add(&mut self, info: &BuildInfo, progress: &mut dyn FnMut(&str)) {
        let texts = [info.stream.as_deref(), info.status.as_deref()];
        // Of a progress bar, which overwrites its line, only the last state is kept.
        let lines = texts
            .into_iter()
            .flatten()
            .flat_map(str::lines)
            .filter_map(|line| line.rsplit('\r').find(|part| !part.is_empty()));
        for line in lines.map(str::trim_end).filter(|line| !line.is_empty()) {
            if line.starts_with("Step ") || line.starts_with("STEP ") {
                self.step = line.to_owned();
                let argument = line.split_once("ARG ").and_then(|(_, argument)| argument.split_once('='));
                self.arguments.extend(argument.map(|(name, value)| (format!("${{{name}}}"), value.to_owned())));
                self.lines.clear();
            } else {
                self.lines.push(line.to_owned());
                self.lines.drain(..self.lines.len().saturating_sub(MAX_LINES));
            }
            progress(line);
        }
    }

    fn failure(self, reason: String) -> BuildError {
        // The engines name a step "... : FROM image" or "...: FROM image".
        match self.step.split_once("FROM ").and_then(|(_, rest)| rest.split_whitespace().next()) {
            Some(image) => BuildError::Base { reason, remedy: self.base_remedy(image) },
            None => BuildError::Step { step: self.step, reason, output: self.lines.join("\n") },
        }
    }

    fn base_remedy(&self, image: &str) -> String {
        let image = self.arguments.iter().fold(image.to_owned(), |image, (name, value)| image.replace(name, value));
        let pull = format!("with access to an image registry, run: docker pull {image}");
        match image.starts_with("debian:") {
            true => format!(
                "{pull}\n  otherwise build it from Debian packages with scripts/setup-docker.sh in Cellkeep's sources"
            ),
            false => pull,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> BuildInfo {
        BuildInfo { stream: Some(text.to_owned()), ..BuildInfo::default() }
    }

    #[test]
    fn build_context_is_deterministic() {
        let kernel = kernels::find("python").unwrap();
        let bytes = archive(kernels::context(kernel)).unwrap();
        assert_eq!(bytes, archive(kernels::context(kernel)).unwrap());
        let mut archive = tar::Archive::new(&bytes[..]);
        let names: Vec<_> = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert!(names.is_sorted() && names.contains(&"Dockerfile".into()), "{names:?}");
    }

    #[test]
    fn failed_step_is_reported_with_last_lines() {
        let mut transcript = Transcript::default();
        let mut lines = Vec::new();
        let mut progress = |line: &str| lines.push(line.to_owned());
        transcript.add(&line("Step 1/2 : FROM debian:bookworm-slim\n"), &mut progress);
        transcript.add(&line("Step 2/2 : RUN false\n"), &mut progress);
        for number in 0..100 {
            transcript.add(&line(&format!("10%\r20%\rline {number}\n")), &mut progress);
        }
        let error = transcript.failure("returned 1".into()).to_string();
        assert_eq!(lines.len(), 102);
        assert!(error.contains("RUN false") && error.contains("line 99") && !error.contains("line 69\n"), "{error}");
    }

    #[test]
    fn missing_base_image_is_reported_as_such() {
        let remedy = |steps: &[&str]| {
            let mut transcript = Transcript::default();
            steps.iter().for_each(|step| transcript.add(&line(step), &mut |_| {}));
            transcript.failure("pull access denied".into()).to_string()
        };
        let debian = remedy(&["Step 1/2 : FROM debian:bookworm-slim AS build\n"]);
        assert!(debian.contains("docker pull debian:bookworm-slim\n") && debian.contains("setup-docker.sh"), "{debian}");
        let julia = remedy(&["Step 1/2 : ARG BASE=julia:1.11\n", "Step 2/2 : FROM ${BASE}\n"]);
        assert!(julia.ends_with("docker pull julia:1.11"), "{julia}");
    }
}
