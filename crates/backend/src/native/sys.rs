//! What the native backend needs that has no safe form: a registration with the event loop, and loop devices.

#![expect(unsafe_code, reason = "tokio's registration of a descriptor and ioctl have no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a process's descriptor with the event loop: it is readable when the process has ended.
pub(super) fn register(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor keeps its number and stays open for as long as it is owned.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(io::Error::from)
}

/// `LOOP_CTL_GET_FREE` and `LOOP_CONFIGURE` of linux/loop.h.
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
/// The device is free again when nobody has it open or mounted.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Words of `struct loop_config`: descriptor and block size, `struct loop_info64` of 29 words, 8 reserved.
const CONFIG_WORDS: usize = 1 + 29 + 8;
/// Bytes before `lo_flags` in `struct loop_config`: the two numbers, five of 64 bits, four of 32 bits less one.
const FLAGS_OFFSET: usize = 8 + 5 * 8 + 3 * 4;

/// The number of a loop device that is free now.
pub(super) fn free_loop(control: &File) -> io::Result<i32> {
    // SAFETY: the call takes no argument and returns a number or -1.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    if number < 0 { Err(io::Error::last_os_error()) } else { Ok(number) }
}

/// Puts a file on a loop device.
pub(super) fn configure_loop(device: &File, file: &File) -> io::Result<()> {
    let mut config = [0u64; CONFIG_WORDS];
    let words = &mut config;
    // Little or big endian: the descriptor is the first 32 bits, the flags stand at their own offset.
    let mut put = |offset: usize, value: u32| {
        let shift = if cfg!(target_endian = "little") { (offset % 8) * 8 } else { 32 - (offset % 8) * 8 };
        words[offset / 8] |= u64::from(value) << shift;
    };
    put(0, file.as_raw_fd().cast_unsigned());
    put(FLAGS_OFFSET, LO_FLAGS_AUTOCLEAR);
    // SAFETY: the kernel reads `struct loop_config`, which `config` covers, and keeps no pointer to it.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, config.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
