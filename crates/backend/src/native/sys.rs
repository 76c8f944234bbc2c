//! What the native backend needs that has no safe form: a registration with the event loop, loop devices, and
//! datagrams with the address that they were sent to.

#![expect(unsafe_code, reason = "tokio's registration of a descriptor, ioctl and IP_RECVORIGDSTADDR have no safe form")]

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
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

/// A datagram that was received.
pub(super) struct Datagram {
    /// How much of the buffer is its.
    pub(super) bytes: usize,
    pub(super) source: SocketAddrV4,
    /// Where it was sent to, whoever receives it.
    pub(super) destination: SocketAddrV4,
}

/// Words of the control buffer: a header and an address, with room to spare.
const CONTROL_WORDS: usize = 16;

/// Receives one datagram from an IPv4 socket with `IP_RECVORIGDSTADDR`, without waiting.
pub(super) fn receive_datagram(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<Datagram> {
    // Of words, since the kernel's headers are aligned to them.
    let mut control = [0u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zero is a valid `sockaddr_in` and a valid `msghdr`.
    let (mut source, mut message): (libc::sockaddr_in, libc::msghdr) = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut source).cast();
    message.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer of the message is to something that outlives the call, with its true size.
    let bytes = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let bytes = usize::try_from(bytes).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled the control buffer and set its length; CMSG_FIRSTHDR and CMSG_NXTHDR stay within
    // it. The data of this kind is a `sockaddr_in`, which is read wherever it is aligned.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(found) = header.as_ref() {
            if (found.cmsg_level, found.cmsg_type) == (libc::SOL_IP, libc::IP_ORIGDSTADDR) {
                let destination: libc::sockaddr_in =
                    libc::CMSG_DATA(header).cast::<libc::sockaddr_in>().read_unaligned();
                return Ok(Datagram { bytes, source: address(&source), destination: address(&destination) });
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Err(io::Error::other("the kernel did not tell where a datagram was sent to"))
}

fn address(raw: &libc::sockaddr_in) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from_bits(u32::from_be(raw.sin_addr.s_addr)), u16::from_be(raw.sin_port))
}
