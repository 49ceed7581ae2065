//! Ctrl-C, SIGTERM and the terminal's end, heard from a command's start to its last step, so that none is lost on the way.
//!
//! While code runs the first Ctrl-C interrupts it, and whatever comes second kills its kernel. Afterwards, while results are
//! written and the sandbox is cleared away, the second signal leaves; what is left behind ends itself, and the next command
//! sweeps it away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Exit, Failure};
use crate::runner::Interruption;
use crate::session::SessionHandle;

/// The signals by which a person or a system stops a command. One that comes while nobody waits is kept.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// Ctrl-C: stop what is running.
    Interrupt,
    /// SIGTERM, or the terminal is gone: end.
    End,
}

/// Signals turned into commands to a session.
pub(super) struct Following {
    /// Asked for from the first signal on.
    pub interruption: Interruption,
    finishing: Arc<AtomicBool>,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// [`Failure`] when the system refuses to tell of signals.
    pub fn listen() -> Result<Self, Failure> {
        let open = |kind| signal(kind).context("cannot listen for signals").map_err(Failure::usage);
        Ok(Self {
            interrupt: open(SignalKind::interrupt())?,
            terminate: open(SignalKind::terminate())?,
            hang_up: open(SignalKind::hangup())?,
        })
    }

    /// Waits for any of them.
    pub async fn any(&mut self) {
        self.next().await;
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.interrupt.recv() => Wish::Interrupt,
            _ = self.terminate.recv() => Wish::End,
            _ = self.hang_up.recv() => Wish::End,
        }
    }

    /// Passes them on to a session, until the process ends.
    pub fn follow(mut self, session: SessionHandle) -> Following {
        let following = Following { interruption: Interruption::default(), finishing: Arc::default() };
        let (interruption, finishing) = (following.interruption.clone(), following.finishing.clone());
        tokio::spawn(async move {
            let mut told = false;
            loop {
                let wish = self.next().await;
                if finishing.load(Ordering::Relaxed) {
                    // What was produced is being written: that is worth a second question.
                    if std::mem::replace(&mut told, true) {
                        std::process::exit(Exit::Interrupted.code().into());
                    }
                    say!("\nfinishing; once more leaves at once");
                    continue;
                }
                let first = !interruption.is_asked();
                interruption.ask();
                // A session that is over needs no telling.
                let _ = if first && wish == Wish::Interrupt {
                    say!("\ninterrupting the kernel; press Ctrl-C again to stop");
                    session.interrupt().await
                } else {
                    session.kill().await
                };
            }
        });
        following
    }
}

impl Following {
    /// The session has done its work, and the rest is ours: from here on the second signal ends the process.
    pub fn finish(&self) {
        self.finishing.store(true, Ordering::Relaxed);
    }
}
