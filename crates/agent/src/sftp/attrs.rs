//! The attributes of files, both ways, and the long form of a name.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid};

use super::packet::{Reader, Status, Writer};

const SIZE: u32 = 1;
const UID_GID: u32 = 2;
const PERMISSIONS: u32 = 4;
const TIMES: u32 = 8;
const EXTENDED: u32 = 0x8000_0000;

/// What a client wants of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Attrs {
    pub(super) size: Option<u64>,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<u32>,
    /// Last read, last changed; in seconds.
    pub(super) times: Option<(u32, u32)>,
}

impl Attrs {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Status> {
        let flags = reader.u32()?;
        let mut attrs = Self::default();
        if flags & SIZE != 0 {
            attrs.size = Some(reader.u64()?);
        }
        if flags & UID_GID != 0 {
            attrs.owner = Some((reader.u32()?, reader.u32()?));
        }
        if flags & PERMISSIONS != 0 {
            attrs.mode = Some(reader.u32()?);
        }
        if flags & TIMES != 0 {
            attrs.times = Some((reader.u32()?, reader.u32()?));
        }
        if flags & EXTENDED != 0 {
            for _ in 0..reader.u32()? {
                reader.string()?;
                reader.string()?;
            }
        }
        Ok(attrs)
    }

    pub(super) fn mode(&self) -> Option<Mode> {
        self.mode.map(|mode| Mode::from_raw_mode(mode & 0o7777))
    }

    /// Changes a file, through its descriptor. The owner first: changing it takes mode bits away.
    pub(super) fn apply_to(&self, file: &std::fs::File) -> Result<(), Status> {
        if let Some(size) = self.size {
            file.set_len(size)?;
        }
        if let Some((uid, gid)) = self.owner {
            rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        if let Some(mode) = self.mode() {
            rustix::fs::fchmod(file, mode)?;
        }
        if let Some(times) = self.times {
            rustix::fs::futimens(file, &timestamps(times))?;
        }
        Ok(())
    }

    /// Changes what a path leads to.
    pub(super) fn apply(&self, path: &std::path::Path) -> Result<(), Status> {
        if let Some(size) = self.size {
            std::fs::OpenOptions::new().write(true).open(path)?.set_len(size)?;
        }
        if let Some((uid, gid)) = self.owner {
            rustix::fs::chownat(CWD, path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::empty())?;
        }
        if let Some(mode) = self.mode() {
            rustix::fs::chmodat(CWD, path, mode, AtFlags::empty())?;
        }
        if let Some(times) = self.times {
            rustix::fs::utimensat(CWD, path, &timestamps(times), AtFlags::empty())?;
        }
        Ok(())
    }
}

fn timestamps((read, changed): (u32, u32)) -> Timestamps {
    let at = |secs: u32| Timespec { tv_sec: secs.into(), tv_nsec: 0 };
    Timestamps { last_access: at(read), last_modification: at(changed) }
}

/// What a file has.
pub(super) fn write(meta: &Metadata, writer: &mut Writer) {
    let seconds = |time: i64| u32::try_from(time).unwrap_or(if time < 0 { 0 } else { u32::MAX });
    writer
        .u32(SIZE | UID_GID | PERMISSIONS | TIMES)
        .u64(meta.len())
        .u32(meta.uid())
        .u32(meta.gid())
        .u32(meta.mode())
        .u32(seconds(meta.atime()))
        .u32(seconds(meta.mtime()));
}

/// As `ls -l` has it.
pub(super) fn long(name: &OsStr, meta: &Metadata) -> Vec<u8> {
    let kind = meta.file_type();
    let letter = match () {
        () if kind.is_dir() => 'd',
        () if kind.is_symlink() => 'l',
        () if kind.is_fifo() => 'p',
        () if kind.is_socket() => 's',
        () if kind.is_block_device() => 'b',
        () if kind.is_char_device() => 'c',
        () => '-',
    };
    let bits = (0..9).rev().map(|bit| if meta.mode() >> bit & 1 == 1 { ['x', 'w', 'r'][bit % 3] } else { '-' });
    let modes: String = std::iter::once(letter).chain(bits).collect();
    let time = time::OffsetDateTime::from_unix_timestamp(meta.mtime()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (time.date(), time.time());
    let head = format!(
        "{modes} {:4} {:<8} {:<8} {:>8} {date} {:02}:{:02} ",
        meta.nlink(),
        meta.uid(),
        meta.gid(),
        meta.len(),
        clock.hour(),
        clock.minute()
    );
    [head.as_bytes(), name.as_bytes()].concat()
}
