//! `dispense save`: a sandbox's files to object storage, with the credentials of whoever saves.

use dispense_api::archive::Summary;
use dispense_api::location::Location;
use dispense_client::Error;
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
        while let Some(chunk) = tree.next().await? {
            if sender.send(chunk).await.is_err() {
                // The storage says why.
                break;
            }
        }
        drop(sender);
        Ok::<(), Error>(())
    };
    let (saved, sent) = tokio::join!(saved, sent);
    // What was cut is not the whole tree, whatever was saved of it.
    sent?;
    progress.done(summary(saved.map_err(|error| local(format_args!("save to {location}"), &error))?));
    Ok(0)
}
