//! Signals that are meant for the process.

use dispense_client::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::local;

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Number of the signal.
    Signal(u32),
    /// Our terminal has a new size.
    Resized,
}

/// The signals that are passed on.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    resized: Option<Signal>,
}

impl Signals {
    /// From now on these signals do not end this program.
    pub(super) fn listen(tty: bool) -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(|error| local("listen for signals", &error));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            quit: listen(SignalKind::quit())?,
            resized: if tty { Some(listen(SignalKind::window_change())?) } else { None },
        })
    }

    /// The next one. CANCEL SAFETY: a signal is taken only when it is returned.
    pub(super) async fn next(&mut self) -> Event {
        let resized = async {
            match &mut self.resized {
                Some(resized) => resized.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Event::Signal(2),
            _ = self.terminate.recv() => Event::Signal(15),
            _ = self.hangup.recv() => Event::Signal(1),
            _ = self.quit.recv() => Event::Signal(3),
            _ = resized => Event::Resized,
        }
    }
}
