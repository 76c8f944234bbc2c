//! What packets are made of: bytes, numbers, strings.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const STATUS_PACKET: u8 = 101;

/// Why a request is refused, by its number and in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) code: u32,
    pub(super) message: String,
}

impl Status {
    pub(super) const OK: u32 = 0;
    pub(super) const EOF: u32 = 1;
    const NO_SUCH_FILE: u32 = 2;
    const PERMISSION_DENIED: u32 = 3;
    const FAILURE: u32 = 4;
    const BAD_MESSAGE: u32 = 5;
    const UNSUPPORTED: u32 = 8;

    fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn eof() -> Self {
        Self::new(Self::EOF, "end of file")
    }

    pub(super) fn bad_message(what: &str) -> Self {
        Self::new(Self::BAD_MESSAGE, what)
    }

    pub(super) fn unsupported() -> Self {
        Self::new(Self::UNSUPPORTED, "there is no such operation here")
    }

    pub(super) fn failure(what: &str) -> Self {
        Self::new(Self::FAILURE, what)
    }
}

impl From<io::Error> for Status {
    fn from(error: io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => Self::NO_SUCH_FILE,
            io::ErrorKind::PermissionDenied => Self::PERMISSION_DENIED,
            _ => Self::FAILURE,
        };
        Self::new(code, error.to_string())
    }
}

impl From<rustix::io::Errno> for Status {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// Takes a packet apart.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(packet: &'a [u8]) -> Self {
        Self(packet)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Status> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| Status::bad_message("the packet is cut"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Status> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, Status> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Status> {
        Ok(u64::from(self.u32()?) << 32 | u64::from(self.u32()?))
    }

    pub(super) fn string(&mut self) -> Result<&'a [u8], Status> {
        let len = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        self.take(len)
    }

    /// A path; the empty one is the working directory.
    pub(super) fn path(&mut self) -> Result<&'a Path, Status> {
        let bytes = self.string()?;
        if bytes.contains(&0) {
            return Err(Status::bad_message("a path has a NUL byte"));
        }
        Ok(Path::new(OsStr::from_bytes(if bytes.is_empty() { b"." } else { bytes })))
    }
}

/// Puts a packet together.
#[derive(Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// The answer of a request that is done, or refused.
    pub(super) fn status(id: u32, status: &Status) -> Self {
        let mut writer = Self::default();
        writer.byte(STATUS_PACKET).u32(id).u32(status.code).string(status.message.as_bytes()).string(b"en");
        writer
    }

    /// The answer of a request that is done.
    pub(super) fn done(&mut self, id: u32) {
        *self = Self::status(id, &Status::new(Status::OK, ""));
    }

    pub(super) fn byte(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn string(&mut self, value: &[u8]) -> &mut Self {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(value);
        self
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}
