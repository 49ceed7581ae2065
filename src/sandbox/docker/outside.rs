//! What root adds to a started container from outside, because engines have no option for it, before the kernel starts: routes
//! that refuse addresses, and with cgroups version 1 a limit of the memory of sockets.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use bollard::query_parameters::InspectContainerOptions;

use super::engine::{Client, call};
use super::profile;
use crate::policy::Network;
use crate::sandbox::refused_addresses::refuse;
use crate::sandbox::{SandboxError, SandboxSpec};

/// See the [module](self) text.
///
/// # Errors
/// [`SandboxError`] if something cannot be added.
pub(super) async fn confine(
    client: &Client,
    runtime: Option<&str>,
    container: &str,
    spec: &SandboxSpec,
) -> Result<(), SandboxError> {
    let refuses = spec.network == Network::Open && profile::is_within_reach(&client.info);
    let limits = profile::limits_socket_memory(&client.info, runtime);
    if !refuses && !limits {
        return Ok(());
    }
    let inspected = call(client.docker.inspect_container(container, None::<InspectContainerOptions>)).await;
    let inspected = inspected.map_err(|error| error.when("cannot inspect the container"))?;
    let pid = inspected.state.and_then(|state| state.pid).unwrap_or_default();
    tokio::task::block_in_place(|| {
        if limits {
            limit_socket_memory(pid, spec.limits.socket_bytes())
                .map_err(SandboxError::io("cannot limit the memory of the container's sockets"))?;
        }
        if refuses {
            let network = File::open(format!("/proc/{pid}/ns/net"));
            network
                .and_then(|network| refuse(&OwnedFd::from(network), None))
                .map_err(SandboxError::io("cannot refuse addresses to the container"))?;
        }
        Ok(())
    })
}

/// Sets the limit in the memory cgroup of a process, bytes.
fn limit_socket_memory(pid: i64, bytes: u64) -> io::Result<()> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let group = memory_group(&groups).ok_or(io::ErrorKind::NotFound)?;
    match fs::write(format!("/sys/fs/cgroup/memory{group}/memory.kmem.tcp.limit_in_bytes"), bytes.to_string()) {
        // A system without this accounting.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The path in the memory hierarchy, from `/proc/PID/cgroup`.
fn memory_group(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.split_once(':')?.1.strip_prefix("memory:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_group_is_found() {
        assert_eq!(memory_group("4:cpu:/docker/x\n3:memory:/docker/x\n0::/docker/x\n"), Some("/docker/x"));
        assert_eq!(memory_group("0::/docker/x\n"), None);
    }
}
