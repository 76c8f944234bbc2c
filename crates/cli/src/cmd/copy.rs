//! `dispense cp`: files and trees, both ways, as one archive stream.
//!
//! As cp(1) has it: a destination that is a directory takes the source into it, any other is what the source
//! becomes; a source that ends in `/.` means what is in the directory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dispense_api::archive::{self, ChunkReader, Chunks, Summary};
use dispense_api::source::SourceError;
use dispense_client::{Client, Code, Error, v1};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use crate::args::{CpArgs, Global, Output};
use crate::endpoint::connect;
use crate::failure::{local, usage};

/// Of the stream.
const CHUNK_BYTES: usize = 256 << 10;
/// Between the packing thread and the stream.
const CHUNKS_IN_FLIGHT: usize = 8;

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
        _ => Ok(Place::Here(text.to_owned())),
    }
}

/// Copies.
pub(super) async fn copy(global: &Global, args: CpArgs) -> Result<u8, Error> {
    let progress = Progress::new(args.quiet || global.output == Output::Json);
    match (place(&args.from)?, place(&args.to)?) {
        (Place::Here(from), Place::Inside { sandbox, path }) => {
            let from = PathBuf::from(from);
            // Looked at first: a mistyped source does not need a server.
            fs::symlink_metadata(&from).map_err(|error| local(format_args!("read {}", from.display()), &error))?;
            let connected = connect(global).await?;
            upload(&connected.client, from, &sandbox, &path, progress).await?;
        }
        (Place::Inside { sandbox, path }, Place::Here(to)) => {
            let connected = connect(global).await?;
            download(&connected.client, &sandbox, &path, Path::new(&to), progress).await?;
        }
        (Place::Here(_), Place::Here(_)) => {
            return Err(usage("neither path is in a sandbox: write SANDBOX:PATH"));
        }
        (Place::Inside { .. }, Place::Inside { .. }) => {
            return Err(usage("both paths are in sandboxes: copy through this machine, in two steps"));
        }
    }
    Ok(0)
}

async fn upload(client: &Client, from: PathBuf, sandbox: &str, to: &str, progress: Progress) -> Result<(), Error> {
    let contents_only = means_contents(&from.to_string_lossy());
    let (into, name) = if contents_only {
        (to.to_owned(), PathBuf::from("."))
    } else if is_directory_inside(client, sandbox, to).await? {
        let name = from.file_name().ok_or_else(|| usage(format!("`{}` has no name to copy to", from.display())))?;
        (to.to_owned(), PathBuf::from(name))
    } else {
        let path = Path::new(to);
        let name = path.file_name().ok_or_else(|| usage(format!("`{to}` is not a path to copy to")))?;
        let parent = path.parent().map(|parent| parent.to_string_lossy().into_owned()).unwrap_or_default();
        (if parent.is_empty() { ".".to_owned() } else { parent }, PathBuf::from(name))
    };
    let packed = from.clone();
    let summary = stream_up(client, sandbox, into, progress.clone(), move |writer, bar| {
        Ok(archive::pack(&packed, &name, writer, |summary| bar.tell(summary))?)
    });
    progress.done(summary.await?);
    Ok(())
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

async fn is_directory_inside(client: &Client, sandbox: &str, path: &str) -> Result<bool, Error> {
    match client.stat(sandbox, path, true).await {
        Ok(file) => Ok(file.kind() == v1::FileKind::Directory),
        // Of the path, not of the sandbox.
        Err(error) if error.code == Code::NotFound && error.reason != dispense_api::error::reason::SANDBOX_UNKNOWN => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

async fn download(client: &Client, sandbox: &str, from: &str, to: &Path, progress: Progress) -> Result<(), Error> {
    let (into, name) = if means_contents(from) {
        fs::create_dir_all(to).map_err(|error| local(format_args!("make {}", to.display()), &error))?;
        (to.to_owned(), ".".to_owned())
    } else if to.is_dir() {
        (to.to_owned(), String::new())
    } else {
        let name = to.file_name().ok_or_else(|| usage(format!("`{}` is not a path to copy to", to.display())))?;
        let name = name.to_str().ok_or_else(|| usage("the destination's name is not UTF-8"))?.to_owned();
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        (parent.to_owned(), name)
    };
    let mut stream = client.download_archive(sandbox, from, &name).await?;
    let folder = File::open(&into).map_err(|error| local(format_args!("open {}", into.display()), &error))?;
    let (sender, mut chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let bar = progress.clone();
    let unpack = tokio::task::spawn_blocking(move || {
        let reader = ChunkReader::new(move || chunks.blocking_recv().transpose());
        // The other side may be hostile: nothing leaves the destination, whatever the archive says.
        archive::unpack(reader, &folder, None, |summary| bar.tell(summary))
    });
    let received = async {
        while let Some(chunk) = stream.next().await? {
            if sender.send(Ok(chunk)).await.is_err() {
                break;
            }
        }
        Ok::<(), Error>(())
    };
    let received = received.await;
    if received.is_err() {
        // What was cut must not look like the end. The unpacking may have ended first.
        let _ = sender.send(Err(io::ErrorKind::ConnectionReset.into())).await;
    }
    drop(sender);
    let unpacked = unpack.await.map_err(|error| local("unpack", &error))?;
    received?;
    progress.done(unpacked.map_err(|error| local("copy", &error))?);
    Ok(())
}

fn means_contents(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

/// How far it is; silent when stderr is no terminal.
#[derive(Clone)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        if quiet {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner} {msg}  {elapsed}  {binary_bytes_per_sec}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub(super) fn tell(&self, summary: Summary) {
        self.0.set_position(summary.bytes);
        self.0.set_message(format!("{} files, {}", summary.entries, crate::units::show_bytes(summary.bytes)));
    }

    pub(super) fn done(&self, summary: Summary) {
        self.0.finish_and_clear();
        if summary.skipped > 0 {
            eprintln!("dispense: {} devices, sockets or pipes were not copied", summary.skipped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_a_slash_names_a_sandbox() {
        let inside = |sandbox: &str, path: &str| Place::Inside { sandbox: sandbox.into(), path: path.into() };
        assert_eq!(place("box:/tmp").expect("valid"), inside("box", "/tmp"));
        assert_eq!(place("box:a:b").expect("valid"), inside("box", "a:b"));
        for here in ["./a:b", "/a:b", "plain", ":x"] {
            assert_eq!(place(here).expect("valid"), Place::Here(here.into()));
        }
        assert!(place("box:").is_err());
        assert!(place("").is_err());
    }
}
