//! Who asked for what: an append-only log whose every entry covers the one before it by its hash.
//!
//! An entry is queued before the change that it tells of, in the same queue, so it is on the disk no later. What it
//! says is what was asked for; what became of it, jobs and events tell.

use std::sync::Arc;

use dispense_api::error::Error;
use sha2::{Digest, Sha256};

use crate::auth::Principal;
use crate::auth::secret::hex;
use crate::clock::Clock;
use crate::sandbox::spec::clip;
use crate::store::{Store, StoreError, audit};

/// Before the first entry.
pub(crate) const FIRST_HASH: &str = "";
/// The outcome of what was not refused.
const TAKEN: &str = "taken";
/// Entries of one read while the chain is walked.
const WALK_ENTRIES: usize = 1000;

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) at: i64,
    pub(crate) account: String,
    pub(crate) key_id: String,
    pub(crate) action: String,
    pub(crate) target: String,
    /// `taken`, or the code of the refusal.
    pub(crate) outcome: String,
    pub(crate) request_id: String,
}

impl Record {
    /// Of this record as the entry of a number, behind the entry of a hash.
    pub(crate) fn hash(&self, seq: i64, before: &str) -> String {
        let mut digest = Sha256::new();
        let (seq, at) = (seq.to_string(), self.at.to_string());
        let fields = [
            before,
            &seq,
            &at,
            &self.account,
            &self.key_id,
            &self.action,
            &self.target,
            &self.outcome,
            &self.request_id,
        ];
        for field in fields {
            // With its length, so that no two records have the same bytes.
            digest.update((field.len() as u64).to_be_bytes());
            digest.update(field.as_bytes());
        }
        hex(&digest.finalize())
    }
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) seq: i64,
    pub(crate) record: Record,
    pub(crate) hash: String,
}

/// What a walk along the chain found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) entries: u64,
    /// The first that is not what was written.
    pub(crate) broken_at: Option<i64>,
    pub(crate) last_hash: String,
}

/// The log.
pub(crate) struct Audit {
    pub(crate) store: Arc<Store>,
    pub(crate) clock: Arc<Clock>,
}

impl Audit {
    /// Notes what a caller asks for and is let do.
    pub(crate) async fn taken(&self, caller: &Principal, action: &str, target: &str) -> Result<(), Error> {
        self.note(caller, action, target, TAKEN).await
    }

    /// Notes what a caller was refused, and gives the refusal back.
    pub(crate) async fn refused(&self, caller: &Principal, action: &str, target: &str, error: Error) -> Error {
        match self.note(caller, action, target, error.code.as_str()).await {
            Ok(()) => error,
            Err(error) => error,
        }
    }

    async fn note(&self, caller: &Principal, action: &str, target: &str, outcome: &str) -> Result<(), Error> {
        let record = Record {
            at: self.clock.now(),
            account: caller.account.clone(),
            key_id: caller.key_id.clone(),
            action: action.to_owned(),
            target: clip(target),
            outcome: outcome.to_owned(),
            request_id: caller.origin.request_id.clone(),
        };
        let post = self.store.post(move |tx| {
            let record = record.clone();
            Box::pin(async move { audit::append(tx, &record).await })
        });
        Ok(post.await?)
    }

    /// Entries after a number, oldest first.
    pub(crate) async fn page(&self, after: i64, limit: usize) -> Result<Vec<Entry>, StoreError> {
        audit::page(self.store.readers(), after, limit).await
    }

    /// Walks the whole chain.
    pub(crate) async fn verify(&self) -> Result<Verdict, StoreError> {
        let mut verdict = Verdict { entries: 0, broken_at: None, last_hash: FIRST_HASH.to_owned() };
        let mut seq = 0;
        loop {
            let page = self.page(seq, WALK_ENTRIES).await?;
            for entry in &page {
                let whole = entry.seq == seq + 1 && entry.hash == entry.record.hash(entry.seq, &verdict.last_hash);
                if !whole {
                    verdict.broken_at = Some(entry.seq);
                    return Ok(verdict);
                }
                seq = entry.seq;
                verdict.entries += 1;
                verdict.last_hash.clone_from(&entry.hash);
            }
            if page.len() < WALK_ENTRIES {
                return Ok(verdict);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::auth::{Role, Scope};
    use crate::relay::Origin;

    async fn audit(folder: &tempfile::TempDir) -> Audit {
        let store = Store::in_folder(folder.path()).await;
        Audit { store: Arc::new(store), clock: Arc::new(Clock::new(Arc::new(SystemTime::now))) }
    }

    fn caller() -> Principal {
        let text = |text: &str| text.to_owned();
        Principal {
            key_id: text("k"),
            account: text("a"),
            role: Role::Member,
            scope: Scope::All,
            origin: Origin { request_id: text("r"), ..Origin::default() },
        }
    }

    /// Queued entries are written once a later change is answered.
    async fn settle(audit: &Audit) {
        audit.store.write(|_| Box::pin(async { Ok(()) })).await.expect("written");
    }

    #[tokio::test]
    async fn a_change_a_removal_and_an_insertion_are_found() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let audit = audit(&folder).await;
        for number in 0..5 {
            audit.taken(&caller(), "sandbox.delete", &format!("box-{number}")).await.expect("queued");
        }
        let denied = Error::new(dispense_api::error::Code::PermissionDenied, "not_owner", "no");
        assert_eq!(audit.refused(&caller(), "sandbox.stop", "box-1", denied.clone()).await, denied);
        settle(&audit).await;
        let whole = audit.verify().await.expect("read");
        assert_eq!((whole.entries, whole.broken_at), (6, None));
        assert_eq!(audit.page(5, 10).await.expect("read")[0].record.outcome, "permission_denied");
        for (tamper, found) in [
            ("UPDATE audit SET target = 'other' WHERE seq = 3", 3),
            ("UPDATE audit SET target = 'box-2' WHERE seq = 3", 0),
            ("DELETE FROM audit WHERE seq = 2", 3),
        ] {
            let write = audit.store.write(move |tx| {
                Box::pin(async move {
                    sqlx::query(tamper).execute(tx).await?;
                    Ok(())
                })
            });
            write.await.expect("tampered");
            let verdict = audit.verify().await.expect("read");
            assert_eq!(verdict.broken_at, (found > 0).then_some(found), "{tamper}");
        }
    }
}
