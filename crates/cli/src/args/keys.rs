//! Flags of `dispense key`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::units;

#[derive(Args)]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    pub(crate) command: KeyCommand,
}

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key; its secret is shown once
    Create(KeyCreateArgs),
    /// List keys
    List {
        /// Also those that have ended
        #[arg(long)]
        all: bool,
    },
    /// Make a key that replaces another one, which ends after a while
    Rotate {
        /// Id, prefix or name
        key: String,
        /// How long the old one is still taken, e.g. 1h; 0s ends it at once [default: one day]
        #[arg(long, value_parser = units::duration)]
        overlap: Option<Duration>,
    },
    /// End a key at once
    Revoke {
        /// Id, prefix or name
        key: String,
    },
}

#[derive(Args)]
pub(crate) struct KeyCreateArgs {
    /// For people
    #[arg(long)]
    pub(crate) name: String,
    /// What it allows: a viewer reads, a member also has sandboxes of its own, an admin does everything
    #[arg(long, value_enum, default_value = "member")]
    pub(crate) role: RoleArg,
    /// Reach only the sandboxes of this group, and create only there
    #[arg(long, conflicts_with = "sandbox")]
    pub(crate) group: Option<String>,
    /// Reach only this sandbox (an id), and create none; several times for several
    #[arg(long)]
    pub(crate) sandbox: Vec<String>,
    /// When it ends, e.g. 30d [default: never]
    #[arg(long, value_parser = units::duration)]
    pub(crate) expires: Option<Duration>,
    /// In the form `e2b_…`, which some SDKs insist on
    #[arg(long)]
    pub(crate) e2b: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum RoleArg {
    Viewer,
    Member,
    Admin,
}
