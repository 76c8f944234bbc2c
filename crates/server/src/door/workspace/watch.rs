//! Changes on the disk, for a client that has listed directories: each that it listed is told again, soon after the
//! last of a burst of changes.

mod ignored;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dispense_api::error::Error;
use dispense_api::method::Method;
use dispense_api::v1;
use dispense_api::v1::watch_files_response::Kind;
use ignored::{Ignored, is_of_tools, list_of};
use socketioxide::extract::SocketRef;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Client, ROOT, START_TIMEOUT, emit};
use crate::relay::Origin;
use crate::relay::call::Answers;

/// After the last change of a burst.
const DEBOUNCE: Duration = Duration::from_millis(150);
/// A burst that does not end is told in between.
const BURST_MAX: Duration = Duration::from_secs(1);
/// Directories that one client follows.
const FOLLOWED_MAX: usize = 500;
/// Before a watch that ended is opened again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// What a client follows.
#[derive(Default)]
pub(super) struct Watch(Mutex<State>);

#[derive(Default)]
struct State {
    folders: BTreeSet<String>,
    task: Option<JoinHandle<()>>,
}

impl Watch {
    /// Follows a directory, from the first one on.
    pub(super) async fn follow(&self, socket: &SocketRef, path: &str) {
        let mut state = self.0.lock().await;
        if state.folders.len() < FOLLOWED_MAX {
            state.folders.insert(normal(path).to_owned());
        }
        if state.task.as_ref().is_none_or(JoinHandle::is_finished) {
            state.task = Some(tokio::spawn(watch_task(socket.clone())));
        }
    }

    /// The client is gone.
    pub(super) async fn stop(&self) {
        if let Some(task) = self.0.lock().await.task.take() {
            task.abort();
        }
    }

    async fn follows(&self, folder: &str) -> bool {
        self.0.lock().await.folders.contains(folder)
    }

    async fn all(&self) -> BTreeSet<String> {
        self.0.lock().await.folders.clone()
    }
}

/// As a client may write the workspace itself.
fn normal(path: &str) -> &str {
    match path.trim_end_matches('/').trim_start_matches("./") {
        "." => "",
        path => path,
    }
}

/// Watches as long as the client is there.
async fn watch_task(socket: SocketRef) {
    while socket.connected() {
        let Some(client) = socket.extensions.get::<Arc<Client>>() else { return };
        if let Err(error) = client.watch_once(&socket).await {
            tracing::debug!(%error, "the watch of a workspace ended");
        }
        drop(client);
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

impl Client {
    async fn watch_once(&self, socket: &SocketRef) -> Result<(), Error> {
        let route = self.route(Method::WatchFiles).await?;
        let request =
            v1::WatchFilesRequest { sandbox: route.sandbox.to_string(), path: ROOT.to_owned(), recursive: true };
        let mut answers =
            self.parts.relay.ask(&route, Method::WatchFiles, &Origin::default(), &request, START_TIMEOUT).await?;
        let mut ignored = Ignored::default();
        while let Some(burst) = next_burst(&mut answers).await? {
            if burst.everything {
                ignored = Ignored::default();
            }
            ignored.forget(&burst.paths);
            let mut folders = if burst.everything { self.watch.all().await } else { BTreeSet::new() };
            for path in burst.paths.iter().filter(|path| !is_of_tools(path)) {
                let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                if !folders.contains(folder) && self.watch.follows(folder).await {
                    self.learn(&mut ignored, path).await;
                    if ignored.is_told(path) {
                        folders.insert(folder.to_owned());
                    }
                }
            }
            for folder in folders {
                // One that went is told as a change of the one that it was in.
                if let Ok(tree) = self.tree(&folder).await {
                    emit(socket, "file:refresh", &tree);
                }
            }
        }
        Ok(())
    }

    /// Reads the lists on the way to a path that are not known yet.
    async fn learn(&self, ignored: &mut Ignored, path: &str) {
        let most = self.parts.workspace.ignore_file_bytes;
        for folder in ignored.unknown(path) {
            let text = self.bytes(&list_of(&folder), most).await.unwrap_or_default();
            ignored.learn(folder, &String::from_utf8_lossy(&text));
        }
    }
}

/// Changes that came soon after each other.
#[derive(Default)]
struct Burst {
    /// Relative to the workspace.
    paths: BTreeSet<String>,
    /// There were too many to tell.
    everything: bool,
}

/// The next burst; `None` when the watch ended.
async fn next_burst(answers: &mut Answers) -> Result<Option<Burst>, Error> {
    let mut burst = Burst::default();
    let mut first: Option<Instant> = None;
    loop {
        let next = answers.next::<v1::WatchFilesResponse>();
        let event = match first {
            None => next.await?,
            Some(begun) => {
                let until = (Instant::now() + DEBOUNCE).min(begun + BURST_MAX);
                match tokio::time::timeout_at(until, next).await {
                    Ok(event) => event?,
                    Err(_) => return Ok(Some(burst)),
                }
            }
        };
        let Some(event) = event else { return Ok(first.map(|_| burst)) };
        match event.kind() {
            Kind::Unspecified | Kind::Ready => continue,
            Kind::Overflow => burst.everything = true,
            Kind::Created | Kind::Modified | Kind::Removed | Kind::Moved => {}
        }
        for path in [&event.path, &event.from] {
            if let Some(path) = path.strip_prefix(ROOT).and_then(|path| path.strip_prefix('/')) {
                burst.paths.insert(path.to_owned());
            }
        }
        first.get_or_insert_with(Instant::now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_has_many_names() {
        for path in ["", ".", "./", "/"] {
            assert_eq!(normal(path), "", "{path}");
        }
        assert_eq!(normal("./src/"), "src");
    }
}
