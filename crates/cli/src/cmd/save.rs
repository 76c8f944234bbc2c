//! `dispense save`: a sandbox's files to object storage, with the credentials of whoever saves.

use std::io;

use bytes::Bytes;
use dispense_api::archive::Summary;
use dispense_api::location::Location;
use dispense_client::{Download, Error, v1};
use tokio::sync::mpsc;

use super::copy::Progress;
use crate::args::{Global, SaveArgs};
use crate::endpoint::connect;
use crate::failure::{local, usage};

/// Between the sandbox and the storage.
const CHUNKS_IN_FLIGHT: usize = 8;
/// Of the archive's top.
const TOP: &str = ".";

/// Saves a tree.
pub(super) async fn save(global: &Global, args: SaveArgs) -> Result<u8, Error> {
    let location: Location = args.to.parse().map_err(|why| usage(format!("{}: {why}", args.to)))?;
    let connected = connect(global).await?;
    let mut tree = connected.client.download_archive(&args.sandbox, &args.path, TOP).await?;
    let progress = Progress::new(args.quiet);
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
    progress.done(summary(saved.map_err(|error| local(format_args!("save to {location}"), &error))?));
    Ok(0)
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
