//! Object storage. A file is an object; what an object has no place for (a mode, where a link leads) stands in its
//! metadata ([`kept`]), and is nobody's who wrote it otherwise. What comes is checked as a whole, also over ranges
//! ([`sum`]).

mod kept;
mod name;
mod save;
mod sum;

use std::io;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::sync::mpsc;

use self::kept::{Kept, Kind, metadata};
use self::sum::{Mismatch, Sum};
use super::{ATTEMPTS_MAX, ContentError, Moved, RETRY_DELAY, Saved, choose_crypto};

/// Of a tar stream.
const BLOCK_BYTES: u64 = 512;
/// Objects of one tree.
const OBJECTS_MAX: u64 = 1_000_000;
/// An object whose bytes are not those that are recorded of it is read so often: the way may be bad, or the object.
const DOWNLOADS_MAX: u32 = 3;

fn open(bucket: &str) -> Result<AmazonS3, ContentError> {
    choose_crypto();
    // Of a server that is not Amazon's the region means nothing, but must be there.
    let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    let builder = builder.with_client_options(sum::asking()).with_http_connector(sum::Connector);
    builder.build().map_err(|error| ContentError::storage(format!("use s3://{bucket}"), &error))
}

pub(super) async fn fetch(
    bucket: &str,
    prefix: &str,
    chunks: mpsc::Sender<Bytes>,
    mut progress: impl FnMut(Moved) + Send,
) -> Result<Moved, ContentError> {
    let store = open(bucket)?;
    let place = format!("s3://{bucket}/{prefix}");
    // As it stands: a `%` or a `~` in it is a `%` or a `~` of the keys.
    let root = Path::parse(prefix).map_err(|error| ContentError::storage(format!("read {place}"), &error))?;
    let mut objects = store.list((!prefix.is_empty()).then_some(&root));
    let mut moved = Moved::default();
    let listing = |error| ContentError::storage(format!("list {place}"), &error);
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
        let is_object = !prefix.is_empty() && store.head(&root).await.is_ok();
        return Err(if is_object { ContentError::Object(place) } else { ContentError::Empty(place) });
    }
    // The end of an archive: two blocks of zeros.
    give(&chunks, Bytes::from_static(&[0; 2 * BLOCK_BYTES as usize])).await?;
    Ok(moved)
}

/// The key of an object below the prefix; nothing for what stands for a directory.
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
        let failed = |error| ContentError::storage(format!("read {}", object.location), &error);
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
                // A key that ends in a slash, which lists are read without: how others write a directory.
                Err(object_store::Error::NotFound { .. }) if object.size == 0 && !begun => {
                    let kept = Kept { kind: Kind::Directory, mode: None, modified: None, is_escaped: false };
                    return self.begin(&kept).await;
                }
                Err(error) => return Err(failed(error)),
            };
            if !begun {
                let kept = Kept::read(&result.attributes);
                self.begin(&kept).await?;
                begun = true;
                if kept.kind != Kind::File {
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

    async fn begin(&mut self, kept: &Kept) -> Result<(), ContentError> {
        let written = u64::try_from(self.object.last_modified.timestamp()).unwrap_or(0);
        let head = kept.head(&kept.name(self.name), self.object.size, written).map_err(ContentError::Archive)?;
        give(self.chunks, head).await
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
        let what = self.object.location.to_string();
        checked.map_err(|Mismatch { algorithm, found, wanted }| ContentError::damaged(what, algorithm, found, wanted))
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

pub(super) async fn save(
    bucket: &str,
    prefix: &str,
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    progress: impl FnMut(Moved) + Send + 'static,
) -> Result<Saved, ContentError> {
    save::save(open(bucket)?, prefix, chunks, progress).await
}
