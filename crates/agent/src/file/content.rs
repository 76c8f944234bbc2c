//! Reading and writing one file as a stream.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::{BufMut, Bytes, BytesMut};
use dispense_api::error::{Code, Error};
use dispense_api::v1::{
    self, ReadFileRequest, ReadFileResponse, WriteFileRequest, read_file_response, write_file_request,
};
use dispense_api::{archive::Owner, limits};
use futures_util::FutureExt;
use prost::encoding::encode_varint;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::beneath::{self, Place};
use super::{blocking, describe, owner, refusal};
use crate::call::{Requests, Responses, gone};
use crate::serve::Agent;

/// Chunks between the disk and the stream.
const CHUNKS_IN_FLIGHT: usize = 4;

pub(crate) async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: ReadFileRequest = requests.only().await?;
    let place = beneath::existing(agent, &request.path, &request.beneath)?;
    let path = place.shown.clone();
    let left = if request.length == 0 { u64::MAX } else { request.length };
    let (file, described, first) = blocking(move || open(&place, request.offset, left)).await?;
    let is_regular = described.kind() == v1::FileKind::Regular;
    responses.gather(&ReadFileResponse { kind: Some(read_file_response::Kind::File(described)) });
    // A pipe or a device may keep its first byte for long.
    if !is_regular {
        responses.flush().await.map_err(gone)?;
    }
    let left = left - first.len() as u64;
    let is_whole = is_regular && (first.len() < limits::DATA_CHUNK_BYTES || left == 0);
    if !first.is_empty() {
        send_data(responses, first).await?;
    }
    if is_whole {
        return Ok(());
    }
    let (sender, mut chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let reader = tokio::task::spawn_blocking(move || send_chunks(file.take(left), &sender));
    while let Some(chunk) = chunks.recv().await {
        send_data(responses, chunk).await?;
    }
    let failed = |_| Error::new(Code::Internal, "file_failed", "the file operation ended unexpectedly");
    reader.await.map_err(failed)?.map_err(|error| refusal("read", &path, &error))
}

/// Opens a file; of a regular one the first chunk comes along, which is all of most: a thread for the rest costs more than they
/// do.
fn open(place: &Place, offset: u64, left: u64) -> Result<(File, v1::File, Bytes), Error> {
    let path = &place.path;
    let failed = |error: io::Error| refusal("read", &place.shown, &error);
    // A pipe without a writer would block the open for ever.
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if meta.is_dir() {
        return Err(failed(io::Error::from_raw_os_error(libc::EISDIR)));
    }
    if !meta.is_file() && offset > 0 {
        return Err(failed(io::Error::from_raw_os_error(libc::EINVAL)));
    }
    if offset > 0 {
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    }
    let first = if meta.is_file() { chunk(&mut (&file).take(left)).map_err(failed)? } else { Bytes::new() };
    Ok((file, describe(&place.shown, &meta), first))
}

/// As much as one message carries; less is the end.
fn chunk(reader: &mut impl Read) -> io::Result<Bytes> {
    let mut chunk = Vec::with_capacity(limits::DATA_CHUNK_BYTES);
    reader.take(limits::DATA_CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
    Ok(chunk.into())
}

/// Sends what `reader` has, in chunks; ends early when nobody takes them.
pub(super) fn send_chunks(mut reader: impl Read, sender: &mpsc::Sender<Bytes>) -> io::Result<()> {
    loop {
        let chunk = chunk(&mut reader)?;
        if chunk.is_empty() || sender.blocking_send(chunk).is_err() {
            return Ok(());
        }
    }
}

/// Sends a message whose field 2 is `data`, as in `ReadFileResponse` and `DownloadArchiveResponse`. A small one is the last, and
/// goes with the status.
pub(super) async fn send_data<S: AsyncRead + AsyncWrite + Unpin>(
    responses: &mut Responses<S>,
    data: Bytes,
) -> Result<(), Error> {
    let mut head = BytesMut::with_capacity(16);
    head.put_u8(0x12);
    encode_varint(data.len() as u64, &mut head);
    responses.gather_with_payload(&head, data).await.map_err(gone)
}

pub(crate) async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: WriteFileRequest = requests.only().await?;
    let Some(write_file_request::Kind::Open(open)) = request.kind else {
        return Err(Error::new(Code::InvalidArgument, "file_invalid", "the first message must have `open`"));
    };
    let place = beneath::replaced(agent, &open.path, &open.beneath)?;
    let named = (!open.owner.is_empty()).then(|| owner(agent, &open.owner)).transpose()?;
    let default = owner(agent, "")?;
    let (sender, chunks) = mpsc::channel::<Bytes>(CHUNKS_IN_FLIGHT);
    let mut is_whole = false;
    // What has come with the first message waits for the writer's thread, instead of the thread for it.
    while !is_whole && let Ok(room) = sender.try_reserve() {
        let Some(next) = next_chunk(requests).now_or_never() else { break };
        let data = next?;
        is_whole = data.is_empty();
        room.send(data);
    }
    let writer = tokio::task::spawn_blocking(move || Replacement::write(&place, &open, named, default, chunks));
    let failed = |_| Error::new(Code::Internal, "file_failed", "the file operation ended unexpectedly");
    while !is_whole {
        // The writer ends early only by an error, told below: also to a caller who waits before it sends more.
        let data = tokio::select! {
            data = next_chunk(requests) => data?,
            () = sender.closed() => break,
        };
        is_whole = data.is_empty();
        if sender.send(data).await.is_err() {
            break;
        }
    }
    let described = writer.await.map_err(failed)??;
    responses.gather(&described);
    Ok(())
}

/// The next bytes of a file's content; none says that it is whole.
async fn next_chunk<S: AsyncRead + AsyncWrite + Unpin>(requests: &mut Requests<S>) -> Result<Bytes, Error> {
    match requests.next::<WriteFileRequest>().await?.map(|message| message.kind) {
        Some(Some(write_file_request::Kind::Data(data))) => Ok(data),
        Some(_) => {
            let message = "a message after the first must have `data`";
            Err(Error::new(Code::InvalidArgument, "file_invalid", message))
        }
        // A cut connection ends like this too, but then the caller has gone, and half a file is not kept.
        None if requests.gone() => Err(Error::new(Code::Cancelled, "gone", "the caller has gone")),
        None => Ok(Bytes::new()),
    }
}

/// A file that is written beside the one it replaces; removed when it is not finished.
struct Replacement {
    path: PathBuf,
    file: File,
    finished: bool,
}

impl Replacement {
    fn write(
        place: &Place,
        open: &v1::WriteFile,
        named: Option<Owner>,
        default: Owner,
        mut chunks: mpsc::Receiver<Bytes>,
    ) -> Result<v1::File, Error> {
        let path = &place.path;
        let failed = |error: io::Error| refusal("write", &place.shown, &error);
        let parent = path.parent().ok_or_else(|| failed(io::Error::from_raw_os_error(libc::EISDIR)))?;
        if open.parents {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        // The target of a link is replaced, as an editor does, and not the link. A confined path has none.
        let target = match open.beneath.as_str() {
            "" => fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()),
            _ => path.to_owned(),
        };
        let replaced = fs::metadata(&target).ok();
        if open.exclusive && fs::symlink_metadata(path).is_ok() {
            return Err(failed(io::Error::from_raw_os_error(libc::EEXIST)));
        }
        if replaced.as_ref().is_some_and(fs::Metadata::is_dir) {
            return Err(failed(io::Error::from_raw_os_error(libc::EISDIR)));
        }
        let mut this = Self::create(&target).map_err(failed)?;
        loop {
            match chunks.blocking_recv() {
                None => return Err(Error::new(Code::Cancelled, "gone", "the caller has gone")),
                Some(chunk) if chunk.is_empty() => break,
                Some(chunk) => this.file.write_all(&chunk).map_err(failed)?,
            }
        }
        let kept = replaced.as_ref().map(|meta| Owner { uid: meta.uid(), gid: meta.gid() });
        let owner = named.or(kept).unwrap_or(default);
        // Only root may give files away; what an ordinary user writes is its own anyway.
        let given = std::os::unix::fs::fchown(&this.file, Some(owner.uid), Some(owner.gid));
        if named.is_some() {
            given.map_err(failed)?;
        }
        let mode = match (open.mode, &replaced) {
            (0, Some(meta)) => meta.mode() & 0o7777,
            (0, None) => 0o644,
            (mode, _) => mode & 0o7777,
        };
        this.file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed)?;
        this.finish(&target, open.exclusive).map_err(failed)?;
        let meta = fs::symlink_metadata(&target).map_err(failed)?;
        Ok(describe(&place.shown, &meta))
    }

    fn create(target: &Path) -> io::Result<Self> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let mut name = std::ffi::OsString::from(".");
        name.push(target.file_name().ok_or(io::ErrorKind::IsADirectory)?);
        name.push(format!(".{:016x}", u64::from_ne_bytes(random)));
        let path = target.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { path, file, finished: false })
    }

    fn finish(&mut self, target: &Path, exclusive: bool) -> io::Result<()> {
        if exclusive {
            // Between the first look and now somebody may have made it.
            fs::hard_link(&self.path, target)?;
            fs::remove_file(&self.path)?;
        } else {
            fs::rename(&self.path, target)?;
        }
        self.finished = true;
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.path);
        }
    }
}
