//! The one system-level registration of the native backend that has no safe form.

#![expect(unsafe_code, reason = "tokio's registration of a descriptor is unsafe")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a process's descriptor with the event loop: it is readable when the process has ended.
pub(super) fn register(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor keeps its number and stays open for as long as it is owned.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(io::Error::from)
}
