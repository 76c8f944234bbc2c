//! Flags of `dispense preview` and `dispense port`.

use std::time::Duration;

use clap::{Args, Subcommand};

use crate::units::{self, Forward};

#[derive(Args)]
pub(crate) struct PreviewArgs {
    /// Name or id
    pub(crate) sandbox: String,
    /// Port on the sandbox's loopback
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
    /// Open it to everybody, without a link
    #[arg(long)]
    pub(crate) public: bool,
    /// For this long, e.g. 8h; at most 30 days
    #[arg(long, value_parser = units::duration, default_value = "1h")]
    pub(crate) ttl: Duration,
    /// End a public preview
    #[arg(long, conflicts_with = "public")]
    pub(crate) close: bool,
    /// End every link to the port that was made so far, and a public preview
    #[arg(long, conflicts_with_all = ["public", "close"])]
    pub(crate) revoke: bool,
}

#[derive(Args)]
pub(crate) struct PortArgs {
    #[command(subcommand)]
    pub(crate) command: PortCommand,
}

#[derive(Subcommand)]
pub(crate) enum PortCommand {
    /// List the ports that listen
    List {
        /// Name or id
        sandbox: String,
    },
    /// Let connections to a port of this machine reach one of the sandbox, until Ctrl-C
    Forward {
        /// Name or id
        sandbox: String,
        /// LOCAL:REMOTE, or one number for both; LOCAL 0 takes a free one
        #[arg(required = true, value_parser = units::forward)]
        ports: Vec<Forward>,
        /// Address of this machine to listen on
        #[arg(long, default_value = "127.0.0.1")]
        address: std::net::IpAddr,
    },
    /// Let connections to a port of the sandbox's loopback reach one of this machine, until Ctrl-C
    Reverse {
        /// Name or id
        sandbox: String,
        /// REMOTE:LOCAL, or one number for both; REMOTE 0 takes a free one
        #[arg(required = true, value_parser = units::forward)]
        ports: Vec<Forward>,
    },
}
