//! Flags of `dispense events` and `dispense audit`.

use clap::Args;

#[derive(Args)]
pub(crate) struct EventsArgs {
    /// Show those after this number [default: all that are kept, or, with --follow, those to come]
    #[arg(long, value_name = "SEQ")]
    pub(crate) after: Option<u64>,
    /// Go on with those that come
    #[arg(long, short)]
    pub(crate) follow: bool,
}

#[derive(Args)]
pub(crate) struct AuditArgs {
    /// Show entries after this number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub(crate) after: u64,
    /// Walk the whole chain and say whether every entry is what was written
    #[arg(long)]
    pub(crate) verify: bool,
}
