//! `internal-sftp`: the SFTP server of a sandbox, version 3 (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions,
//! on stdin and stdout. It is a process of its own, which runs as the user that asked for it, so the kernel decides
//! what that user may do.
//!
//! Names are bytes, as in the kernel. Everything is sync: one request is answered before the next is read.

mod attrs;
mod files;
mod packet;

use std::io::{self, BufWriter, Read, Write};

use files::Files;
use packet::{Reader, Status, Writer};

/// As the command line names it, like OpenSSH's own.
pub(crate) const COMMAND: &str = "internal-sftp";
/// A packet: 256 KiB of data and its head, as OpenSSH has it.
const PACKET_MAX_BYTES: usize = (256 << 10) + 1024;
const VERSION: u32 = 3;
const INIT: u8 = 1;

/// Serves until the client closes.
pub(crate) fn serve(input: impl Read, output: impl Write) -> io::Result<()> {
    let mut input = input;
    let mut output = BufWriter::with_capacity(PACKET_MAX_BYTES, output);
    let mut files = Files::default();
    let mut packet = Vec::new();
    while read_packet(&mut input, &mut packet)? {
        let mut reader = Reader::new(&packet);
        let kind = reader.byte().map_err(|_| malformed("an empty packet"))?;
        let answer = if kind == INIT {
            version()
        } else {
            let id = reader.u32().map_err(|_| malformed("a request without an id"))?;
            let mut answer = Writer::default();
            match files.answer(kind, id, &mut reader, &mut answer) {
                Ok(()) => answer,
                Err(status) => Writer::status(id, &status),
            }
        };
        let body = answer.into_bytes();
        let len = u32::try_from(body.len()).map_err(|_| malformed("an answer that is too long"))?;
        output.write_all(&len.to_be_bytes())?;
        output.write_all(&body)?;
        output.flush()?;
    }
    Ok(())
}

/// Reads one packet; `false` at the end of the stream.
fn read_packet(input: &mut impl Read, packet: &mut Vec<u8>) -> io::Result<bool> {
    let mut len = [0; 4];
    match input.read_exact(&mut len) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        read => read?,
    }
    let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
    if len > PACKET_MAX_BYTES {
        return Err(malformed("a packet that is too long"));
    }
    packet.resize(len, 0);
    input.read_exact(packet)?;
    Ok(true)
}

fn version() -> Writer {
    const VERSION_PACKET: u8 = 2;
    let mut answer = Writer::default();
    answer.byte(VERSION_PACKET).u32(VERSION);
    for name in files::EXTENSIONS {
        answer.string(name.as_bytes()).string(if *name == "statvfs@openssh.com" { b"2" } else { b"1" });
    }
    answer
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the client sent {what}"))
}

/// A refusal.
type Answer = Result<(), Status>;

#[cfg(test)]
mod tests;
