//! Flags of `dispense ssh` and `dispense ssh-key`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Args)]
pub(crate) struct SshArgs {
    /// Name or id
    pub(crate) sandbox: String,
    /// Write what `ssh dispense-NAME` needs into ~/.ssh, for editors and other programs
    #[arg(long)]
    pub(crate) save_config: bool,
    /// Get a fresh certificate, as `ssh dispense-NAME` does before it connects
    #[arg(long, hide = true, conflicts_with = "save_config")]
    pub(crate) renew: bool,
    /// Command and its arguments, and flags of ssh(1) before it [default: a shell]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARG")]
    pub(crate) args: Vec<String>,
}

#[derive(Args)]
pub(crate) struct SshKeyArgs {
    #[command(subcommand)]
    pub(crate) command: SshKeyCommand,
}

#[derive(Subcommand)]
pub(crate) enum SshKeyCommand {
    /// Register a public key, which opens your sandboxes for any SSH client
    Add {
        /// As `ssh-keygen` writes it [default: ~/.ssh/id_ed25519.pub]
        file: Option<PathBuf>,
    },
    /// List your registered keys
    List,
    /// Remove a registered key
    Remove {
        /// `SHA256:…`, as `list` shows it
        fingerprint: String,
    },
}
