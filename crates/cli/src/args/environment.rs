//! Flags of `dispense env`.

use clap::Args;

use crate::units::{self, Pair};

#[derive(Args)]
pub(crate) struct EnvArgs {
    /// Remove a variable; may be repeated
    #[arg(long, value_name = "K")]
    pub(crate) unset: Vec<String>,
    /// Id or name
    pub(crate) sandbox: String,
    /// Set a variable: K=V, or K with the value that it has here
    #[arg(value_name = "K=V", value_parser = units::variable)]
    pub(crate) set: Vec<Pair>,
}
