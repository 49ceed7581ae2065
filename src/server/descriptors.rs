//! The file descriptors of this process, shared between the connections of clients and those of sandboxes through the proxy. Neither can use
//! up those of the other, or what the rest of the server needs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The largest number of connections of clients, if the process may have as many file descriptors.
const MAX_CLIENTS: usize = 10_000;
/// File descriptors for everything else: two for each session, the journal, starting kernels.
const RESERVED: usize = 1_000;

/// File descriptors of a connection of a sandbox: one to its program, one to the host.
const OF_SANDBOX: usize = 2;

/// How many connections there may be of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connections {
    pub of_clients: usize,
    pub of_sandboxes: usize,
}

impl Connections {
    /// As many as the process can hold; of sandboxes, at most so many. Raises the limit of file descriptors if possible.
    pub fn by_limit(of_sandboxes: usize) -> Self {
        let limit = getrlimit(Resource::Nofile);
        let wanted = (MAX_CLIENTS + RESERVED).saturating_add(of_sandboxes.saturating_mul(OF_SANDBOX)) as u64;
        let raised = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)).max(limit.current.unwrap_or(0));
        let descriptors = match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }) {
            Ok(()) => raised,
            Err(_) => limit.current.unwrap_or(wanted),
        };
        Self::of(usize::try_from(descriptors).unwrap_or(usize::MAX), of_sandboxes)
    }

    /// For a number of file descriptors. Where they are few, a quarter is for sandboxes.
    fn of(descriptors: usize, of_sandboxes: usize) -> Self {
        let free = descriptors.saturating_sub(RESERVED).max(descriptors / 2);
        let of_sandboxes = of_sandboxes.min((free / 4 / OF_SANDBOX).max(1));
        Self { of_clients: free.saturating_sub(of_sandboxes * OF_SANDBOX).min(MAX_CLIENTS), of_sandboxes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_both_kinds_fit_the_descriptors() {
        let of = |descriptors, of_sandboxes| {
            let Connections { of_clients, of_sandboxes } = Connections::of(descriptors, of_sandboxes);
            (of_clients, of_sandboxes)
        };
        assert_eq!([of(256, 2048), of(1_400, 2048)], [(96, 16), (526, 87)]);
        assert_eq!([of(17_384, 2048), of(usize::MAX, 2048)], [(10_000, 2048), (10_000, 2048)]);
        assert_eq!([of(11_000, 2048), of(11_000, 8)], [(7_500, 1_250), (9_984, 8)]);
        assert_eq!(of(0, 1), (0, 1));
        for descriptors in [64, 256, 1_024, 4_096, 20_000] {
            let (clients, sandboxes) = of(descriptors, 2048);
            assert!(
                clients + OF_SANDBOX * sandboxes <= descriptors.saturating_sub(RESERVED).max(descriptors / 2),
                "{descriptors}"
            );
        }
    }
}
