//! An archive over HTTP: passed on as it comes, unpacked from gzip where it is packed, and checked where the URL says
//! what its checksum is.

use std::io::{Read, Write};
use std::time::Duration;

use bytes::Bytes;
use dispense_api::archive::{ChunkReader, Chunks};
use flate2::read::GzDecoder;
use reqwest::header::{ETAG, IF_RANGE, RANGE};
use reqwest::{Client, Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{ATTEMPTS_MAX, CHUNK_BYTES, ContentError, Moved, RETRY_DELAY, choose_crypto};

/// Chunks between the network and the thread that unpacks.
const CHUNKS_IN_FLIGHT: usize = 8;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that sends nothing for so long is asked again.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Redirections of one archive.
const REDIRECTS_MAX: usize = 5;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

pub(super) async fn fetch(
    url: &str,
    sha256: Option<&str>,
    chunks: mpsc::Sender<Bytes>,
    progress: impl FnMut(Moved) + Send,
) -> Result<Moved, ContentError> {
    let (packed, mut received) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let reader = ChunkReader::new(move || Ok(received.blocking_recv()));
    let unpack = tokio::task::spawn_blocking(move || unpack(reader, &chunks));
    let downloaded = download(url, packed, progress).await;
    let unpacked = unpack.await.unwrap_or_else(|error| Err(ContentError::Archive(std::io::Error::other(error))));
    let (moved, found) = match (downloaded, unpacked) {
        // It ended because what it gave was not taken.
        (Err(ContentError::Gone), Err(why)) | (Ok(_), Err(why)) => return Err(why),
        (Err(why), _) => return Err(why),
        (Ok(done), Ok(())) => done,
    };
    match sha256 {
        Some(wanted) if wanted != found => {
            Err(ContentError::Checksum { what: url.to_owned(), found, wanted: wanted.to_owned() })
        }
        _ => Ok(moved),
    }
}

/// Downloads whatever it is; goes on where it was cut, of the same version. Returns its checksum.
async fn download(
    url: &str,
    packed: mpsc::Sender<Bytes>,
    mut progress: impl FnMut(Moved) + Send,
) -> Result<(Moved, String), ContentError> {
    choose_crypto();
    let redirects = reqwest::redirect::Policy::limited(REDIRECTS_MAX);
    let client = Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).redirect(redirects);
    let failed = |error: reqwest::Error| ContentError::storage(format!("read {url}"), &error.without_url());
    let client = client.build().map_err(failed)?;
    let (mut moved, mut hash, mut version, mut attempt) = (Moved::default(), Sha256::new(), None, 1);
    loop {
        let mut request = client.get(url);
        if let (Some(version), 1..) = (&version, moved.bytes) {
            request = request.header(RANGE, format!("bytes={}-", moved.bytes)).header(IF_RANGE, version);
        }
        let before = moved.bytes;
        let error = match request.send().await {
            Ok(response) => match refused(url, &response, moved.bytes) {
                Some(refused) => return Err(refused),
                None => {
                    version = response.headers().get(ETAG).cloned();
                    pass_on(response, &packed, &mut moved, &mut hash, &mut progress).await?
                }
            },
            Err(error) => Some(error),
        };
        let Some(error) = error else { break };
        if moved.bytes > before {
            attempt = 1;
        }
        // Without a version the rest may be another archive's.
        if attempt == ATTEMPTS_MAX || (moved.bytes > 0 && version.is_none()) {
            return Err(failed(error));
        }
        tokio::time::sleep(RETRY_DELAY * 2u32.pow(attempt - 1)).await;
        attempt += 1;
    }
    let digits = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((moved, digits))
}

/// Why an answer is not what was asked for.
fn refused(url: &str, response: &Response, from: u64) -> Option<ContentError> {
    let wanted = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    if response.status() == wanted {
        return None;
    }
    let message = match response.status() {
        StatusCode::OK => "it changed while it was read".to_owned(),
        status => format!("the server answered {status}"),
    };
    Some(ContentError::Storage { action: format!("read {url}"), message })
}

/// Until the answer ends, or is cut: then the reason.
async fn pass_on(
    mut response: Response,
    packed: &mpsc::Sender<Bytes>,
    moved: &mut Moved,
    hash: &mut Sha256,
    progress: &mut (impl FnMut(Moved) + Send),
) -> Result<Option<reqwest::Error>, ContentError> {
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                hash.update(&chunk);
                moved.bytes += chunk.len() as u64;
                progress(*moved);
                packed.send(chunk).await.map_err(|_| ContentError::Gone)?;
            }
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(error)),
        }
    }
}

/// Passes an archive on, unpacked from gzip where it is packed.
pub(super) fn unpack(mut reader: impl Read, chunks: &mpsc::Sender<Bytes>) -> Result<(), ContentError> {
    let mut magic = [0; GZIP_MAGIC.len()];
    let mut there = 0;
    while there < magic.len() {
        match reader.read(&mut magic[there..]).map_err(ContentError::Archive)? {
            0 => break,
            count => there += count,
        }
    }
    let is_gzip = magic == GZIP_MAGIC;
    let whole = std::io::Cursor::new(magic[..there].to_vec()).chain(reader);
    let give = |chunk| chunks.blocking_send(chunk).map_err(|_| std::io::ErrorKind::BrokenPipe.into());
    let mut writer = Chunks::new(CHUNK_BYTES, give);
    let copied = if is_gzip { copy(GzDecoder::new(whole), &mut writer) } else { copy(whole, &mut writer) };
    copied.map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => ContentError::Gone,
        _ => ContentError::Archive(error),
    })
}

fn copy(mut reader: impl Read, writer: &mut impl Write) -> std::io::Result<()> {
    std::io::copy(&mut reader, writer)?;
    writer.flush()
}
