//! Stage 3: makes the session, asks the kernel about its environment, and seeds it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::parameterize::ParameterizedNotebook;
use super::progress::NotebookProgress;
use super::settings::Settings;
use crate::cli::Failure;
use crate::cli::signals::{ForwardingGuard, SignalForwarder};
use crate::kernels::KernelSpec;
use crate::manager::Session;
use crate::manager::run_record::EnvironmentRecord;
use crate::manager::seed;
use crate::sandbox::MountedPackages;

/// A kernel that waits for the first cell.
pub(super) struct StartedKernel {
    pub session: Session,
    /// What `metadata.cellkeep` records of the kernel. Taken before the first cell, so that it names what every cell began
    /// with.
    pub environment: Option<EnvironmentRecord>,
    pub ready_after: Duration,
    /// The session receives signals as long as this lives.
    pub forwarding: ForwardingGuard,
}

impl StartedKernel {
    /// Fails when the kernel takes longer than `--start-timeout`, when a signal comes first, and when `--frozen` or `--seed`
    /// cannot be honoured. Nothing of the session is left then.
    pub async fn start(
        parameterized: &ParameterizedNotebook,
        settings: &Settings,
        signals: &SignalForwarder,
        progress: &NotebookProgress,
    ) -> Result<Self, Failure> {
        let started = Instant::now();
        let kernel = parameterized.kernel;
        if settings.frozen && parameterized.earlier_record.is_none() {
            return Err(Failure::usage(anyhow!(
                "--frozen: the notebook has no record of an earlier run; run it once without --frozen"
            )));
        }
        // Not a part of the start, whose time is limited.
        let needed = &parameterized.needed_packages;
        let packages = settings.sandbox.install(&settings.paths, kernel, needed, signals.stop_requested()).await?;
        let session = create_session(settings, kernel, packages, signals).await?;
        let forwarding = signals.register(session.handle.clone());
        let ready_after = started.elapsed();
        match prepare_kernel(settings, parameterized, &session, progress).await {
            Ok(environment) => Ok(Self { session, environment, ready_after, forwarding }),
            Err(failure) => {
                let _ = session.destroy().await;
                Err(failure)
            }
        }
    }
}

async fn create_session(
    settings: &Settings,
    kernel: &KernelSpec,
    packages: Option<MountedPackages>,
    signals: &SignalForwarder,
) -> Result<Session, Failure> {
    let env = settings.seed.map(|seed| seed::seed_env(kernel, seed)).unwrap_or_default();
    let timed_out = AtomicBool::new(false);
    let stopped = async {
        let Some(limit) = settings.start_timeout else { return signals.stop_requested().await };
        if tokio::time::timeout(limit, signals.stop_requested()).await.is_err() {
            timed_out.store(true, Ordering::Relaxed);
        }
    };
    let created = settings.sandbox.session(settings.paths.clone(), kernel, env, packages, stopped).await;
    match (settings.start_timeout, timed_out.load(Ordering::Relaxed)) {
        (Some(limit), true) if created.is_err() => {
            let error = anyhow!("the kernel was not ready after {} s (--start-timeout)", limit.as_secs_f64());
            Err(Failure::no_sandbox(error))
        }
        _ => created,
    }
}

/// Asks for the environment where it is recorded or compared, and seeds the kernel.
async fn prepare_kernel(
    settings: &Settings,
    parameterized: &ParameterizedNotebook,
    session: &Session,
    progress: &NotebookProgress,
) -> Result<Option<EnvironmentRecord>, Failure> {
    let kernel = parameterized.kernel;
    let environment = query_environment(settings, kernel, session, progress).await?;
    if let (true, Some(expected), Some(current)) = (settings.frozen, &parameterized.earlier_record, &environment) {
        let differences = current.differences(expected);
        if !differences.is_empty() {
            let all = differences.join("\n  ");
            return Err(Failure::usage(anyhow!(
                "--frozen: the environment is not the one that the notebook recorded:\n  {all}"
            )));
        }
    }
    if let Some(seed) = settings.seed {
        match seed::seed(&session.handle, kernel, seed).await {
            Ok(true) => {}
            Ok(false) => progress
                .notice(&format!("--seed has no effect: {} has no random numbers that can be seeded", kernel.display_name)),
            Err(why) => return Err(Failure::no_sandbox(anyhow!("--seed: the kernel cannot be seeded: {why}"))),
        }
    }
    Ok(environment)
}

async fn query_environment(
    settings: &Settings,
    kernel: &KernelSpec,
    session: &Session,
    progress: &NotebookProgress,
) -> Result<Option<EnvironmentRecord>, Failure> {
    if settings.no_record && !settings.frozen {
        return Ok(None);
    }
    match EnvironmentRecord::collect(&settings.paths, kernel, &session.handle, &session.record).await {
        Ok(environment) => Ok(Some(environment)),
        Err(why) if settings.frozen => {
            Err(Failure::usage(anyhow!("--frozen: the packages of the kernel cannot be listed: {why}")))
        }
        Err(why) => {
            progress.notice(&format!("the packages are not recorded: {why}"));
            Ok(None)
        }
    }
}
