//! The signals that ask a command to end: SIGTERM and SIGINT.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, Failure, Result};

/// Waits for them, instead of the process ending at once.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they are caught.
    pub(crate) fn catch() -> Result<Self> {
        let catch = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(Exit::Failure, "IO", format!("cannot catch signals: {error}")))
        };
        Ok(Self { terminate: catch(SignalKind::terminate())?, interrupt: catch(SignalKind::interrupt())? })
    }

    /// The name of the next one.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
