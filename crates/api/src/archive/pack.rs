//! Packing.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::{ArchiveError, Summary};

/// Packs `root`, a file or a directory, with entries named from `name` on. `progress` is told after each entry.
pub fn pack(
    root: &Path,
    name: &Path,
    writer: impl Write,
    mut progress: impl FnMut(Summary),
) -> Result<Summary, ArchiveError> {
    let mut builder = Builder::new(writer);
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let mut summary = Summary::default();
    let mut stack = vec![(root.to_owned(), name.to_owned())];
    while let Some((path, name)) = stack.pop() {
        let failed = |action: &'static str| {
            let path = path.clone();
            move |source| ArchiveError::Path { action, path, source }
        };
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            // A file of a live tree may go while it is packed; the root may not.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path != root => continue,
            Err(error) => return Err(failed("look at")(error)),
        };
        let kind = meta.file_type();
        if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
            summary.skipped += 1;
            continue;
        }
        if meta.is_file() && meta.nlink() > 1 {
            if let Some(first) = links.get(&(meta.dev(), meta.ino())) {
                let mut header = header(&meta, EntryType::Link, 0);
                builder.append_link(&mut header, &name, first).map_err(|error| ArchiveError::Stream("write", error))?;
                summary.entries += 1;
                progress(summary);
                continue;
            }
            links.insert((meta.dev(), meta.ino()), name.clone());
        }
        if meta.is_symlink() {
            let target = fs::read_link(&path).map_err(failed("read the link"))?;
            let mut header = header(&meta, EntryType::Symlink, 0);
            builder.append_link(&mut header, &name, target).map_err(|error| ArchiveError::Stream("write", error))?;
        } else if meta.is_dir() {
            let mut header = header(&meta, EntryType::Directory, 0);
            builder
                .append_data(&mut header, &name, io::empty())
                .map_err(|error| ArchiveError::Stream("write", error))?;
            let mut children = Vec::new();
            for entry in fs::read_dir(&path).map_err(failed("list"))? {
                let entry = entry.map_err(failed("list"))?;
                children.push((entry.path(), name.join(entry.file_name())));
            }
            // Taken from the end: in order of names, so that packing a tree twice gives the same stream.
            children.sort_unstable_by(|a, b| b.1.cmp(&a.1));
            stack.extend(children);
        } else {
            let file = fs::File::open(&path).map_err(failed("open"))?;
            let mut header = header(&meta, EntryType::Regular, meta.len());
            let content = Exactly { inner: file, left: meta.len() };
            builder.append_data(&mut header, &name, content).map_err(failed("read"))?;
            summary.bytes += meta.len();
        }
        summary.entries += 1;
        progress(summary);
    }
    let mut writer = builder.into_inner().map_err(|error| ArchiveError::Stream("write", error))?;
    writer.flush().map_err(|error| ArchiveError::Stream("write", error))?;
    Ok(summary)
}

fn header(meta: &Metadata, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(meta.mode() & 0o7777);
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
    header.set_uid(meta.uid().into());
    header.set_gid(meta.gid().into());
    header
}

/// Exactly as many bytes as the header says: a file that grows meanwhile is cut, one that shrinks is filled up
/// with zeros, so that the entries behind it stay readable.
struct Exactly<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let max = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut count = self.inner.read(&mut buffer[..max])?;
        if count == 0 && max > 0 {
            buffer[..max].fill(0);
            count = max;
        }
        self.left -= count as u64;
        Ok(count)
    }
}
