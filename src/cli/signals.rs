//! Handles SIGINT, SIGTERM and SIGHUP from a command's start to its last step, so that no signal is lost in between.
//!
//! While code runs, the first Ctrl-C interrupts it and any second signal kills its kernel. Afterwards, while results are
//! written and the sandbox is removed, the second signal ends the process. A sandbox that is left behind then ends itself,
//! and the next command sweeps it away.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::{Exit, Failure};
use crate::runner::InterruptFlag;
use crate::session::SessionHandle;

/// The signals that stop a command. A signal that arrives while nothing waits is kept.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopKind {
    /// SIGINT: interrupt the running code.
    Interrupt,
    /// SIGTERM or SIGHUP: end the command.
    End,
}

/// Forwards signals to sessions.
pub(super) struct SignalForwarder {
    /// Requested from the first signal on.
    pub interrupt: InterruptFlag,
    finishing: Arc<AtomicBool>,
    stop: watch::Receiver<bool>,
    sessions: Sessions,
}

/// The registered sessions, by number.
type Sessions = Arc<Mutex<Vec<(u64, SessionHandle)>>>;

/// Keeps a session registered; dropping it unregisters the session.
pub(super) struct ForwardingGuard {
    number: u64,
    sessions: Sessions,
}

impl Drop for ForwardingGuard {
    fn drop(&mut self) {
        lock(&self.sessions).retain(|(number, _)| *number != self.number);
    }
}

fn lock(sessions: &Sessions) -> std::sync::MutexGuard<'_, Vec<(u64, SessionHandle)>> {
    sessions.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Signals {
    /// Installs the handlers; signals are kept from now on.
    pub fn listen() -> Result<Self, Failure> {
        let open = |kind| signal(kind).context("cannot listen for signals").map_err(Failure::usage);
        Ok(Self {
            interrupt: open(SignalKind::interrupt())?,
            terminate: open(SignalKind::terminate())?,
            hang_up: open(SignalKind::hangup())?,
        })
    }

    /// Waits for any signal.
    pub async fn any(&mut self) {
        self.next().await;
    }

    async fn next(&mut self) -> StopKind {
        tokio::select! {
            _ = self.interrupt.recv() => StopKind::Interrupt,
            _ = self.terminate.recv() => StopKind::End,
            _ = self.hang_up.recv() => StopKind::End,
        }
    }

    /// Forwards signals to the sessions that are registered later, until the process ends.
    pub fn forward(mut self) -> SignalForwarder {
        let (stopping, stop) = watch::channel(false);
        let (interrupt, finishing, sessions) = Default::default();
        let forwarder = SignalForwarder { interrupt, finishing, stop, sessions };
        let (interrupt, finishing) = (forwarder.interrupt.clone(), forwarder.finishing.clone());
        let sessions = forwarder.sessions.clone();
        tokio::spawn(async move {
            let mut warned = false;
            loop {
                let kind = self.next().await;
                if finishing.load(Ordering::Relaxed) {
                    // Results are being written: only the second signal ends the process.
                    if std::mem::replace(&mut warned, true) {
                        std::process::exit(Exit::Interrupted.code().into());
                    }
                    eprint_line!("\nfinishing; press Ctrl-C again to quit without waiting");
                    continue;
                }
                let first = !interrupt.is_requested();
                interrupt.request();
                stopping.send_replace(true);
                let is_interrupt = first && kind == StopKind::Interrupt;
                let sessions: Vec<SessionHandle> = lock(&sessions).iter().map(|(_, session)| session.clone()).collect();
                match (sessions.is_empty(), first) {
                    // No session: one is being created, or results are being written.
                    (true, true) => eprint_line!("\nfinishing; press Ctrl-C again to quit without waiting"),
                    (true, false) => std::process::exit(Exit::Interrupted.code().into()),
                    (false, _) if is_interrupt => eprint_line!("\ninterrupting the kernel; press Ctrl-C again to stop"),
                    (false, _) => {}
                }
                for session in sessions {
                    // Fails only for a session that has ended.
                    let _ = if is_interrupt { session.interrupt().await } else { session.kill().await };
                }
            }
        });
        forwarder
    }
}

impl SignalForwarder {
    /// Forwards signals to this session too, until the guard is dropped.
    pub fn register(&self, session: SessionHandle) -> ForwardingGuard {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        lock(&self.sessions).push((number, session));
        ForwardingGuard { number, sessions: self.sessions.clone() }
    }

    /// Waits for the first signal.
    pub async fn stop_requested(&self) {
        // The sending task lives as long as the process, so this cannot fail.
        let _ = self.stop.clone().wait_for(|stop| *stop).await;
    }

    /// Announces that all sessions have done their work: from here on, the second signal ends the process.
    pub fn finish(&self) {
        self.finishing.store(true, Ordering::Relaxed);
    }
}
