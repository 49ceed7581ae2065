//! The kernels' images: which there are, and building them from the folders that this binary carries.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bollard::Docker;
use bollard::models::BuildInfo;
use bollard::query_parameters::{BuildImageOptions, BuildImageOptionsBuilder};
use bytes::Bytes;
use futures_util::StreamExt;
use thiserror::Error;

use super::engine::{Client, call, explain};
use super::profile;
use crate::kernels::{self, KernelSpec, Status};
use crate::sandbox::SandboxError;

/// Holds [`KernelSpec::fingerprint`], by which an image of another version is told.
const LABEL_FINGERPRINT: &str = "cellkeep.fingerprint";
/// How many of its last lines a failing step is shown with.
const SHOWN_LINES: usize = 30;
/// How long the engine may take to begin with a build; the build itself may take as long as it needs.
const BUILD_BEGIN_DEADLINE: Duration = Duration::from_secs(600);

/// The image of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its name and tag.
    pub reference: String,
    /// How it stands.
    pub status: Status,
    /// Its content's digest, as the engine names it (`sha256:...`).
    pub id: Option<String>,
    /// Its size in bytes, where there is one.
    pub size_bytes: Option<u64>,
}

/// How to build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// Every step anew, also where the engine remembers its result, and also if the image is up to date.
    pub no_cache: bool,
    /// With the network of this machine instead of the engine's own, where that one reaches nothing.
    pub host_network: bool,
}

/// Why an image was not built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The engine cannot be used.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The image that the build starts from cannot be had.
    #[error("the base image cannot be had: {reason}\n  {remedy}")]
    Base {
        /// What the engine said.
        reason: String,
        /// What mends it.
        remedy: String,
    },
    /// A step failed.
    #[error("{step}\n{reason}\nThe end of its output:\n{output}")]
    Step {
        /// Which, as the engine names it.
        step: String,
        /// What the engine said.
        reason: String,
        /// The last lines that were printed.
        output: String,
    },
    /// The files of the kernel could not be packed.
    #[error("cannot pack the kernel's files: {0}")]
    Pack(#[from] io::Error),
}

/// Shows and builds images.
pub struct Images {
    docker: Docker,
}

impl Images {
    /// The images of this machine's engine.
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`].
    pub async fn connect() -> Result<Self, SandboxError> {
        Ok(Self { docker: Client::open().await?.docker })
    }

    /// How the image of a kernel stands.
    ///
    /// # Errors
    /// [`SandboxError::Engine`].
    pub async fn status(&self, kernel: &KernelSpec) -> Result<Image, SandboxError> {
        let reference = profile::image(&kernel.name);
        match call(self.docker.inspect_image(&reference)).await {
            Ok(image) => {
                let labels = image.config.and_then(|config| config.labels).unwrap_or_default();
                let fresh = labels.get(LABEL_FINGERPRINT) == Some(&kernel.fingerprint());
                let status = if fresh { Status::Ready } else { Status::Stale };
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

    /// Builds a kernel's image, whether or not there is one. `progress` is told each line: those that begin a step start
    /// with `Step `.
    ///
    /// # Errors
    /// [`BuildError`]; an earlier image then stays as it was.
    pub async fn build(
        &self,
        kernel: &KernelSpec,
        options: BuildOptions,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), BuildError> {
        let context = Bytes::from(packed(kernel)?);
        let docker = self.docker.clone().with_timeout(BUILD_BEGIN_DEADLINE);
        let mut answers =
            Box::pin(docker.build_image(build_options(kernel, options), None, Some(bollard::body_full(context))));
        let mut transcript = Transcript::default();
        while let Some(answer) = answers.next().await {
            let failure = match answer {
                Ok(info) => {
                    transcript.hear(&info, progress);
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

fn build_options(kernel: &KernelSpec, options: BuildOptions) -> BuildImageOptions {
    let labels = HashMap::from([(LABEL_FINGERPRINT, kernel.fingerprint())]);
    let builder = BuildImageOptionsBuilder::new()
        .dockerfile("Dockerfile")
        .t(&profile::image(&kernel.name))
        .labels(&labels)
        .nocache(options.no_cache)
        .rm(true)
        .forcerm(true);
    if options.host_network { builder.networkmode("host").build() } else { builder.build() }
}

/// The kernel's folder as a tar archive: always the same bytes, so that the engine knows what it has built before.
fn packed(kernel: &KernelSpec) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, data) in kernels::context(kernel) {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, name, &data[..])?;
    }
    archive.into_inner()
}

/// What a build has printed so far, as far as it may have to be shown.
#[derive(Default)]
struct Transcript {
    step: String,
    /// The build arguments and their values, as Dockerfiles write them.
    arguments: Vec<(String, String)>,
    lines: Vec<String>,
}

impl Transcript {
    fn hear(&mut self, info: &BuildInfo, progress: &mut dyn FnMut(&str)) {
        let said = [info.stream.as_deref(), info.status.as_deref()];
        // A progress bar overwrites its line; its last state is what counts.
        let lines = said
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
                self.lines.drain(..self.lines.len().saturating_sub(SHOWN_LINES));
            }
            progress(line);
        }
    }

    fn failure(self, reason: String) -> BuildError {
        // Both engines name a step as "... : FROM image" or "...: FROM image".
        match self.step.split_once("FROM ").and_then(|(_, rest)| rest.split_whitespace().next()) {
            Some(image) => BuildError::Base { reason, remedy: self.base_remedy(image) },
            None => BuildError::Step { step: self.step, reason, output: self.lines.join("\n") },
        }
    }

    fn base_remedy(&self, image: &str) -> String {
        let image = self.arguments.iter().fold(image.to_owned(), |image, (name, value)| image.replace(name, value));
        let pull = format!("where an image registry can be reached, run: docker pull {image}");
        match image.starts_with("debian:") {
            true => format!(
                "{pull}\n  elsewhere make it from Debian's packages: scripts/setup-docker.sh in Cellkeep's sources does"
            ),
            false => pull,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> BuildInfo {
        BuildInfo { stream: Some(text.to_owned()), ..BuildInfo::default() }
    }

    #[test]
    fn the_context_is_the_same_bytes_every_time() {
        let kernel = kernels::find("python").unwrap();
        let bytes = packed(kernel).unwrap();
        assert_eq!(bytes, packed(kernel).unwrap());
        let mut archive = tar::Archive::new(&bytes[..]);
        let names: Vec<_> = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert!(names.is_sorted() && names.contains(&"Dockerfile".into()), "{names:?}");
    }

    #[test]
    fn a_failing_step_is_shown_with_its_last_lines() {
        let mut transcript = Transcript::default();
        let mut told = Vec::new();
        let mut progress = |line: &str| told.push(line.to_owned());
        transcript.hear(&said("Step 1/2 : FROM debian:bookworm-slim\n"), &mut progress);
        transcript.hear(&said("Step 2/2 : RUN false\n"), &mut progress);
        for line in 0..100 {
            transcript.hear(&said(&format!("10%\r20%\rline {line}\n")), &mut progress);
        }
        let error = transcript.failure("returned 1".into()).to_string();
        assert_eq!(told.len(), 102);
        assert!(error.contains("RUN false") && error.contains("line 99") && !error.contains("line 69\n"), "{error}");
    }

    #[test]
    fn a_missing_base_image_is_told_from_a_failing_step() {
        let remedy = |steps: &[&str]| {
            let mut transcript = Transcript::default();
            steps.iter().for_each(|step| transcript.hear(&said(step), &mut |_| {}));
            transcript.failure("pull access denied".into()).to_string()
        };
        let debian = remedy(&["Step 1/2 : FROM debian:bookworm-slim AS build\n"]);
        assert!(debian.contains("docker pull debian:bookworm-slim\n") && debian.contains("setup-docker.sh"), "{debian}");
        let julia = remedy(&["Step 1/2 : ARG BASE=julia:1.11\n", "Step 2/2 : FROM ${BASE}\n"]);
        assert!(julia.ends_with("docker pull julia:1.11"), "{julia}");
    }
}
