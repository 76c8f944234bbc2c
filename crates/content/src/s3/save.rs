//! A tree on its way into a storage: an entry of the archive becomes an object, one after the other.
//!
//! A directory is made by what is in it; one that has nothing in it, or a mode of its own, is an object too. A hard link
//! is a file of its own. What no object can be is counted, never left out in silence.

use std::io::{self, Read, Seek, Write};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use dispense_api::archive::ChunkReader;
use futures_util::TryStreamExt;
use object_store::aws::AmazonS3;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{Attribute, ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};
use tempfile::SpooledTempFile;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::kept::{DIRECTORY_MODE, Kept, Kind, metadata};
use super::{name, sum};
use crate::{CHUNK_BYTES, ContentError, Moved, Saved};

/// A file up to this size is one request; a larger one goes up in parts.
const PART_BYTES: usize = 8 << 20;
/// Of a whole key, as S3 has it.
const KEY_MAX_BYTES: usize = 1024;
/// Of a link's target: all metadata of an object are 2 KiB at most.
const TARGET_MAX_BYTES: usize = 1536;

pub(crate) async fn save(
    store: AmazonS3,
    prefix: &str,
    mut chunks: mpsc::Receiver<io::Result<Bytes>>,
    progress: impl FnMut(Moved) + Send + 'static,
) -> Result<Saved, ContentError> {
    let saving = Saving {
        store: Arc::new(store),
        prefix: prefix.to_owned(),
        runtime: Handle::current(),
        waiting: None,
        top: None,
        saved: Saved::default(),
    };
    let reader = ChunkReader::new(move || chunks.blocking_recv().transpose());
    let saved = tokio::task::spawn_blocking(move || saving.all(reader, progress)).await;
    saved.unwrap_or_else(|error| Err(ContentError::Archive(io::Error::other(error))))
}

/// Reads an archive on a thread that may wait.
struct Saving {
    store: Arc<AmazonS3>,
    prefix: String,
    runtime: Handle,
    /// A directory of which nothing has come yet.
    waiting: Option<(Vec<u8>, Kept)>,
    /// The directory that is saved.
    top: Option<Kept>,
    saved: Saved,
}

impl Saving {
    fn all(mut self, reader: impl Read, mut progress: impl FnMut(Moved)) -> Result<Saved, ContentError> {
        let mut archive = Archive::new(reader);
        for entry in archive.entries().map_err(ContentError::Archive)? {
            self.one(&mut entry.map_err(ContentError::Archive)?)?;
            progress(self.saved.moved);
        }
        self.end_directory(b"")?;
        // Of an empty tree there is one object, without which it could not be told from what was never saved.
        if let Some(top) = self.top.take()
            && self.saved.moved.entries + self.saved.lost == 0
        {
            self.put(name::TOP.as_bytes(), top, &mut io::empty())?;
        }
        Ok(self.saved)
    }

    fn one(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), ContentError> {
        let header = entry.header();
        let entry_type = header.entry_type();
        let mode = header.mode().map_err(ContentError::Archive)?;
        let modified = header.mtime().map_err(ContentError::Archive)?;
        let kept = |kind| Kept { kind, mode: Some(mode & 0o777), modified: Some(modified), is_escaped: false };
        let name = below_top(&entry.path_bytes());
        let target = entry.link_name_bytes().map(|target| target.into_owned());
        match (entry_type, target) {
            (EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse, _) => {
                self.end_directory(&name)?;
                self.put(&name, kept(Kind::File), entry)
            }
            (EntryType::Symlink, Some(target)) => {
                self.end_directory(&name)?;
                self.put(&name, kept(Kind::Link(target)), &mut io::empty())
            }
            (EntryType::Link, Some(first)) => {
                self.end_directory(&name)?;
                self.put_again(&name, &below_top(&first), kept(Kind::File))
            }
            (EntryType::Directory, _) => {
                self.end_directory(&name)?;
                if name.is_empty() {
                    self.top = Some(kept(Kind::Directory));
                } else {
                    self.waiting = Some((name, kept(Kind::Directory)));
                }
                Ok(())
            }
            // A device, a socket or a pipe, or the packer's word that there was one.
            _ => {
                self.saved.skipped += 1;
                Ok(())
            }
        }
    }

    /// The directory that waits is an object where the next entry is not in it, or does not tell its mode.
    fn end_directory(&mut self, next: &[u8]) -> Result<(), ContentError> {
        let Some((name, kept)) = self.waiting.take() else { return Ok(()) };
        let is_parent = next.strip_prefix(&name[..]).is_some_and(|rest| rest.starts_with(b"/"));
        if is_parent && kept.mode == Some(DIRECTORY_MODE) {
            return Ok(());
        }
        self.put(&[&name, name::INSIDE.as_bytes()].concat(), kept, &mut io::empty())
    }

    fn key(&self, name: &[u8]) -> (String, bool) {
        let (key, is_escaped) = name::key(name);
        (if self.prefix.is_empty() { key.into_owned() } else { format!("{}/{key}", self.prefix) }, is_escaped)
    }

    fn put(&mut self, name: &[u8], kept: Kept, reader: &mut impl Read) -> Result<(), ContentError> {
        let (key, is_escaped) = self.key(name);
        let is_long = matches!(&kept.kind, Kind::Link(target) if name::ascii(target).len() > TARGET_MAX_BYTES);
        if is_long || key.len() > KEY_MAX_BYTES {
            self.saved.lost += 1;
            self.saved.lost_example.get_or_insert_with(|| String::from_utf8_lossy(name).into_owned());
            return Ok(());
        }
        let failed = |error: &dyn std::error::Error| ContentError::storage(format!("save {key}"), error);
        let path = Path::parse(&key).map_err(|error| failed(&error))?;
        // The storage takes metadata before it takes bytes, so the sum of all must be known before the first goes up.
        let mut whole = SpooledTempFile::new(PART_BYTES);
        let sum = spool(reader, &mut whole, &failed)?;
        let mut attributes = Kept { is_escaped, ..kept }.write();
        attributes.insert(Attribute::Metadata(sum::SHA256.into()), sum.into());
        let store: Arc<dyn ObjectStore> = self.store.clone();
        let mut writer = BufWriter::with_capacity(store, path, PART_BYTES).with_attributes(attributes);
        loop {
            let mut buffer = BytesMut::zeroed(CHUNK_BYTES);
            let count = whole.read(&mut buffer).map_err(|error| failed(&error))?;
            if count == 0 {
                break;
            }
            buffer.truncate(count);
            self.saved.moved.bytes += count as u64;
            self.runtime.block_on(writer.put(buffer.freeze())).map_err(|error| failed(&error))?;
        }
        self.runtime.block_on(writer.shutdown()).map_err(|error| failed(&error))?;
        self.saved.moved.entries += 1;
        Ok(())
    }

    /// Another name of a file that was saved before: the archive does not have its bytes a second time.
    fn put_again(&mut self, name: &[u8], first: &[u8], kept: Kept) -> Result<(), ContentError> {
        let (key, _) = self.key(first);
        if key.len() > KEY_MAX_BYTES {
            // It is lost as its first name is.
            self.saved.lost += 1;
            return Ok(());
        }
        let failed = |error: &dyn std::error::Error| ContentError::storage(format!("read {key}"), error);
        let path = Path::parse(&key).map_err(|error| failed(&error))?;
        let saved = self.runtime.block_on(self.store.get(&path)).map_err(|error| failed(&error))?;
        let mut checked = sum::Sum::of(&saved, metadata(&saved.attributes, sum::SHA256));
        let (runtime, mut body) = (self.runtime.clone(), saved.into_stream());
        let mut reader = ChunkReader::new(|| {
            let chunk = runtime.block_on(body.try_next()).map_err(io::Error::other)?;
            if let (Some(chunk), Some(sum)) = (&chunk, &mut checked) {
                sum.update(chunk);
            }
            Ok(chunk)
        });
        self.put(name, kept, &mut reader)?;
        drop(reader);
        let checked = checked.map_or(Ok(()), sum::Sum::finish);
        checked.map_err(|mismatch| ContentError::damaged(key, mismatch.algorithm, mismatch.found, mismatch.wanted))
    }
}

/// A name of the archive as one below its top, which is `.`.
fn below_top(name: &[u8]) -> Vec<u8> {
    let parts = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.collect::<Vec<_>>().join(&b'/')
}

/// Keeps what is read, in memory or else in a file without a name, and rewinds it. Returns its checksum.
fn spool(
    reader: &mut impl Read,
    whole: &mut SpooledTempFile,
    failed: &dyn Fn(&dyn std::error::Error) -> ContentError,
) -> Result<String, ContentError> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHUNK_BYTES]);
    loop {
        let count = reader.read(&mut buffer).map_err(ContentError::Archive)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        let kept = whole.write_all(&buffer[..count]);
        kept.map_err(|error| failed(&io::Error::new(error.kind(), format!("its copy on disk: {error}"))))?;
    }
    whole.rewind().map_err(|error| failed(&error))?;
    Ok(sum::hex(hash))
}
