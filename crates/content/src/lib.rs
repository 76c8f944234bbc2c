//! What workspaces are filled from, and saved to, by URL: object storage with the protocol of S3, archives and git
//! repositories over HTTP. A tree is a tar stream here, as in `UploadArchive` and `DownloadArchive`.
//!
//! Credentials come from the variables of the process (`AWS_…`), never from a URL: a URL is stored, listed and logged.

mod git;
mod s3;
mod web;

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use dispense_api::location::Location;
use tokio::sync::mpsc;

/// A transfer that is cut goes on where it was, so many times without a byte in between.
const ATTEMPTS_MAX: u32 = 5;
/// Before the first of them; each later one waits twice as long.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// Of one chunk of a tar stream.
const CHUNK_BYTES: usize = 256 << 10;

/// How much has been moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Files and directories; of an archive that is passed on whole, none.
    pub entries: u64,
    /// Of their contents.
    pub bytes: u64,
}

/// What became of a tree that was saved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// What stands in the storage now.
    pub moved: Moved,
    /// Devices, sockets and pipes, which no object can be.
    pub skipped: u64,
    /// Files whose name, or where they link to, is too long for the storage.
    pub lost: u64,
    /// One of them.
    pub lost_example: Option<String>,
}

/// Where what cannot be streamed stands meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct Scratch<'a> {
    /// The directory.
    pub folder: &'a Path,
    /// Of one tree in it.
    pub bytes_max: u64,
}

/// Why a tree could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The storage refused, or is not there.
    #[error("failed to {action}: {message}")]
    Storage {
        /// What was tried.
        action: String,
        /// What it said.
        message: String,
    },
    /// Nothing stands there.
    #[error("{0} has no objects")]
    Empty(String),
    /// One object, where a tree is wanted.
    #[error("{0} is one object: name the prefix that it is below, with which each object is a file")]
    Object(String),
    /// The bytes are not those that were wanted.
    #[error("{what} has the SHA-256 {found}, {wanted} is asked for")]
    Checksum {
        /// Which archive.
        what: String,
        /// As computed.
        found: String,
        /// As the URL says.
        wanted: String,
    },
    /// An object is not what is recorded of it, however often it is read.
    #[error(
        "failed to read {what}: its {algorithm} is {found} but {wanted} is recorded, so it is damaged where it stands, or on its way"
    )]
    Damaged {
        /// Which object.
        what: String,
        /// Of the two sums, which are in base64.
        algorithm: String,
        /// As computed.
        found: String,
        /// As recorded.
        wanted: String,
    },
    /// It was given up while it grew.
    #[error("{what} is larger than {} MiB", .bytes_max >> 20)]
    TooLarge {
        /// Which repository.
        what: String,
        /// Of its history and its files.
        bytes_max: u64,
    },
    /// What takes the stream has ended.
    #[error("the tree is not taken any more")]
    Gone,
    /// The stream that is saved is no archive.
    #[error("failed to read the tree: {0}")]
    Archive(#[source] io::Error),
    /// It cannot be saved to.
    #[error("{0} cannot be saved to: save writes only to object storage, s3://BUCKET/PREFIX")]
    ReadOnly(String),
}

impl ContentError {
    fn storage(action: impl Into<String>, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            // Libraries repeat their causes.
            if !message.contains(&inner.to_string()) {
                message = format!("{message}: {inner}");
            }
            source = inner.source();
        }
        Self::Storage { action: action.into(), message: said(message) }
    }

    fn damaged(what: String, algorithm: String, found: String, wanted: String) -> Self {
        Self::Damaged { what, algorithm, found, wanted }
    }
}

/// What a storage says in XML, as a sentence.
fn said(message: String) -> String {
    let element = |name: &str| {
        let (_, rest) = message.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
    };
    match (element("Code"), element("BucketName"), element("Message")) {
        (Some("NoSuchBucket"), Some(bucket), _) => {
            format!("the bucket `{bucket}` does not exist: check its name, or make it, or point AWS_ENDPOINT elsewhere")
        }
        (Some("NoSuchBucket"), ..) => {
            "the bucket does not exist: check its name, or make it, or point AWS_ENDPOINT elsewhere".to_owned()
        }
        (Some(code), _, Some(text)) => format!("the storage answered {code}: {text}"),
        (Some(code), ..) => format!("the storage answered {code}"),
        (None, ..) => message,
    }
}

/// Streams a tree as tar; `progress` is told what has been read so far. A clone needs `scratch`.
///
/// CANCEL SAFETY: dropped half-way, nothing is left behind here.
pub async fn fetch(
    location: &Location,
    scratch: Scratch<'_>,
    chunks: mpsc::Sender<Bytes>,
    progress: impl FnMut(Moved) + Send,
) -> Result<Moved, ContentError> {
    match location {
        Location::S3 { bucket, prefix } => s3::fetch(bucket, prefix, chunks, progress).await,
        Location::Archive { url, sha256 } => web::fetch(url, sha256.as_deref(), chunks, progress).await,
        Location::Git { url, branch } => git::fetch(url, branch.as_deref(), scratch, chunks, progress).await,
    }
}

/// Streams the tree of an archive that is open here, packed with gzip or not.
pub async fn read_archive(archive: std::fs::File, chunks: mpsc::Sender<Bytes>) -> Result<(), ContentError> {
    let read = tokio::task::spawn_blocking(move || web::unpack(archive, &chunks));
    read.await.unwrap_or_else(|error| Err(ContentError::Archive(io::Error::other(error))))
}

/// Saves a tree that comes as tar; what is cut is an error of `chunks`. Objects that were there before and are not in
/// the tree stay.
pub async fn save(
    location: &Location,
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    progress: impl FnMut(Moved) + Send + 'static,
) -> Result<Saved, ContentError> {
    match location {
        Location::S3 { bucket, prefix } => s3::save(bucket, prefix, chunks, progress).await,
        Location::Archive { url, .. } | Location::Git { url, .. } => Err(ContentError::ReadOnly(url.clone())),
    }
}

/// The library for HTTP asks for one process-wide choice.
fn choose_crypto() {
    // Somebody else may have chosen the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_storage_says_in_xml_is_told_as_a_sentence() {
        let xml = |code: &str, more: &str| {
            format!(
                "404: <?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>None here.</Message>{more}</Error>"
            )
        };
        let bucket = said(xml("NoSuchBucket", "<BucketName>code</BucketName>"));
        assert!(bucket.starts_with("the bucket `code` does not exist"), "{bucket}");
        assert!(said(xml("NoSuchBucket", "")).starts_with("the bucket does not exist"));
        assert_eq!(said(xml("AccessDenied", "")), "the storage answered AccessDenied: None here.");
        assert_eq!(said("no route".to_owned()), "no route");
    }
}
