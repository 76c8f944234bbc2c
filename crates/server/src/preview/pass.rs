//! What lets somebody see a preview. What they opened ends with it: with the key; with the link, its time or its key; with
//! the share.

use std::sync::Arc;
use std::time::Duration;

use dispense_api::error::Error;
use dispense_api::id::SandboxId;

use super::{Grant, Previews};
use crate::auth::until::{KEY_ENDED, Until};
use crate::auth::{Keys, Principal};
use crate::clock::MICROS_PER_SEC;

/// At the latest, whether it has ended: the machine's clock may be set, and the database may have been away.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
const LINK_ENDED: &str = "the link to this preview was revoked or has expired";
const SHARE_ENDED: &str = "this preview is not public any more";

/// What somebody came with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pass {
    Key(Principal),
    /// A cookie of a link, with the holder of the key that made it.
    Link(Grant, Principal),
    /// Nothing: everybody may see it.
    Public,
}

impl Pass {
    /// Whose key it is, in the end.
    pub(crate) fn holder(&self) -> Option<&Principal> {
        match self {
            Self::Key(holder) | Self::Link(_, holder) => Some(holder),
            Self::Public => None,
        }
    }

    /// Until when it opens a port.
    pub(crate) fn until(&self, previews: Arc<Previews>, keys: Arc<Keys>, sandbox: &SandboxId, port: u16) -> Until {
        let (sandbox, pass) = (sandbox.clone(), self.clone());
        Until::new(move || {
            let (previews, keys, sandbox, pass) = (previews.clone(), keys.clone(), sandbox.clone(), pass.clone());
            Box::pin(async move {
                match pass {
                    Self::Key(holder) => {
                        keys.ended(&holder.key_id).await;
                        KEY_ENDED
                    }
                    Self::Link(grant, _) => tokio::select! {
                        () = keys.ended(&grant.key_id) => KEY_ENDED,
                        () = previews.ended(|| previews.link_left(&sandbox, port, &grant)) => LINK_ENDED,
                    },
                    Self::Public => {
                        previews.ended(|| previews.share_left(&sandbox, port)).await;
                        SHARE_ENDED
                    }
                }
            })
        })
    }
}

impl Previews {
    /// Returns when nothing is left of the time that `left` tells.
    async fn ended<F: Future<Output = Result<Option<i64>, Error>>>(&self, left: impl Fn() -> F) {
        // Before the look: what changes between the two is seen.
        let mut changed = self.known.changes();
        loop {
            let wait = match left().await {
                Ok(None) => return,
                Ok(Some(micros)) => Duration::from_micros(u64::try_from(micros).unwrap_or(0)).min(LOOK_AGAIN),
                // What cannot be looked up ends nothing: new requests are refused meanwhile.
                Err(_) => LOOK_AGAIN,
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = changed.changed() => {}
            }
        }
    }

    /// Of a link, in microseconds.
    async fn link_left(&self, sandbox: &SandboxId, port: u16, grant: &Grant) -> Result<Option<i64>, Error> {
        let left = grant.until * MICROS_PER_SEC - self.clock.now();
        let revoked = self.is_revoked(sandbox, port, grant).await?;
        Ok((left > 0 && !revoked).then_some(left))
    }

    /// Of a share, in microseconds.
    pub(super) async fn share_left(&self, sandbox: &SandboxId, port: u16) -> Result<Option<i64>, Error> {
        let until = self.known.access(self.store.readers(), sandbox, port).await?.public_until;
        Ok(until.map(|until| until - self.clock.now()).filter(|left| *left > 0))
    }
}
