//! Flags of `dispense up` and `dispense server`; each is a setting.

use std::path::PathBuf;

use clap::Args;
use dispense_client::Error;

use super::OfferArgs;
use crate::settings::{Kind, Settings};

#[derive(Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    #[command(flatten)]
    pub(crate) offer: OfferArgs,
}

#[derive(Args)]
pub(crate) struct ListenArgs {
    /// Settings of the server, a YAML file [default: $XDG_CONFIG_HOME/dispense/server.yaml]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address for clients, e.g. 127.0.0.1:8080, or :8080 for all addresses of the machine
    #[arg(long)]
    pub(crate) address: Option<String>,
    /// Address for runners
    #[arg(long)]
    pub(crate) runner_address: Option<String>,
    /// Address for SSH clients
    #[arg(long)]
    pub(crate) ssh_address: Option<String>,
    /// Previews are at {port}-{sandbox}.DOMAIN
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) preview_domain: Option<String>,
    /// Workspaces are at {sandbox}.DOMAIN
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) workspace_domain: Option<String>,
    /// What is kept of each stream of a process after its sandbox is gone, e.g. 64K; 0 keeps nothing
    #[arg(long)]
    pub(crate) log_tail: Option<String>,
    /// Encrypt both ports; without a certificate the server makes one and prints its fingerprint
    #[arg(long)]
    pub(crate) tls: bool,
    /// Certificate with its chain, a PEM file that is read again when it changes
    #[arg(long, value_name = "FILE", requires = "key_file")]
    pub(crate) cert_file: Option<String>,
    /// Seal the secrets of the database anew, with a new key, and forget the old one
    #[arg(long)]
    pub(crate) rotate_secrets: bool,
    /// Key of the certificate
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    pub(crate) key_file: Option<String>,
}

impl ListenArgs {
    /// The settings that they are part of.
    pub(crate) fn settings(&self, kind: Kind) -> Result<Settings, Error> {
        let flags = [
            ("server.address", self.address.clone()),
            ("server.runner_address", self.runner_address.clone()),
            ("server.ssh.address", self.ssh_address.clone()),
            ("server.previews.domain", self.preview_domain.clone()),
            ("server.workspace.domain", self.workspace_domain.clone()),
            ("server.log_tail", self.log_tail.clone()),
            ("server.tls.enabled", (self.tls || self.cert_file.is_some()).then(|| "true".to_owned())),
            ("server.tls.cert_file", self.cert_file.clone()),
            ("server.tls.key_file", self.key_file.clone()),
        ];
        Settings::load(kind, self.config.as_deref(), &flags)
    }
}

#[derive(Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
}
