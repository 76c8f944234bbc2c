//! `dispense save`: a sandbox's files to object storage, with the credentials of whoever saves.

use std::io;

use bytes::Bytes;
use dispense_api::archive::Summary;
use dispense_api::location::Location;
use dispense_client::{Client, Code, Download, Error, v1};
use tokio::sync::mpsc;

use super::copy::{CopiedJson, Progress};
use crate::args::{Global, Output, SaveArgs};
use crate::endpoint::connect;
use crate::failure::{local, usage};
use crate::show;

/// Between the sandbox and the storage.
const CHUNKS_IN_FLIGHT: usize = 8;
/// Of the archive's top.
const TOP: &str = ".";

/// Saves a tree.
pub(super) async fn save(global: &Global, args: SaveArgs) -> Result<u8, Error> {
    let location = storage(&args.to)?;
    let connected = connect(global).await?;
    let mut tree = open(&connected.client, &args.sandbox, &args.path).await?;
    let progress = Progress::new(args.quiet || global.output == Output::Json);
    let bar = progress.clone();
    let summary = |moved: dispense_content::Moved| Summary { entries: moved.entries, bytes: moved.bytes, skipped: 0 };
    let (sender, chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let saved = dispense_content::save(&location, chunks, move |moved| bar.tell(summary(moved)));
    let sent = async {
        let sent = pass_on(&mut tree, &sender).await;
        if sent.is_err() {
            // What was cut must not look like the end. The saving may have ended first.
            let _ = sender.send(Err(io::ErrorKind::ConnectionReset.into())).await;
        }
        drop(sender);
        sent
    };
    let (saved, sent) = tokio::join!(saved, sent);
    // Why it was cut says more than what could not be saved then.
    sent?;
    let saved = saved.map_err(|error| local(format_args!("save to {location}"), &error))?;
    let whole = Summary { skipped: saved.skipped, ..summary(saved.moved) };
    progress.done(whole);
    if global.output == Output::Json {
        show::json(&CopiedJson::from(whole));
    }
    match saved.lost_example {
        None => Ok(0),
        Some(example) => {
            let (count, entries) = (saved.lost, saved.moved.entries);
            let message = format!(
                "{count} of {} files were not saved, such as `{example}`: their names with the prefix (1024 bytes), or what \
                 they link to, are too long for the storage; use a shorter prefix, or save what is below with `--path`",
                count + entries
            );
            Err(Error::new(Code::FailedPrecondition, "save_incomplete", message))
        }
    }
}

/// Where it can be saved to.
fn storage(text: &str) -> Result<Location, Error> {
    if !text.starts_with("s3://") {
        let message = format!("{text} cannot be saved to: save writes only to object storage, s3://BUCKET/PREFIX");
        return Err(usage(message));
    }
    text.parse().map_err(|why| usage(format!("{text}: {why}")))
}

/// What is in a directory, also in one that a link leads to; a file under its own name.
async fn open(client: &Client, sandbox: &str, path: &str) -> Result<Download<v1::DownloadArchiveResponse>, Error> {
    let file = client.stat(sandbox, path, true).await?;
    match file.kind() {
        v1::FileKind::Directory => client.download_archive(sandbox, &format!("{path}/."), TOP).await,
        v1::FileKind::Regular | v1::FileKind::Symlink => client.download_archive(sandbox, path, "").await,
        v1::FileKind::Other | v1::FileKind::Unspecified => Err(usage(format!(
            "{path} is a device, a pipe or a socket, which cannot be saved: name a directory or a file"
        ))),
    }
}

/// Passes an archive on, to its end.
async fn pass_on(
    tree: &mut Download<v1::DownloadArchiveResponse>,
    chunks: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), Error> {
    while let Some(chunk) = tree.next().await? {
        if chunks.send(Ok(chunk)).await.is_err() {
            // The storage says why.
            break;
        }
    }
    Ok(())
}
