//! Trees as archives.

use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;
use dispense_api::archive::{self, ChunkReader, Chunks};
use dispense_api::error::{Code, Error};
use dispense_api::limits;
use dispense_api::v1::{
    ArchiveSummary, DownloadArchiveRequest, DownloadArchiveResponse, UploadArchiveRequest, download_archive_response,
    upload_archive_request,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::content::send_data;
use super::{archive_refusal, blocking, describe, owner, refusal, resolve};
use crate::call::{Requests, Responses, gone};
use crate::serve::Agent;

/// Chunks between the disk and the stream.
const CHUNKS_IN_FLIGHT: usize = 4;

pub(crate) async fn upload<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: UploadArchiveRequest = requests.only().await?;
    let Some(upload_archive_request::Kind::Open(open)) = request.kind else {
        return Err(Error::new(Code::InvalidArgument, "archive_invalid", "the first message must have `open`"));
    };
    let path = resolve(agent, &open.path)?;
    let owner = owner(agent, &open.owner)?;
    let (sender, mut chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let unpack = blocking(move || {
        fs::create_dir_all(&path).map_err(|error| refusal("make", &path, &error))?;
        let destination = fs::File::open(&path).map_err(|error| refusal("open", &path, &error))?;
        let reader = ChunkReader::new(move || chunks.blocking_recv().transpose());
        archive::unpack(reader, &destination, Some(owner), |_| {})
            .map_err(|error| archive_refusal("unpack into", &path, &error))
    });
    let receive = async {
        let received = receive(requests, &sender).await;
        if received.is_err() {
            // What was cut must not look like the end. The unpacking may have ended first.
            let _ = sender.send(Err(io::ErrorKind::ConnectionReset.into())).await;
        }
        // Its end is the end of the archive.
        drop(sender);
        received
    };
    let (unpacked, received) = tokio::join!(unpack, receive);
    received?;
    let summary = unpacked?;
    responses.gather(&ArchiveSummary { files: summary.entries, bytes: summary.bytes });
    Ok(())
}

/// Passes an archive on, to its end.
async fn receive<S: AsyncRead + AsyncWrite + Unpin>(
    requests: &mut Requests<S>,
    chunks: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), Error> {
    while let Some(message) = requests.next::<UploadArchiveRequest>().await? {
        let Some(upload_archive_request::Kind::Data(data)) = message.kind else {
            return Err(Error::new(
                Code::InvalidArgument,
                "archive_invalid",
                "a message after the first must have `data`",
            ));
        };
        // The other side ends early only by an error, which it tells.
        if chunks.send(Ok(data)).await.is_err() {
            break;
        }
    }
    Ok(())
}

pub(crate) async fn download<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: DownloadArchiveRequest = requests.only().await?;
    let path = resolve(agent, &request.path)?;
    let meta = fs::symlink_metadata(&path).map_err(|error| refusal("read", &path, &error))?;
    let root = DownloadArchiveResponse { kind: Some(download_archive_response::Kind::Root(describe(&path, &meta))) };
    responses.send(&root).await.map_err(gone)?;
    let name = match request.name.as_str() {
        "" => path.file_name().map_or_else(|| Path::new(".").to_owned(), Into::into),
        ".." => return Err(Error::new(Code::InvalidArgument, "invalid_field", "name: `..` is not a component")),
        name if name.contains(['/', '\0']) => {
            return Err(Error::new(
                Code::InvalidArgument,
                "invalid_field",
                format!("name: `{name}` is not one component"),
            ));
        }
        name => Path::new(name).to_owned(),
    };
    let (sender, mut chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let pack = blocking(move || {
        let give = |chunk| sender.blocking_send(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into());
        let writer = Chunks::new(limits::DATA_CHUNK_BYTES, give);
        archive::pack(&path, &name, writer, |_| {}).map_err(|error| archive_refusal("pack", &path, &error))
    });
    let send = async {
        while let Some(chunk) = chunks.recv().await {
            send_data(responses, chunk).await?;
        }
        Ok(())
    };
    let (packed, sent) = tokio::join!(pack, send);
    sent.and(packed.map(drop))
}
