//! Ctrl-C, SIGTERM and the terminal's end, heard from a command's start to its last step, so that none is lost on the way.
//!
//! While code runs the first Ctrl-C interrupts it, and whatever comes second kills its kernel. Afterwards, while results are
//! written and the sandbox is cleared away, the second signal leaves; what is left behind ends itself, and the next command
//! sweeps it away.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

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

/// Signals turned into commands to sessions.
pub(super) struct Following {
    /// Asked for from the first signal on.
    pub interruption: Interruption,
    finishing: Arc<AtomicBool>,
    asked: watch::Receiver<bool>,
    sessions: Sessions,
}

/// The sessions that are told.
type Sessions = Arc<Mutex<Vec<(u64, SessionHandle)>>>;

/// A session is told of signals as long as this lives.
pub(super) struct Told {
    number: u64,
    sessions: Sessions,
}

impl Drop for Told {
    fn drop(&mut self) {
        all(&self.sessions).retain(|(number, _)| *number != self.number);
    }
}

fn all(sessions: &Sessions) -> std::sync::MutexGuard<'_, Vec<(u64, SessionHandle)>> {
    sessions.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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

    /// Passes them on to sessions that are to be added, until the process ends.
    pub fn follow(mut self) -> Following {
        let (asking, asked) = watch::channel(false);
        let (interruption, finishing, sessions) = Default::default();
        let following = Following { interruption, finishing, asked, sessions };
        let (interruption, finishing) = (following.interruption.clone(), following.finishing.clone());
        let sessions = following.sessions.clone();
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
                asking.send_replace(true);
                let is_gentle = first && wish == Wish::Interrupt;
                let sessions: Vec<SessionHandle> = all(&sessions).iter().map(|(_, session)| session.clone()).collect();
                match (sessions.is_empty(), first) {
                    // Nothing runs: one is being made, or results are being written.
                    (true, true) => say!("\nfinishing; once more leaves at once"),
                    (true, false) => std::process::exit(Exit::Interrupted.code().into()),
                    (false, _) if is_gentle => say!("\ninterrupting the kernel; press Ctrl-C again to stop"),
                    (false, _) => {}
                }
                for session in sessions {
                    // A session that is over needs no telling.
                    let _ = if is_gentle { session.interrupt().await } else { session.kill().await };
                }
            }
        });
        following
    }
}

impl Following {
    /// Tells this session from now on, too.
    pub fn add(&self, session: SessionHandle) -> Told {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        all(&self.sessions).push((number, session));
        Told { number, sessions: self.sessions.clone() }
    }

    /// Waits for the first signal.
    pub async fn asked(&self) {
        // The task that tells lives as long as the process.
        let _ = self.asked.clone().wait_for(|asked| *asked).await;
    }

    /// The session has done its work, and the rest is ours: from here on the second signal ends the process.
    pub fn finish(&self) {
        self.finishing.store(true, Ordering::Relaxed);
    }
}
