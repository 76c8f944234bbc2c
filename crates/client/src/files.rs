//! Files: single ones as streams, trees as archives.

use bytes::Bytes;
use dispense_api::error::{Code, Error};
use dispense_api::v1;
use dispense_api::v1::{download_archive_response, read_file_response, upload_archive_request, write_file_request};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::retry::idempotent;
use crate::{Client, STREAM_MESSAGES, error};

/// Bytes on their way into a sandbox. Nothing is there until [`Upload::finish`] says so.
pub struct Upload<T> {
    data: mpsc::Sender<Bytes>,
    result: JoinHandle<Result<T, Error>>,
}

impl<T> Upload<T> {
    /// Sends a chunk of at most 1 MiB. An error says only that the other side stopped: [`Upload::finish`]
    /// says why.
    pub async fn write(&self, data: Bytes) -> Result<(), Error> {
        let sent = self.data.send(data).await;
        sent.map_err(|_| Error::new(Code::Cancelled, "upload_ended", "the sandbox stopped taking the upload"))
    }

    /// Ends the stream and waits for the answer.
    pub async fn finish(self) -> Result<T, Error> {
        drop(self.data);
        self.result.await.map_err(|_| Error::new(Code::Internal, "upload", "the upload's task ended early"))?
    }
}

/// Bytes on their way out of a sandbox.
pub struct Download<M> {
    stream: Streaming<M>,
    data: fn(M) -> Option<Bytes>,
    /// What the path is.
    pub file: v1::File,
}

impl<M> Download<M> {
    /// The next chunk; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.stream.message().await.map_err(error::of)? {
                None => return Ok(None),
                Some(message) => {
                    if let Some(data) = (self.data)(message) {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

fn no_header() -> Error {
    Error::new(Code::Internal, dispense_api::error::reason::PROTOCOL, "the answer does not begin with the file")
}

impl Client {
    /// Reads a file from `offset`; `length` 0 means to the end.
    pub async fn read_file(
        &self,
        sandbox: &str,
        path: &str,
        offset: u64,
        length: u64,
    ) -> Result<Download<v1::ReadFileResponse>, Error> {
        let request = v1::ReadFileRequest {
            sandbox: sandbox.to_owned(),
            path: path.to_owned(),
            offset,
            length,
            beneath: String::new(),
        };
        let mut stream = idempotent(|| async { self.files().read_file(request.clone()).await }).await?;
        let first = stream.message().await.map_err(error::of)?;
        let Some(read_file_response::Kind::File(file)) = first.and_then(|message| message.kind) else {
            return Err(no_header());
        };
        let data = |message: v1::ReadFileResponse| match message.kind {
            Some(read_file_response::Kind::Data(data)) => Some(data),
            Some(read_file_response::Kind::File(_)) | None => None,
        };
        Ok(Download { stream, data, file })
    }

    /// Writes a file: whole or not at all.
    pub fn write_file(&self, sandbox: &str, open: v1::WriteFile) -> Upload<v1::File> {
        let (data, chunks) = mpsc::channel::<Bytes>(STREAM_MESSAGES);
        let first =
            v1::WriteFileRequest { sandbox: sandbox.to_owned(), kind: Some(write_file_request::Kind::Open(open)) };
        let rest = ReceiverStream::new(chunks).map(|data| v1::WriteFileRequest {
            sandbox: String::new(),
            kind: Some(write_file_request::Kind::Data(data)),
        });
        let messages = tokio_stream::once(first).chain(rest);
        let mut files = self.files();
        let result = tokio::spawn(async move {
            files.write_file(messages).await.map(tonic::Response::into_inner).map_err(error::of)
        });
        Upload { data, result }
    }

    /// Unpacks a tar stream into a directory.
    pub fn upload_archive(&self, sandbox: &str, open: v1::UploadArchive) -> Upload<v1::ArchiveSummary> {
        let (data, chunks) = mpsc::channel::<Bytes>(STREAM_MESSAGES);
        let first = v1::UploadArchiveRequest {
            sandbox: sandbox.to_owned(),
            kind: Some(upload_archive_request::Kind::Open(open)),
        };
        let rest = ReceiverStream::new(chunks).map(|data| v1::UploadArchiveRequest {
            sandbox: String::new(),
            kind: Some(upload_archive_request::Kind::Data(data)),
        });
        let messages = tokio_stream::once(first).chain(rest);
        let mut files = self.files();
        let result = tokio::spawn(async move {
            files.upload_archive(messages).await.map(tonic::Response::into_inner).map_err(error::of)
        });
        Upload { data, result }
    }

    /// Packs a file or directory as a tar stream, whose entries are named from `name` on.
    pub async fn download_archive(
        &self,
        sandbox: &str,
        path: &str,
        name: &str,
    ) -> Result<Download<v1::DownloadArchiveResponse>, Error> {
        let (sandbox, path, name) = (sandbox.to_owned(), path.to_owned(), name.to_owned());
        let request = v1::DownloadArchiveRequest { sandbox, path, name };
        let mut stream = idempotent(|| async { self.files().download_archive(request.clone()).await }).await?;
        let first = stream.message().await.map_err(error::of)?;
        let Some(download_archive_response::Kind::Root(file)) = first.and_then(|message| message.kind) else {
            return Err(no_header());
        };
        let data = |message: v1::DownloadArchiveResponse| match message.kind {
            Some(download_archive_response::Kind::Data(data)) => Some(data),
            Some(download_archive_response::Kind::Root(_)) | None => None,
        };
        Ok(Download { stream, data, file })
    }

    /// Looks at a file; with `follow` at the target of a link.
    pub async fn stat(&self, sandbox: &str, path: &str, follow: bool) -> Result<v1::File, Error> {
        let request = v1::StatFileRequest { sandbox: sandbox.to_owned(), path: path.to_owned(), follow };
        idempotent(|| async { self.files().stat_file(request.clone()).await }).await
    }

    /// Lists a directory, `depth` levels down; 0 means 1.
    pub async fn list_directory(&self, sandbox: &str, path: &str, depth: u32) -> Result<Vec<v1::File>, Error> {
        let request = v1::ListDirectoryRequest {
            sandbox: sandbox.to_owned(),
            path: path.to_owned(),
            depth,
            beneath: String::new(),
        };
        let mut stream = idempotent(|| async { self.files().list_directory(request.clone()).await }).await?;
        let mut all = Vec::new();
        while let Some(batch) = stream.message().await.map_err(error::of)? {
            all.extend(batch.files);
        }
        Ok(all)
    }

    /// Makes a directory.
    pub async fn make_directory(&self, request: v1::MakeDirectoryRequest) -> Result<v1::File, Error> {
        self.files().make_directory(request).await.map(tonic::Response::into_inner).map_err(error::of)
    }

    /// Moves a file or directory.
    pub async fn move_file(&self, request: v1::MoveFileRequest) -> Result<v1::File, Error> {
        self.files().move_file(request).await.map(tonic::Response::into_inner).map_err(error::of)
    }

    /// Removes a file, or with `recursive` a directory. Returns how many were removed.
    pub async fn remove_file(&self, sandbox: &str, path: &str, recursive: bool) -> Result<u64, Error> {
        let request = v1::RemoveFileRequest { sandbox: sandbox.to_owned(), path: path.to_owned(), recursive };
        self.files().remove_file(request).await.map(|response| response.into_inner().removed).map_err(error::of)
    }

    /// Tells changes below a path, until the stream is dropped.
    pub async fn watch_files(
        &self,
        sandbox: &str,
        path: &str,
        recursive: bool,
    ) -> Result<impl tokio_stream::Stream<Item = Result<v1::WatchFilesResponse, Error>> + use<>, Error> {
        let request = v1::WatchFilesRequest { sandbox: sandbox.to_owned(), path: path.to_owned(), recursive };
        let stream = idempotent(|| async { self.files().watch_files(request.clone()).await }).await?;
        Ok(stream.map(|change| change.map_err(error::of)))
    }
}
