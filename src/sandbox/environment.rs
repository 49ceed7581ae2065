//! The agent's configuration and the paths inside a sandbox, equal for all kinds of sandboxes.

use std::collections::BTreeMap;

use super::SandboxSpec;
use crate::agent_protocol::{AgentConfig, Listen};
use crate::policy::Network;

/// The workspace inside a sandbox.
pub(super) const WORKSPACE: &str = "/work";
/// The package set inside a sandbox.
pub(super) const PACKAGES: &str = "/opt/packages";
/// The folder of ipc sockets.
pub(super) const RUNTIME_DIR: &str = "/run/kernel";
/// The folder of connection files, for the agent alone.
pub(super) const CONNECTION_DIR: &str = "/run/connection";
/// The mount point of the agent's binary.
pub(super) const AGENT_PATH: &str = "/run/cellkeep/agent";
/// Bytes.
pub(super) const RUNTIME_DIR_BYTES: u64 = 4 << 20;
/// Bytes.
pub(super) const CONNECTION_DIR_BYTES: u64 = 1 << 20;
/// The ratio of bytes to inodes in a tmpfs: one page per file.
pub(super) const BYTES_PER_INODE: u64 = 4096;
/// Size of `/dev/shm`, bytes.
pub(super) const SHM_BYTES: u64 = 64 << 20;

pub(super) fn agent_config(spec: &SandboxSpec, listen: Listen, memory_enforced: bool, nproc_rlimit: bool) -> AgentConfig {
    let writable = [WORKSPACE, RUNTIME_DIR, "/tmp", "/dev", "/proc"];
    AgentConfig {
        listen,
        session: spec.session.clone(),
        kernel: spec.kernel.name.clone(),
        argv: spec.kernel.argv.clone(),
        env: kernel_environment(spec),
        transport: spec.kernel.transport,
        iopub_pipe: spec.kernel.iopub_pipe,
        startup_code: spec.kernel.startup_code.clone(),
        context_code: spec.kernel.context_code.clone(),
        end_marker: spec.kernel.end_marker.clone(),
        interrupt_by_message: spec.kernel.interrupt_by_message,
        workspace: WORKSPACE.to_owned(),
        runtime_dir: RUNTIME_DIR.to_owned(),
        connection_dir: CONNECTION_DIR.to_owned(),
        writable: writable.map(str::to_owned).to_vec(),
        limits: spec.limits.clone(),
        proxy_port: spec.network == Network::None,
        memory_enforced,
        nproc_rlimit,
        orphan_seconds: spec.orphan_seconds,
    }
}

/// Our variables, overridden by those of the kernelspec, overridden by the caller's. The manager's own environment is not
/// inherited.
fn kernel_environment(spec: &SandboxSpec) -> BTreeMap<String, String> {
    // By default, libraries start a thread per CPU of the host, although the session may use only one or two.
    let threads = (spec.limits.cpus.ceil() as u64).max(1).to_string();
    let own = [
        ("PATH", "/work/.local/bin:/opt/packages/bin:/opt/kernel/bin:/opt/kernel/commands"),
        ("HOME", WORKSPACE),
        ("TMPDIR", "/tmp"),
        ("LANG", "C.UTF-8"),
        ("OPENBLAS_NUM_THREADS", &threads),
        ("OMP_NUM_THREADS", &threads),
        ("POLARS_MAX_THREADS", &threads),
    ];
    own.into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .chain(spec.network_env.iter().cloned())
        .chain(spec.kernel.env.clone())
        .chain(spec.package_set.iter().flat_map(|_| spec.kernel.packages_env.clone()))
        .chain(spec.env.iter().cloned())
        .collect()
}
