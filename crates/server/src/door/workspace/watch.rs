//! Changes on the disk, for a client that has listed directories: each that it listed is told again, soon after the
//! last of a burst of changes.

mod ignored;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use dispense_api::error::Error;
use dispense_api::method::Method;
use dispense_api::v1;
use dispense_api::v1::watch_files_response::Kind;
use ignored::{Ignored, is_of_tools, list_of};
use serde_json::Value;
use socketioxide::extract::SocketRef;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::events::deliver;
use super::{Client, ROOT, START_TIMEOUT};
use crate::relay::Origin;
use crate::relay::call::Answers;

/// After the last change of a burst.
const DEBOUNCE: Duration = Duration::from_millis(150);
/// A burst that does not end is told in between.
const BURST_MAX: Duration = Duration::from_secs(1);
/// BOUND: directories that one client follows. Beyond, the one that was fetched longest ago is followed no more:
/// the newest are what somebody looks at.
const FOLLOWED_MAX: usize = 500;
/// Before a watch that ended is opened again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// What a client follows.
#[derive(Default)]
pub(super) struct Watch(Mutex<State>);

#[derive(Default)]
struct State {
    folders: Folders,
    /// How often the client has fetched one.
    fetches: u64,
    task: Option<JoinHandle<()>>,
}

/// Directories by their normal paths.
pub(super) type Folders = BTreeMap<String, Followed>;

/// A directory that is followed.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// When it was fetched last, in fetches.
    fetched: u64,
    /// Of what the client was told last, if that is known to have come.
    told: Option<u64>,
}

impl State {
    /// Counts a fetch; forgets who has to go for it.
    fn fetched(&mut self, path: &str, tree: u64) {
        self.fetches += 1;
        self.folders.insert(path.to_owned(), Followed { fetched: self.fetches, told: Some(tree) });
        if self.folders.len() > FOLLOWED_MAX {
            // One that is just being fetched has no number yet, and is not the oldest for that.
            let fetched = self.folders.iter().filter(|(_, followed)| followed.fetched > 0);
            let oldest = fetched.min_by_key(|(_, followed)| followed.fetched).map(|(path, _)| path.clone());
            oldest.and_then(|path| self.folders.remove(&path));
        }
    }

    /// Adds what was followed before all that is followed now. What of it was told may not have come.
    fn add_older(&mut self, older: Folders) {
        let last = older.values().map(|followed| followed.fetched).max().unwrap_or_default();
        self.fetches += last;
        self.folders.values_mut().filter(|followed| followed.fetched > 0).for_each(|followed| followed.fetched += last);
        for (path, followed) in older {
            self.folders.entry(path).or_insert(Followed { told: None, ..followed });
        }
    }

    fn watch(&mut self, socket: &SocketRef) {
        self.task = Some(tokio::spawn(watch_task(socket.clone())));
    }
}

fn digest(tree: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    tree.hash(&mut hasher);
    hasher.finish()
}

impl Watch {
    /// Notices changes of a directory that is being fetched; whether it is followed from now on only.
    pub(super) async fn expect(&self, path: &str) -> bool {
        let mut state = self.0.lock().await;
        let is_new = !state.folders.contains_key(path);
        state.folders.entry(path.to_owned()).or_default();
        is_new
    }

    /// Follows a directory no more.
    pub(super) async fn forget(&self, path: &str) {
        self.0.lock().await.folders.remove(path);
    }

    /// Follows again what the client followed before it was cut off, and tells it all of that once.
    pub(super) async fn resume(&self, socket: &SocketRef, folders: Folders) {
        if folders.is_empty() {
            return;
        }
        let mut state = self.0.lock().await;
        state.add_older(folders);
        // A new watch compares everything when it begins.
        if let Some(task) = state.task.take() {
            task.abort();
        }
        state.watch(socket);
    }

    /// The client is gone; what it followed.
    pub(super) async fn stop(&self) -> Folders {
        let mut state = self.0.lock().await;
        if let Some(task) = state.task.take() {
            task.abort();
        }
        std::mem::take(&mut state.folders)
    }

    async fn follows(&self, folder: &str) -> bool {
        self.0.lock().await.folders.contains_key(folder)
    }

    async fn all(&self) -> BTreeSet<String> {
        self.0.lock().await.folders.keys().cloned().collect()
    }

    /// Notes what is told of a directory; whether it is something else than before. `None` when it is followed no more.
    async fn is_news(&self, folder: &str, tree: &Value) -> Option<bool> {
        let digest = Some(digest(tree));
        let mut state = self.0.lock().await;
        let followed = state.folders.get_mut(folder)?;
        Some(std::mem::replace(&mut followed.told, digest) != digest)
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
    /// Follows a directory whose tree the client is told, from the first one on.
    pub(super) async fn follow(&self, socket: &SocketRef, path: &str, tree: &Value) {
        let mut state = self.watch.0.lock().await;
        // Who has left before this would have a watch for ever.
        if self.gone.is_cancelled() {
            return;
        }
        state.fetched(path, digest(tree));
        if state.task.as_ref().is_none_or(JoinHandle::is_finished) {
            state.watch(socket);
        }
    }

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
                self.refresh(socket, &folder, burst.everything).await;
            }
        }
        Ok(())
    }

    /// Tells a directory again, or only where it is not as it was told last.
    async fn refresh(&self, socket: &SocketRef, folder: &str, only_news: bool) {
        // One that went is told as a change of the one that it was in.
        let Ok(tree) = self.tree(folder).await else { return };
        match self.watch.is_news(folder, &tree).await {
            Some(is_news) if is_news || !only_news => {
                deliver(socket, "file:refresh", &tree).await;
            }
            _ => {}
        }
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
    /// There were too many to tell, or the watch has just begun.
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
            Kind::Unspecified => continue,
            // What changed since a directory was told, or while there was no watch, is seen by looking.
            Kind::Ready | Kind::Overflow => burst.everything = true,
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

    fn paths(state: &State) -> Vec<&str> {
        state.folders.keys().map(String::as_str).collect()
    }

    #[test]
    fn the_newest_are_followed() {
        let mut state = State::default();
        for number in 0..FOLLOWED_MAX {
            state.fetched(&format!("{number:04}"), 0);
        }
        assert_eq!(state.folders.len(), FOLLOWED_MAX);
        // Fetched again, it is new again.
        state.fetched("0000", 0);
        state.fetched("new", 0);
        assert_eq!(state.folders.len(), FOLLOWED_MAX);
        assert!(state.folders.contains_key("0000") && state.folders.contains_key("new"));
        assert!(!state.folders.contains_key("0001"), "it was fetched longest ago");
    }

    #[test]
    fn what_is_found_again_is_older_than_what_is_fetched_since() {
        let mut before = State::default();
        for path in ["a", "b"] {
            before.fetched(path, 1);
        }
        let mut state = State::default();
        state.fetched("b", 2);
        state.add_older(before.folders);
        assert_eq!(paths(&state), ["a", "b"]);
        assert_eq!(state.folders["a"].told, None, "it may not have come");
        assert_eq!(state.folders["b"].told, Some(2));
        assert!(state.folders["a"].fetched < state.folders["b"].fetched);
    }
}
