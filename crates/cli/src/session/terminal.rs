//! Our terminal: its size, and its raw mode for as long as a process has it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use dispense_client::Error;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::failure::local;

/// Of a terminal that does not tell.
const DEFAULT_COLS: u32 = 80;
const DEFAULT_ROWS: u32 = 24;

/// Whether a descriptor is a terminal.
pub(crate) fn is_terminal(fd: BorrowedFd<'_>) -> bool {
    rustix::termios::isatty(fd)
}

/// Columns and rows of our terminal.
pub(crate) fn size() -> (u32, u32) {
    let sizes = [tcgetwinsize(io::stdout().as_fd()), tcgetwinsize(io::stdin().as_fd())];
    let known = sizes.into_iter().flatten().find(|size| size.ws_col > 0 && size.ws_row > 0);
    known.map_or((DEFAULT_COLS, DEFAULT_ROWS), |size| (size.ws_col.into(), size.ws_row.into()))
}

/// Raw mode; dropping it, also in a panic, restores what was before.
pub(super) struct RawMode {
    before: Termios,
}

impl RawMode {
    pub(super) fn enter() -> Result<Self, Error> {
        let failed = |error: rustix::io::Errno| local("change the mode of the terminal", &io::Error::from(error));
        let before = tcgetattr(io::stdin().as_fd()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin().as_fd(), OptionalActions::Drain, &raw).map_err(failed)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // FLUSH would throw away what the user has typed ahead for the shell.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Drain, &self.before);
    }
}
