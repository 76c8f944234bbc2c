//! The one place that knows which backends there are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dispense_backend::native::{Native, NativeConfig};
pub use dispense_backend::{Backend, BackendError};

/// What a runner's backend needs.
#[derive(Debug, Clone)]
pub struct BackendConfig {
    /// Boxes and templates.
    pub state_dir: PathBuf,
    /// Templates by name, beside those in the state directory: directories or tar archives.
    pub templates: BTreeMap<String, PathBuf>,
}

/// Opens the native backend.
pub async fn open(config: BackendConfig) -> Result<Arc<dyn Backend>, BackendError> {
    let native = Native::open(NativeConfig { state_dir: config.state_dir, templates: config.templates }).await?;
    Ok(Arc::new(native))
}

pub use dispense_backend::native::{Finding, Verdict};

/// What this machine allows, for `dispense doctor`.
pub async fn diagnose(state_dir: &Path) -> Vec<Finding> {
    dispense_backend::native::diagnose(state_dir).await
}
