//! Flags about what workspaces are filled from and saved to.

use std::path::PathBuf;

use clap::Args;
use dispense_runner::Offer;

use crate::units::{self, Capacity, Pair};

/// What is in its working directory at first.
#[derive(Args, Clone)]
pub(crate) struct SourceArgs {
    /// Directory to start with: a git repository is cloned, of another what .gitignore names stays behind
    #[arg(long, value_name = "DIR", group = "origin")]
    pub(crate) source: Option<PathBuf>,
    /// Where to start from, fetched by the sandbox's runner before it runs: s3://BUCKET/PREFIX, file:///DIR (or .tar,
    /// .tar.gz) of the runner's machine, https://… of a .tar or .tar.gz, if need be with #sha256=DIGITS, or
    /// https://….git, cloned, if need be with #BRANCH; within what the runner shares (`--source-root`)
    #[arg(long, value_name = "URL", group = "origin")]
    pub(crate) content: Option<String>,
    /// Branch of the clone; one that exists is taken as it is [default: the sandbox's name]
    #[arg(long, requires = "origin")]
    pub(crate) branch: Option<String>,
    /// Begin the branch anew where the repository is now
    #[arg(long, requires = "branch")]
    pub(crate) reset_branch: bool,
}

/// What a runner has for its sandboxes.
#[derive(Args, Default)]
pub(crate) struct OfferArgs {
    /// Template of a name, from a directory or a tar archive
    #[arg(long = "template", value_name = "NAME=PATH", value_parser = units::template)]
    pub(crate) template: Vec<Pair>,
    /// What sandboxes may be filled from: a directory of this machine, or the beginning of a URL, e.g. s3://bucket
    #[arg(long = "source-root", value_name = "DIR|URL")]
    pub(crate) source_root: Vec<PathBuf>,
    /// What it promises to sandboxes in all, e.g. memory=64G; limits are ceilings, so by default the machine's cores are
    /// promised 1024 times and its memory 8 times
    #[arg(long, value_name = "cpu|memory|disk|sandboxes=N", value_parser = units::capacity)]
    pub(crate) capacity: Vec<Capacity>,
}

impl OfferArgs {
    /// Of what is said twice the last counts.
    pub(crate) fn offer(&self) -> Offer {
        let mut offer = Offer::default();
        for capacity in &self.capacity {
            match *capacity {
                Capacity::CpuMillis(millis) => offer.cpu_millis = Some(millis),
                Capacity::MemoryBytes(bytes) => offer.memory_bytes = Some(bytes),
                Capacity::DiskBytes(bytes) => offer.disk_bytes = Some(bytes),
                Capacity::Sandboxes(count) => offer.sandboxes = Some(count),
            }
        }
        offer
    }
}

#[derive(Args)]
pub(crate) struct SaveArgs {
    /// Id or name of the sandbox
    pub(crate) sandbox: String,
    /// s3://BUCKET/PREFIX, and nothing else; the storage and its credentials come from AWS_ENDPOINT, AWS_ACCESS_KEY_ID and the like
    #[arg(value_name = "URL")]
    pub(crate) to: String,
    /// What is saved
    #[arg(long, default_value = "/workspace")]
    pub(crate) path: String,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}
