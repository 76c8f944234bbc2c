//! `dispense cp`: files and trees, both ways, as one archive stream; a single file out of a sandbox as its bytes.
//!
//! As cp(1) has it: a destination that is a directory takes the source into it, any other is what the source
//! becomes; a source that ends in `/.` means what is in the directory; a destination that is a link means what it leads to.
//! Within a tree a file replaces a link, since either side may be hostile to the other.

mod landing;
mod progress;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use dispense_api::archive::{self, ChunkReader, Chunks, Summary};
use dispense_api::source::SourceError;
use dispense_client::{Client, Code, Error, v1};
use serde::Serialize;
use tokio::sync::mpsc;

use self::landing::{Landing, Links};
pub(super) use self::progress::Progress;
use crate::args::{CpArgs, Global, Output};
use crate::endpoint::connect;
use crate::failure::{local, usage};
use crate::show;

/// Of the stream.
const CHUNK_BYTES: usize = 256 << 10;
/// Between the packing thread and the stream.
const CHUNKS_IN_FLIGHT: usize = 8;
/// As the kernel has it.
const LINKS_MAX: usize = 40;

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Here(String),
    Inside { sandbox: String, path: String },
}

/// `SANDBOX:PATH`; anything with a `/` before the colon is a path here.
fn place(text: &str) -> Result<Place, Error> {
    match text.split_once(':') {
        Some((sandbox, path)) if !sandbox.is_empty() && !sandbox.contains('/') => {
            if path.is_empty() {
                return Err(usage(format!("`{text}` has no path after the colon")));
            }
            Ok(Place::Inside { sandbox: sandbox.to_owned(), path: path.to_owned() })
        }
        _ if text.is_empty() => Err(usage("an empty path")),
        _ if text == "-" => Err(usage(
            "`-` is not a path to copy: write one file to /dev/stdout, a tree with `dispense exec SANDBOX -- tar c DIR`, and \
             name a file `./-`",
        )),
        _ => Ok(Place::Here(text.to_owned())),
    }
}

/// Copies.
pub(super) async fn copy(global: &Global, args: CpArgs) -> Result<u8, Error> {
    let is_json = global.output == Output::Json;
    let progress = Progress::new(args.quiet || is_json);
    let summary = match (place(&args.from)?, place(&args.to)?) {
        (Place::Here(from), Place::Inside { sandbox, path }) => {
            // Looked at first: a mistyped source does not need a server.
            let kind = source_here(&from)?;
            let connected = connect(global).await?;
            upload(&connected.client, &from, kind, &sandbox, &path, progress.clone()).await?
        }
        (Place::Inside { sandbox, path }, Place::Here(to)) => {
            let connected = connect(global).await?;
            download(&connected.client, &sandbox, &path, &to, progress.clone()).await?
        }
        (Place::Here(_), Place::Here(_)) => {
            return Err(usage("neither path is in a sandbox: write SANDBOX:PATH"));
        }
        (Place::Inside { .. }, Place::Inside { .. }) => {
            return Err(usage("both paths are in sandboxes: copy through this machine, in two steps"));
        }
    };
    if summary.entries == 0 && summary.skipped > 0 {
        return Err(usage(format!("{} was not copied: it cannot be read to an end", args.from)));
    }
    progress.done(summary);
    if is_json {
        show::json(&CopiedJson::from(summary));
    }
    Ok(0)
}

/// What a copy came to.
#[derive(Serialize)]
pub(super) struct CopiedJson {
    files: u64,
    bytes: u64,
    skipped: u64,
}

impl From<Summary> for CopiedJson {
    fn from(summary: Summary) -> Self {
        Self { files: summary.entries, bytes: summary.bytes, skipped: summary.skipped }
    }
}

/// What is to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    /// As such, not what it leads to.
    Link,
}

fn source_here(from: &str) -> Result<Kind, Error> {
    let meta = fs::symlink_metadata(from).map_err(|error| local(format_args!("read {from}"), &error))?;
    match meta.file_type() {
        kind if kind.is_dir() => Ok(Kind::Directory),
        kind if kind.is_file() => Ok(Kind::File),
        kind if kind.is_symlink() => Ok(Kind::Link),
        _ => Err(no_file(from)),
    }
}

fn no_file(what: &str) -> Error {
    usage(format!("{what} is a device, a pipe or a socket, which cp does not copy: read it through `dispense exec`"))
}

fn no_such_directory(what: &str) -> Error {
    usage(format!("{what}: no such directory; make it first, or leave the slash at the end out"))
}

fn no_directory(what: &str) -> Error {
    usage(format!("{what}: not a directory; leave the slash at the end out to replace the file"))
}

async fn upload(
    client: &Client,
    from: &str,
    kind: Kind,
    sandbox: &str,
    to: &str,
    progress: Progress,
) -> Result<Summary, Error> {
    let (into, name) = if means_contents(from) {
        (to.to_owned(), PathBuf::from("."))
    } else {
        let target = match look_inside(client, sandbox, to, true).await? {
            Some(file) if file.kind() == v1::FileKind::Directory => {
                let name = Path::new(from).file_name();
                let name = name.ok_or_else(|| usage(format!("`{from}` has no name to copy to")))?;
                Path::new(to).join(name)
            }
            Some(_) if to.ends_with('/') => return Err(no_directory(to)),
            None if to.ends_with('/') && kind != Kind::Directory => return Err(no_such_directory(to)),
            _ => PathBuf::from(to),
        };
        let target = if kind == Kind::File { behind_links(client, sandbox, target).await? } else { target };
        let name = target.file_name().ok_or_else(|| usage(format!("`{to}` is not a path to copy to")))?;
        let parent = target.parent().map(|parent| parent.to_string_lossy().into_owned()).unwrap_or_default();
        (if parent.is_empty() { ".".to_owned() } else { parent }, PathBuf::from(name))
    };
    let packed = PathBuf::from(from);
    stream_up(client, sandbox, into, progress, move |writer, bar| {
        Ok(archive::pack(&packed, &name, writer, |summary| bar.tell(summary))?)
    })
    .await
}

/// Where a file of a sandbox is written: at the end of links. What cannot be replaced is refused.
async fn behind_links(client: &Client, sandbox: &str, mut path: PathBuf) -> Result<PathBuf, Error> {
    for _ in 0..LINKS_MAX {
        // A name that is not UTF-8 cannot be asked for: what is there is replaced.
        let Some(text) = path.to_str() else { return Ok(path) };
        let Some(file) = look_inside(client, sandbox, text, false).await? else { return Ok(path) };
        match file.kind() {
            v1::FileKind::Symlink if look_inside(client, sandbox, text, true).await?.is_none() => {
                return Err(usage(format!(
                    "{text} is a link to `{}`, which is not there: remove it first",
                    file.target
                )));
            }
            v1::FileKind::Symlink => path = path.parent().unwrap_or(Path::new("")).join(&file.target),
            v1::FileKind::Other => {
                let message = "is a device, a pipe or a socket, which cp does not replace: write to it through `dispense exec -i`";
                return Err(usage(format!("{text} {message}")));
            }
            v1::FileKind::Directory => return Err(usage(format!("{text} is a directory: a file does not replace it"))),
            v1::FileKind::Regular | v1::FileKind::Unspecified => return Ok(path),
        }
    }
    Err(usage(format!("{} is a link that leads through too many others", path.display())))
}

/// Unpacks in a directory of a sandbox what `pack` writes on this machine.
pub(super) async fn stream_up(
    client: &Client,
    sandbox: &str,
    into: String,
    progress: Progress,
    pack: impl FnOnce(&mut dyn Write, &Progress) -> Result<Summary, SourceError> + Send + 'static,
) -> Result<Summary, Error> {
    let stream = client.upload_archive(sandbox, v1::UploadArchive { path: into, owner: String::new() });
    let (sender, mut chunks) = mpsc::channel::<Bytes>(CHUNKS_IN_FLIGHT);
    let pack = tokio::task::spawn_blocking(move || {
        let give = |chunk| sender.blocking_send(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into());
        pack(&mut Chunks::new(CHUNK_BYTES, give), &progress)
    });
    while let Some(chunk) = chunks.recv().await {
        if stream.write(chunk).await.is_err() {
            break;
        }
    }
    // Stops a packing whose stream ended.
    drop(chunks);
    match pack.await.map_err(|error| local("pack", &error))? {
        // The sandbox stopped taking it, and says why.
        Err(error) if error.is_stream() => {
            stream.finish().await?;
            Err(Error::new(Code::Unavailable, "upload_ended", "the sandbox stopped taking the copy"))
        }
        Err(error) => Err(local("copy", &error)),
        Ok(summary) => stream.finish().await.map(|_| summary),
    }
}

/// What is there; with `follow` at the end of links.
async fn look_inside(client: &Client, sandbox: &str, path: &str, follow: bool) -> Result<Option<v1::File>, Error> {
    match client.stat(sandbox, path, follow).await {
        Ok(file) => Ok(Some(file)),
        // Of the path, not of the sandbox.
        Err(error) if error.code == Code::NotFound && error.reason != dispense_api::error::reason::SANDBOX_UNKNOWN => {
            Ok(None)
        }
        Err(error) if error.reason == "not_a_directory" && path.ends_with('/') => Err(no_directory(path)),
        Err(error) => Err(error),
    }
}

async fn download(client: &Client, sandbox: &str, from: &str, to: &str, progress: Progress) -> Result<Summary, Error> {
    let source = client.stat(sandbox, from, false).await?;
    let kind = match source.kind() {
        v1::FileKind::Directory => Kind::Directory,
        v1::FileKind::Other => return Err(no_file(&format!("{sandbox}:{from}"))),
        v1::FileKind::Symlink => Kind::Link,
        v1::FileKind::Regular | v1::FileKind::Unspecified => Kind::File,
    };
    let to_path = Path::new(to);
    let there = fs::metadata(to_path);
    match &there {
        Ok(meta) if to.ends_with('/') && !meta.is_dir() => return Err(no_directory(to)),
        Err(_) if to.ends_with('/') && kind != Kind::Directory => {
            // The kernel's word for a file with a slash behind it is an error too.
            let is_there = fs::symlink_metadata(to.trim_end_matches('/')).is_ok();
            return Err(if is_there { no_directory(to) } else { no_such_directory(to) });
        }
        _ => {}
    }
    if means_contents(from) {
        fs::create_dir_all(to_path).map_err(|error| local(format_args!("make {to}"), &error))?;
        return tree(client, sandbox, from, to_path, ".", progress).await;
    }
    let (into, name) = if there.is_ok_and(|meta| meta.is_dir()) {
        (to_path, None)
    } else {
        let name = to_path.file_name().ok_or_else(|| usage(format!("`{to}` is not a path to copy to")))?;
        let name = name.to_str().ok_or_else(|| usage("the destination's name is not UTF-8"))?;
        let parent = to_path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        (parent, Some(name))
    };
    if kind != Kind::File {
        return tree(client, sandbox, from, into, name.unwrap_or_default(), progress).await;
    }
    if name.is_some() {
        return single(client, sandbox, from, to_path, Links::Followed, progress).await;
    }
    // Of what the user wrote: the sandbox's own word for it may be another path.
    let name = Path::new(from).file_name().ok_or_else(|| usage(format!("`{from}` has no name to copy to")))?;
    single(client, sandbox, from, &into.join(name), Links::Replaced, progress).await
}

/// The bytes of one file, to where they are to be.
async fn single(
    client: &Client,
    sandbox: &str,
    from: &str,
    to: &Path,
    links: Links,
    progress: Progress,
) -> Result<Summary, Error> {
    let failed = |error: io::Error| local(format_args!("write {}", to.display()), &error);
    let mut stream = client.read_file(sandbox, from, 0, 0).await?;
    progress.expect(stream.file.size);
    let path = to.to_owned();
    let opened = tokio::task::spawn_blocking(move || Landing::open(&path, links)).await;
    let mut landing = opened.map_err(|error| local("open", &error))?.map_err(failed)?;
    let mut summary = Summary { entries: 1, ..Summary::default() };
    let mut interrupts = landing.is_removable().then(interrupted);
    loop {
        let chunk = match &mut interrupts {
            Some(interrupts) => tokio::select! {
                chunk = stream.next() => chunk?,
                error = interrupts => return Err(error),
            },
            None => stream.next().await?,
        };
        let Some(chunk) = chunk else { break };
        summary.bytes += chunk.len() as u64;
        landing = tokio::task::spawn_blocking(move || landing.write(&chunk).map(|()| landing))
            .await
            .map_err(|error| local("write", &error))?
            .map_err(failed)?;
        progress.tell(summary);
    }
    let modified = stream.file.modified_at.and_then(|time| SystemTime::try_from(time).ok());
    landing.finish(stream.file.mode & 0o777, modified).map_err(failed)?;
    Ok(summary)
}

/// A signal that would end the process with half a file: told as an error, so that what is half is removed.
fn interrupted() -> std::pin::Pin<Box<dyn Future<Output = Error> + Send>> {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => signal.recv().await,
            // Then it ends the process as ever.
            Err(_) => std::future::pending().await,
        };
    };
    Box::pin(async move {
        tokio::select! {
            () = wait(SignalKind::interrupt()) => {}
            () = wait(SignalKind::terminate()) => {}
            () = wait(SignalKind::hangup()) => {}
        }
        Error::new(Code::Cancelled, "interrupted", "the copy was interrupted: what was whole by then stays")
    })
}

/// An archive, into a directory.
async fn tree(
    client: &Client,
    sandbox: &str,
    from: &str,
    into: &Path,
    name: &str,
    progress: Progress,
) -> Result<Summary, Error> {
    let mut stream = client.download_archive(sandbox, from, name).await?;
    let folder = File::open(into).map_err(|error| local(format_args!("open {}", into.display()), &error))?;
    let (sender, mut chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let unpack = tokio::task::spawn_blocking(move || {
        let reader = ChunkReader::new(move || chunks.blocking_recv().transpose());
        // The other side may be hostile: nothing leaves the destination, whatever the archive says.
        archive::unpack(reader, &folder, None, |summary| progress.tell(summary))
    });
    let mut interrupts = interrupted();
    let received = async {
        loop {
            let chunk = tokio::select! {
                chunk = stream.next() => chunk?,
                error = &mut interrupts => return Err(error),
            };
            let Some(chunk) = chunk else { return Ok(()) };
            if sender.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
        }
    };
    let received = received.await;
    if received.is_err() {
        // What was cut must not look like the end. The unpacking may have ended first.
        let _ = sender.send(Err(io::ErrorKind::ConnectionReset.into())).await;
    }
    drop(sender);
    let unpacked = unpack.await.map_err(|error| local("unpack", &error))?;
    received?;
    unpacked.map_err(|error| local("copy", &error))
}

fn means_contents(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_a_slash_names_a_sandbox() {
        let inside = |sandbox: &str, path: &str| Place::Inside { sandbox: sandbox.into(), path: path.into() };
        assert_eq!(place("box:/tmp").expect("valid"), inside("box", "/tmp"));
        assert_eq!(place("box:a:b").expect("valid"), inside("box", "a:b"));
        for here in ["./a:b", "/a:b", "plain", ":x", "./-"] {
            assert_eq!(place(here).expect("valid"), Place::Here(here.into()));
        }
        assert!(place("box:").is_err());
        assert!(place("").is_err());
        assert!(place("-").expect_err("no path").message.contains("/dev/stdout"));
    }
}
