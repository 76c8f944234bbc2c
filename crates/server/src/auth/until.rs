//! Until when what somebody opened goes on: it ends with what let them in, a key, a link or a share.

use std::pin::Pin;
use std::sync::Arc;

use super::Keys;

/// Why a stream of a key's ended.
pub(crate) const KEY_ENDED: &str = "the API key was revoked or has expired";

/// Ready, with the reason, when what was opened is to end.
pub(crate) type Ending = Pin<Box<dyn Future<Output = &'static str> + Send>>;

/// Cheap to have: nothing waits before somebody asks.
#[derive(Clone)]
pub(crate) struct Until(Arc<dyn Fn() -> Ending + Send + Sync>);

impl Until {
    /// `wait` makes a future that is ready at the end.
    pub(crate) fn new(wait: impl Fn() -> Ending + Send + Sync + 'static) -> Self {
        Self(Arc::new(wait))
    }

    /// Of a key; where none was asked for nothing ends.
    pub(crate) fn key(keys: Arc<Keys>, key_id: String) -> Self {
        Self::new(move || {
            let (keys, key_id) = (keys.clone(), key_id.clone());
            Box::pin(async move {
                keys.ended(&key_id).await;
                KEY_ENDED
            })
        })
    }

    pub(crate) fn ended(&self) -> Ending {
        (self.0)()
    }
}
