//! Object storage. A file is an object; what an object has no place for (a mode, where a link leads) stands in its
//! metadata, and is nobody's who wrote it otherwise. What comes is checked as a whole, also over ranges ([`sum`]).

mod sum;

use std::borrow::Cow;
use std::io::{self, Read, Seek, Write};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use dispense_api::archive::ChunkReader;
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{Attribute, Attributes, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore};
use sha2::{Digest, Sha256};
use tar::{Archive, Builder, EntryType, Header};
use tempfile::SpooledTempFile;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use self::sum::{Mismatch, Sum};
use super::{ATTEMPTS_MAX, CHUNK_BYTES, ContentError, Moved, RETRY_DELAY, choose_crypto};

/// Of a tar stream.
const BLOCK_BYTES: u64 = 512;
/// Octal, as `chmod` takes it.
const MODE: &str = "dispense-mode";
/// The target of a symbolic link, whose object is empty.
const LINK: &str = "dispense-link";
const FILE_MODE: u32 = 0o644;
const LINK_MODE: u32 = 0o777;
/// Objects of one tree.
const OBJECTS_MAX: u64 = 1_000_000;
/// A file up to this size is one request; a larger one goes up in parts.
const PART_BYTES: usize = 8 << 20;
/// An object whose bytes are not those that are recorded of it is read so often: the way may be bad, or the object.
const DOWNLOADS_MAX: u32 = 3;

fn open(bucket: &str) -> Result<AmazonS3, ContentError> {
    choose_crypto();
    // Of a server that is not Amazon's the region means nothing, but must be there.
    let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    let builder = builder.with_client_options(sum::asking()).with_http_connector(sum::Connector);
    builder.build().map_err(|error| ContentError::storage(format!("use s3://{bucket}"), error))
}

pub(super) async fn fetch(
    bucket: &str,
    prefix: &str,
    chunks: mpsc::Sender<Bytes>,
    mut progress: impl FnMut(Moved) + Send,
) -> Result<Moved, ContentError> {
    let store = open(bucket)?;
    let place = format!("s3://{bucket}/{prefix}");
    let root = Path::from(prefix);
    let mut objects = store.list((!prefix.is_empty()).then_some(&root));
    let mut moved = Moved::default();
    let listing = |error| ContentError::storage(format!("list {place}"), error);
    while let Some(object) = objects.try_next().await.map_err(listing)? {
        let Some(name) = below(&object.location, prefix) else { continue };
        if moved.entries == OBJECTS_MAX {
            let message = format!("it has more than {OBJECTS_MAX} objects");
            return Err(ContentError::Storage { action: format!("read {place}"), message });
        }
        send_object(&store, &object, &name, &chunks).await?;
        moved = Moved { entries: moved.entries + 1, bytes: moved.bytes + object.size };
        progress(moved);
    }
    if moved.entries == 0 {
        return Err(ContentError::Empty(place));
    }
    // The end of an archive: two blocks of zeros.
    give(&chunks, Bytes::from_static(&[0; 2 * BLOCK_BYTES as usize])).await?;
    Ok(moved)
}

/// The name of an object in the tree; nothing for what stands for a directory.
fn below(location: &Path, prefix: &str) -> Option<String> {
    let whole = location.as_ref();
    let name = if prefix.is_empty() { whole } else { whole.strip_prefix(prefix)?.strip_prefix('/')? };
    (!name.is_empty()).then(|| name.to_owned())
}

async fn give(chunks: &mpsc::Sender<Bytes>, chunk: Bytes) -> Result<(), ContentError> {
    chunks.send(chunk).await.map_err(|_| ContentError::Gone)
}

/// One object as an entry of the archive. Where its bytes are not those that are meant the entry comes once more: the later
/// one of a name replaces the earlier.
async fn send_object(
    store: &AmazonS3,
    object: &ObjectMeta,
    name: &str,
    chunks: &mpsc::Sender<Bytes>,
) -> Result<(), ContentError> {
    let mut downloads = 1;
    loop {
        let mut download = Download { object, name, chunks, sent: 0, sum: None };
        let Err(why) = download.run(store).await else { return Ok(()) };
        if downloads == DOWNLOADS_MAX || !matches!(why, ContentError::Damaged { .. }) {
            return Err(why);
        }
        tracing::warn!(object = %object.location, error = %why, "an object is read again");
        pause(&mut downloads).await;
    }
}

/// One object on its way into the archive. A transfer that is cut goes on where it was, of the same version.
struct Download<'a> {
    object: &'a ObjectMeta,
    name: &'a str,
    chunks: &'a mpsc::Sender<Bytes>,
    sent: u64,
    /// Over the whole, whatever pieces it came in.
    sum: Option<Sum>,
}

impl Download<'_> {
    async fn run(&mut self, store: &AmazonS3) -> Result<(), ContentError> {
        let object = self.object;
        let failed = |error| ContentError::storage(format!("read {}", object.location), error);
        let (mut attempt, mut begun) = (1, false);
        while !begun || self.sent < object.size {
            let range = (self.sent > 0).then_some(GetRange::Offset(self.sent));
            let options = GetOptions { range, if_match: object.e_tag.clone(), ..GetOptions::default() };
            let before = self.sent;
            let result = match store.get_opts(&object.location, options).await {
                Ok(result) => result,
                Err(error) if attempt < ATTEMPTS_MAX && is_passing(&error) => {
                    pause(&mut attempt).await;
                    continue;
                }
                Err(error) => return Err(failed(error)),
            };
            if !begun {
                give(self.chunks, head(self.name, object.size, &result.attributes)?).await?;
                begun = true;
                if link(&result.attributes).is_some() {
                    return Ok(());
                }
            }
            if before == 0 {
                self.sum = Sum::of(&result, metadata(&result.attributes, sum::SHA256));
            }
            let error = self.pass_on(result).await?;
            if self.sent > before {
                attempt = 1;
            }
            match error {
                None if self.sent == object.size => {}
                _ if attempt < ATTEMPTS_MAX => pause(&mut attempt).await,
                Some(error) => return Err(failed(error)),
                None => {
                    let message = format!("it ended after {} of {} bytes", self.sent, object.size);
                    return Err(ContentError::Storage { action: format!("read {}", object.location), message });
                }
            }
        }
        self.finish().await
    }

    /// Until the answer ends, or is cut: then the reason.
    async fn pass_on(&mut self, result: GetResult) -> Result<Option<object_store::Error>, ContentError> {
        let mut body = result.into_stream();
        loop {
            match body.try_next().await {
                Ok(Some(chunk)) => {
                    // More than the listing said would break the archive.
                    let rest = usize::try_from(self.object.size - self.sent).unwrap_or(usize::MAX);
                    let chunk = chunk.slice(..chunk.len().min(rest));
                    if let Some(sum) = &mut self.sum {
                        sum.update(&chunk);
                    }
                    self.sent += chunk.len() as u64;
                    give(self.chunks, chunk).await?;
                }
                Ok(None) => return Ok(None),
                Err(error) => return Ok(Some(error)),
            }
        }
    }

    /// The end of the entry, and whether it was the object that is meant.
    async fn finish(&mut self) -> Result<(), ContentError> {
        let padding = (BLOCK_BYTES - self.object.size % BLOCK_BYTES) % BLOCK_BYTES;
        give(self.chunks, Bytes::from(vec![0; usize::try_from(padding).unwrap_or(0)])).await?;
        let checked = self.sum.take().map_or(Ok(()), Sum::finish);
        checked.map_err(|Mismatch { algorithm, found, wanted }| {
            let what = self.object.location.to_string();
            ContentError::Damaged { what, algorithm, found, wanted }
        })
    }
}

/// Whether it may be there the next time.
fn is_passing(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::Generic { .. })
}

async fn pause(attempt: &mut u32) {
    tokio::time::sleep(RETRY_DELAY * 2u32.pow(*attempt - 1)).await;
    *attempt += 1;
}

fn metadata<'a>(attributes: &'a Attributes, name: &'static str) -> Option<&'a str> {
    attributes.get(&Attribute::Metadata(Cow::Borrowed(name))).map(AsRef::as_ref)
}

fn link(attributes: &Attributes) -> Option<&str> {
    metadata(attributes, LINK)
}

/// The blocks of an archive before a file's bytes.
fn head(name: &str, size: u64, attributes: &Attributes) -> Result<Bytes, ContentError> {
    let mode = metadata(attributes, MODE).and_then(|text| u32::from_str_radix(text, 8).ok());
    let mut header = Header::new_gnu();
    let mut builder = Builder::new(Vec::new());
    if let Some(target) = link(attributes) {
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(LINK_MODE);
        header.set_size(0);
        builder.append_link(&mut header, name, target).map_err(ContentError::Archive)?;
    } else {
        header.set_entry_type(EntryType::Regular);
        header.set_mode(mode.unwrap_or(FILE_MODE) & 0o777);
        header.set_size(size);
        // The bytes follow by themselves.
        builder.append_data(&mut header, name, std::io::empty()).map_err(ContentError::Archive)?;
    }
    Ok(Bytes::from(std::mem::take(builder.get_mut())))
}

pub(super) async fn save(
    bucket: &str,
    prefix: &str,
    mut chunks: mpsc::Receiver<io::Result<Bytes>>,
    progress: impl FnMut(Moved) + Send + 'static,
) -> Result<Moved, ContentError> {
    let saving = Saving { store: Arc::new(open(bucket)?), prefix: prefix.to_owned(), runtime: Handle::current() };
    let reader = ChunkReader::new(move || chunks.blocking_recv().transpose());
    let saved = tokio::task::spawn_blocking(move || saving.all(reader, progress)).await;
    saved.unwrap_or_else(|error| Err(ContentError::Archive(std::io::Error::other(error))))
}

/// Reads an archive on a thread that may wait.
struct Saving {
    store: Arc<AmazonS3>,
    prefix: String,
    runtime: Handle,
}

impl Saving {
    fn all(&self, reader: impl Read, mut progress: impl FnMut(Moved)) -> Result<Moved, ContentError> {
        let mut archive = Archive::new(reader);
        let mut moved = Moved::default();
        for entry in archive.entries().map_err(ContentError::Archive)? {
            let mut entry = entry.map_err(ContentError::Archive)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let mode = entry.header().mode().map_err(ContentError::Archive)? & 0o777;
            let kind = entry.header().entry_type();
            let target = entry.link_name_bytes().map(|target| String::from_utf8_lossy(&target).into_owned());
            let mut attributes = Attributes::new();
            match (kind, target) {
                (EntryType::Regular, _) => {
                    attributes.insert(Attribute::Metadata(MODE.into()), format!("{mode:o}").into());
                }
                (EntryType::Symlink, Some(target)) => {
                    attributes.insert(Attribute::Metadata(LINK.into()), target.into());
                }
                // Directories are made by what is in them; nothing else is content.
                _ => continue,
            }
            let bytes = self.put(&name, attributes, &mut entry)?;
            moved = Moved { entries: moved.entries + 1, bytes: moved.bytes + bytes };
            progress(moved);
        }
        Ok(moved)
    }

    fn put(&self, name: &str, mut attributes: Attributes, reader: &mut impl Read) -> Result<u64, ContentError> {
        let name = name.trim_start_matches("./");
        let key = if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) };
        let failed = |error: &dyn std::fmt::Display| ContentError::Storage {
            action: format!("save {key}"),
            message: error.to_string(),
        };
        let path = Path::parse(&key).map_err(|error| failed(&error))?;
        // The storage takes metadata before it takes bytes, so the sum of all must be known before the first goes up.
        let mut whole = SpooledTempFile::new(PART_BYTES);
        let sum = spool(reader, &mut whole, &failed)?;
        attributes.insert(Attribute::Metadata(sum::SHA256.into()), sum.into());
        let store: Arc<dyn ObjectStore> = self.store.clone();
        let mut writer = BufWriter::with_capacity(store, path, PART_BYTES).with_attributes(attributes);
        let mut total = 0;
        loop {
            let mut buffer = BytesMut::zeroed(CHUNK_BYTES);
            let count = whole.read(&mut buffer).map_err(|error| failed(&error))?;
            if count == 0 {
                break;
            }
            buffer.truncate(count);
            total += count as u64;
            self.runtime.block_on(writer.put(buffer.freeze())).map_err(|error| failed(&error))?;
        }
        self.runtime.block_on(writer.shutdown()).map_err(|error| failed(&error))?;
        Ok(total)
    }
}

/// Keeps what is read, in memory or else in a file without a name, and rewinds it. Returns its checksum.
fn spool(
    reader: &mut impl Read,
    whole: &mut SpooledTempFile,
    failed: &dyn Fn(&dyn std::fmt::Display) -> ContentError,
) -> Result<String, ContentError> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHUNK_BYTES]);
    loop {
        let count = reader.read(&mut buffer).map_err(ContentError::Archive)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        whole.write_all(&buffer[..count]).map_err(|error| failed(&format!("its copy on disk: {error}")))?;
    }
    whole.rewind().map_err(|error| failed(&error))?;
    Ok(sum::hex(hash))
}
