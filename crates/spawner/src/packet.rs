//! Packets with descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest packet: a spec with its environment; the kernel's own bound for a packet is a little above.
pub const PACKET_MAX_BYTES: usize = 160 << 10;
/// Descriptors of one packet at most.
const DESCRIPTORS_MAX: usize = 16;

/// Why a packet did not pass.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// The other side has gone.
    #[error("the other side of the spawner's socket has gone")]
    Gone,
    /// The socket failed.
    #[error("the spawner's socket failed")]
    Socket(#[from] Errno),
    /// Not what this program sends.
    #[error("a packet of the spawner's socket does not parse")]
    Malformed(#[from] serde_json::Error),
    /// Over the bound.
    #[error("a packet has {0} bytes, at most {PACKET_MAX_BYTES}: use a smaller environment")]
    TooLong(usize),
}

/// Sends a message with descriptors.
pub fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), PacketError> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > PACKET_MAX_BYTES {
        return Err(PacketError::TooLong(bytes.len()));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(PacketError::Gone),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives a message with its descriptors.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<(T, Vec<OwnedFd>), PacketError> {
    let mut bytes = vec![0; PACKET_MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received.bytes,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Err(PacketError::Gone),
            Err(error) => return Err(error.into()),
        }
    };
    if received == 0 {
        return Err(PacketError::Gone);
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok((serde_json::from_slice(&bytes[..received])?, fds))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("sockets are free")
    }

    #[test]
    fn a_message_passes_with_its_descriptors() {
        let (near, far) = pair();
        let (mut reader, writer) = std::io::pipe().expect("pipes are free");
        send(&near, &vec!["one", "two"], &[writer.as_fd()]).expect("room");
        drop(writer);
        let (message, mut fds): (Vec<String>, _) = receive(&far).expect("sent");
        assert_eq!((message, fds.len()), (vec!["one".to_owned(), "two".to_owned()], 1));
        std::fs::File::from(fds.remove(0)).write_all(b"x").expect("a pipe");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("a pipe");
        assert_eq!(text, "x");
    }

    #[test]
    fn a_packet_over_the_bound_and_a_lost_peer_are_told() {
        let (near, far) = pair();
        assert!(matches!(send(&near, &"x".repeat(PACKET_MAX_BYTES), &[]), Err(PacketError::TooLong(_))));
        drop(near);
        assert!(matches!(receive::<String>(&far), Err(PacketError::Gone)));
    }
}
