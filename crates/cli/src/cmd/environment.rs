//! `dispense env`: the variables that a sandbox's processes start with.

use std::collections::BTreeMap;

use dispense_client::{Error, v1};
use serde::Serialize;

use crate::args::environment::EnvArgs;
use crate::args::{Global, Output};
use crate::endpoint::connect;
use crate::show;

#[derive(Serialize)]
struct EnvironmentJson {
    variables: BTreeMap<String, String>,
}

/// Changes what is to be changed, and shows all that there are.
pub(super) async fn env(global: &Global, args: EnvArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let variables = if args.set.is_empty() && args.unset.is_empty() {
        connected.client.environment(&args.sandbox).await?
    } else {
        let set = args.set.into_iter().collect();
        let request = v1::ChangeEnvironmentRequest { sandbox: args.sandbox, set, unset: args.unset };
        connected.client.change_environment(request).await?
    };
    if global.output == Output::Json {
        show::json(&EnvironmentJson { variables });
        return Ok(0);
    }
    let mut table = show::table(&["NAME", "VALUE"]);
    for (name, value) in variables {
        table.add_row([name, value]);
    }
    show::print(&table);
    Ok(0)
}
