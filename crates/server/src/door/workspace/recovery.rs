//! What a client finds again that comes back: its terminal, and the directories that it follows.
//!
//! ```text
//! connect ──► arrive ──► whoever has the session leaves ──► take ──► joined, followed
//!    ▲                                 │
//!    │ within the window               ▼
//!    └──────────────────────── put ◄── leave
//! ```
//!
//! INVARIANT: one session has one client: the newest. The one before may not know that its network is gone, nor may the server.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dispense_api::id::SandboxId;
use socketioxide::extract::SocketRef;

use super::Client;
use super::terminal::Shell;
use super::watch::Folders;

/// How long what was left waits for its client.
pub(super) const RECOVERY_WINDOW: Duration = Duration::from_secs(120);
/// Terminals without a session's name that wait for one key; the oldest ends.
const UNNAMED_MAX: usize = 16;

/// Where a client looks for what it left.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) sandbox: SandboxId,
    pub(super) whose: Whose,
}

/// Whom it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    Session { account: String, name: String },
    Key(String),
}

impl Key {
    pub(super) fn is_session(&self) -> bool {
        matches!(self.whose, Whose::Session { .. })
    }

    fn holds(&self) -> usize {
        if self.is_session() { 1 } else { UNNAMED_MAX }
    }
}

/// What a client left.
#[derive(Default)]
pub(super) struct Left {
    pub(super) shell: Option<Shell>,
    pub(super) folders: Folders,
}

/// A client that is there.
pub(super) struct Present {
    pub(super) client: Arc<Client>,
    pub(super) socket: SocketRef,
}

/// Who is there by the name of a session, and what waits for those that are away, the oldest of one key first.
#[derive(Default)]
pub(super) struct Recovery(Mutex<State>);

#[derive(Default)]
struct State {
    present: HashMap<Key, Present>,
    waiting: HashMap<Key, VecDeque<(u64, Left)>>,
    /// Of all that was left so far: what is left twice waits its whole time twice.
    count: u64,
}

impl Recovery {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }

    /// Notes that a client is there; who had its session until now.
    pub(super) fn arrive(&self, client: &Arc<Client>, socket: &SocketRef) -> Option<Present> {
        let key = client.recovery_key();
        let present = Present { client: client.clone(), socket: socket.clone() };
        if key.is_session() { self.lock().present.insert(key, present) } else { None }
    }

    /// Forgets a client, unless its session is another's by now.
    pub(super) fn depart(&self, client: &Arc<Client>) {
        let key = client.recovery_key();
        let mut state = self.lock();
        if state.present.get(&key).is_some_and(|present| Arc::ptr_eq(&present.client, client)) {
            state.present.remove(&key);
        }
    }

    /// Lets something wait: its number, and what has to go for it.
    pub(super) fn put(&self, key: &Key, left: Left) -> (u64, Option<Left>) {
        let mut state = self.lock();
        state.count += 1;
        let number = state.count;
        let waiting = state.waiting.entry(key.clone()).or_default();
        waiting.push_back((number, left));
        let gone = if waiting.len() > key.holds() { waiting.pop_front() } else { None };
        (number, gone.map(|(_, left)| left))
    }

    /// Takes what has waited longest.
    pub(super) fn take(&self, key: &Key) -> Option<Left> {
        self.take_if(key, |_| true)
    }

    /// Takes what has this number, if it still waits.
    pub(super) fn expire(&self, key: &Key, number: u64) -> Option<Left> {
        self.take_if(key, |other| other == number)
    }

    fn take_if(&self, key: &Key, wanted: impl Fn(u64) -> bool) -> Option<Left> {
        let mut state = self.lock();
        let waiting = state.waiting.get_mut(key)?;
        let at = waiting.iter().position(|(number, _)| wanted(*number))?;
        let left = waiting.remove(at);
        if waiting.is_empty() {
            state.waiting.remove(key);
        }
        left.map(|(_, left)| left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(whose: Whose) -> Key {
        Key { sandbox: SandboxId::random(), whose }
    }

    #[test]
    fn what_is_left_twice_waits_its_whole_time_twice() {
        let recovery = Recovery::default();
        let key = key(Whose::Session { account: "me".to_owned(), name: "tab".to_owned() });
        let (first, _) = recovery.put(&key, Left::default());
        assert!(recovery.take(&key).is_some());
        let (second, _) = recovery.put(&key, Left::default());
        assert!(recovery.expire(&key, first).is_none(), "the end of the first wait takes nothing of the second");
        assert!(recovery.expire(&key, second).is_some());
        assert!(recovery.take(&key).is_none());
        assert!(recovery.lock().waiting.is_empty());
    }

    #[test]
    fn a_session_holds_one_and_a_key_some() {
        let recovery = Recovery::default();
        for (key, holds) in [
            (key(Whose::Session { account: "me".to_owned(), name: "tab".to_owned() }), 1),
            (key(Whose::Key("key".to_owned())), UNNAMED_MAX),
        ] {
            let gone = (0..=holds).filter(|_| recovery.put(&key, Left::default()).1.is_some()).count();
            assert_eq!(gone, 1);
        }
    }
}
