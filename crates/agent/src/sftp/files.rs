//! Each request, on the file system.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

use super::attrs::{self, Attrs};
use super::packet::{Reader, Status, Writer};
use super::{Answer, PACKET_MAX_BYTES};

/// What OpenSSH's clients use beyond the standard.
pub(super) const EXTENSIONS: &[&str] = &[
    "posix-rename@openssh.com",
    "hardlink@openssh.com",
    "fsync@openssh.com",
    "statvfs@openssh.com",
    "limits@openssh.com",
];
/// Open files and directories of one client.
const HANDLES_MAX: usize = 1024;
/// Of one answer.
const DATA_MAX_BYTES: u32 = 256 << 10;
/// Names of one answer: with their long forms they fit a packet.
const NAMES_PER_ANSWER: usize = 64;
/// A name has at most 255 bytes, and stands twice in its entry.
const NAME_ROOM_BYTES: usize = 2 * 255 + 128;
const _: () = assert!(NAMES_PER_ANSWER * NAME_ROOM_BYTES < PACKET_MAX_BYTES);

const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
const EXTENDED_REPLY: u8 = 201;

enum Handle {
    File { file: File, append: bool },
    Directory { path: PathBuf, names: std::vec::IntoIter<OsString> },
}

/// What one client has open.
#[derive(Default)]
pub(super) struct Files {
    open: HashMap<u32, Handle>,
    next: u32,
}

impl Files {
    /// Answers one request.
    pub(super) fn answer(&mut self, kind: u8, id: u32, request: &mut Reader<'_>, answer: &mut Writer) -> Answer {
        match kind {
            3 => self.open(id, request, answer),
            4 => self.close(request).map(|()| answer.done(id)),
            5 => self.read(id, request, answer),
            6 => self.write(request).map(|()| answer.done(id)),
            7 => reply_attrs(id, &fs::symlink_metadata(request.path()?)?, answer),
            8 => {
                let meta = self.file(request)?.metadata()?;
                reply_attrs(id, &meta, answer)
            }
            9 => {
                let path = request.path()?;
                Attrs::read(request)?.apply(path).map(|()| answer.done(id))
            }
            10 => {
                let file = self.file(request)?;
                Attrs::read(request)?.apply_to(file).map(|()| answer.done(id))
            }
            11 => self.open_directory(id, request, answer),
            12 => self.read_directory(id, request, answer),
            13 => finished(fs::remove_file(request.path()?), id, answer),
            14 => make_directory(request).map(|()| answer.done(id)),
            15 => finished(fs::remove_dir(request.path()?), id, answer),
            16 => reply_name(id, real_path(request.path()?)?.as_os_str(), answer),
            17 => reply_attrs(id, &fs::metadata(request.path()?)?, answer),
            18 => {
                let (from, to) = (request.path()?, request.path()?);
                let renamed = rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE);
                finished(renamed.map_err(Into::into), id, answer)
            }
            19 => reply_name(id, fs::read_link(request.path()?)?.as_os_str(), answer),
            20 => {
                // OpenSSH has the target first, other than the draft, and everybody follows it.
                let (target, link) = (request.path()?, request.path()?);
                finished(std::os::unix::fs::symlink(target, link), id, answer)
            }
            200 => self.extended(id, request, answer),
            _ => Err(Status::unsupported()),
        }
    }

    fn extended(&mut self, id: u32, request: &mut Reader<'_>, answer: &mut Writer) -> Answer {
        match request.string()? {
            b"posix-rename@openssh.com" => {
                let (from, to) = (request.path()?, request.path()?);
                finished(fs::rename(from, to), id, answer)
            }
            b"hardlink@openssh.com" => {
                let (from, to) = (request.path()?, request.path()?);
                finished(fs::hard_link(from, to), id, answer)
            }
            b"fsync@openssh.com" => finished(self.file(request)?.sync_all(), id, answer),
            b"statvfs@openssh.com" => {
                let stat = rustix::fs::statvfs(request.path()?)?;
                answer.byte(EXTENDED_REPLY).u32(id);
                let numbers = [
                    stat.f_bsize,
                    stat.f_frsize,
                    stat.f_blocks,
                    stat.f_bfree,
                    stat.f_bavail,
                    stat.f_files,
                    stat.f_ffree,
                    stat.f_favail,
                    stat.f_fsid,
                    stat.f_flag.bits(),
                    stat.f_namemax,
                ];
                for number in numbers {
                    answer.u64(number);
                }
                Ok(())
            }
            b"limits@openssh.com" => {
                answer.byte(EXTENDED_REPLY).u32(id).u64(PACKET_MAX_BYTES as u64);
                answer.u64(DATA_MAX_BYTES.into()).u64(DATA_MAX_BYTES.into()).u64(HANDLES_MAX as u64);
                Ok(())
            }
            _ => Err(Status::unsupported()),
        }
    }

    fn open(&mut self, id: u32, request: &mut Reader<'_>, answer: &mut Writer) -> Answer {
        const READ: u32 = 1;
        const WRITE: u32 = 2;
        const APPEND: u32 = 4;
        const CREATE: u32 = 8;
        const TRUNCATE: u32 = 16;
        const EXCLUSIVE: u32 = 32;
        let path = request.path()?;
        let flags = request.u32()?;
        let has = |flag: u32| flags & flag != 0;
        let wanted = Attrs::read(request)?;
        let mut options = OpenOptions::new();
        options.read(has(READ)).write(has(WRITE)).append(has(APPEND)).truncate(has(TRUNCATE) && has(WRITE));
        options.create(has(CREATE)).create_new(has(CREATE) && has(EXCLUSIVE));
        // A pipe does not hold the server up.
        options.custom_flags(libc::O_NONBLOCK).mode(wanted.mode.unwrap_or(0o666) & 0o7777);
        let file = options.open(path)?;
        let append = has(APPEND);
        self.put(id, Handle::File { file, append }, answer)
    }

    fn open_directory(&mut self, id: u32, request: &mut Reader<'_>, answer: &mut Writer) -> Answer {
        let path = request.path()?.to_owned();
        let mut names = vec![OsString::from("."), OsString::from("..")];
        for entry in fs::read_dir(&path)? {
            names.push(entry?.file_name());
        }
        self.put(id, Handle::Directory { path, names: names.into_iter() }, answer)
    }

    fn put(&mut self, id: u32, handle: Handle, answer: &mut Writer) -> Answer {
        if self.open.len() >= HANDLES_MAX {
            return Err(Status::failure("too many files are open: close some"));
        }
        while self.open.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        self.open.insert(self.next, handle);
        answer.byte(HANDLE).u32(id).string(&self.next.to_be_bytes());
        self.next = self.next.wrapping_add(1);
        Ok(())
    }

    fn handle(&mut self, request: &mut Reader<'_>) -> Result<&mut Handle, Status> {
        let number = number(request)?;
        self.open.get_mut(&number).ok_or_else(|| Status::failure("that handle is not open"))
    }

    fn file(&mut self, request: &mut Reader<'_>) -> Result<&File, Status> {
        match self.handle(request)? {
            Handle::File { file, .. } => Ok(file),
            Handle::Directory { .. } => Err(Status::failure("that handle is a directory's")),
        }
    }

    fn close(&mut self, request: &mut Reader<'_>) -> Answer {
        let number = number(request)?;
        self.open.remove(&number).map(drop).ok_or_else(|| Status::failure("that handle is not open"))
    }

    fn read(&mut self, id: u32, request: &mut Reader<'_>, answer: &mut Writer) -> Answer {
        let file = self.file(request)?;
        let (offset, count) = (request.u64()?, request.u32()?);
        let mut data = vec![0; usize::try_from(count.min(DATA_MAX_BYTES)).unwrap_or(0)];
        let read = file.read_at(&mut data, offset)?;
        if read == 0 && count > 0 {
            return Err(Status::eof());
        }
        answer.byte(DATA).u32(id).string(&data[..read]);
        Ok(())
    }

    fn write(&mut self, request: &mut Reader<'_>) -> Answer {
        let Handle::File { file, append } = self.handle(request)? else {
            return Err(Status::failure("that handle is a directory's"));
        };
        let (offset, data) = (request.u64()?, request.string()?);
        if *append {
            // The kernel puts it at the end.
            std::io::Write::write_all(&mut &*file, data)?;
        } else {
            file.write_all_at(data, offset)?;
        }
        Ok(())
    }

    fn read_directory(&mut self, id: u32, request: &mut Reader<'_>, answer: &mut Writer) -> Answer {
        let Handle::Directory { path, names } = self.handle(request)? else {
            return Err(Status::failure("that handle is a file's"));
        };
        let mut entries = Vec::new();
        for name in names.by_ref() {
            // What went meanwhile is not there.
            if let Ok(meta) = fs::symlink_metadata(path.join(&name)) {
                entries.push((name, meta));
            }
            if entries.len() == NAMES_PER_ANSWER {
                break;
            }
        }
        if entries.is_empty() {
            return Err(Status::eof());
        }
        answer.byte(NAME).u32(id).u32(u32::try_from(entries.len()).unwrap_or(0));
        for (name, meta) in entries {
            answer.string(name.as_bytes()).string(&attrs::long(&name, &meta));
            attrs::write(&meta, answer);
        }
        Ok(())
    }
}

fn number(request: &mut Reader<'_>) -> Result<u32, Status> {
    let text = request.string()?;
    let bytes = text.try_into().map_err(|_| Status::failure("that is no handle"))?;
    Ok(u32::from_be_bytes(bytes))
}

fn finished(result: std::io::Result<()>, id: u32, answer: &mut Writer) -> Answer {
    result?;
    answer.done(id);
    Ok(())
}

fn make_directory(request: &mut Reader<'_>) -> Answer {
    let path = request.path()?;
    let mode = Attrs::read(request)?.mode.unwrap_or(0o777) & 0o7777;
    Ok(fs::DirBuilder::new().mode(mode).create(path)?)
}

/// The absolute path without links; of what is not there yet, that of its directory and its name.
fn real_path(path: &Path) -> Result<PathBuf, Status> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let name = path.file_name().ok_or(error)?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(fs::canonicalize(parent)?.join(name))
        }
        real => Ok(real?),
    }
}

fn reply_attrs(id: u32, meta: &fs::Metadata, answer: &mut Writer) -> Answer {
    answer.byte(ATTRS).u32(id);
    attrs::write(meta, answer);
    Ok(())
}

fn reply_name(id: u32, name: &OsStr, answer: &mut Writer) -> Answer {
    answer.byte(NAME).u32(id).u32(1).string(name.as_bytes()).string(name.as_bytes()).u32(0);
    Ok(())
}
