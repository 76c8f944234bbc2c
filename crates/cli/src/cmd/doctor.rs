//! `dispense doctor`: what this machine allows and what to change; whether the server can be reached.

use dispense_client::{Client, Error};
use dispense_runner::backend::{Verdict, diagnose};
use serde::Serialize;

use crate::args::{Global, Output};
use crate::endpoint::{Endpoint, data_dir, resolve};
use crate::local::lease;
use crate::show;

#[derive(Serialize)]
struct ReportJson {
    version: &'static str,
    findings: Vec<FindingJson>,
}

#[derive(Serialize)]
struct FindingJson {
    name: String,
    verdict: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    advice: String,
}

/// Looks at everything; the exit code is 1 when something makes sandboxes impossible.
pub(super) async fn doctor(global: &Global) -> Result<u8, Error> {
    let state_dir = data_dir(global)?.join("runner");
    let mut findings: Vec<FindingJson> = diagnose(&state_dir)
        .await
        .into_iter()
        .map(|finding| FindingJson {
            name: finding.name.to_owned(),
            verdict: match finding.verdict {
                Verdict::Good => "good",
                Verdict::Weak => "weak",
                Verdict::Bad => "bad",
            },
            detail: finding.detail,
            advice: finding.advice,
        })
        .collect();
    findings.push(server(global).await);
    let bad = findings.iter().any(|finding| finding.verdict == "bad");
    let report = ReportJson { version: dispense_api::VERSION, findings };
    match global.output {
        Output::Json => show::json(&report),
        Output::Table => {
            crate::show::say!("dispense {}", report.version);
            for finding in &report.findings {
                crate::show::say!("{:<5} {:<18} {}", finding.verdict, finding.name, finding.detail);
                if !finding.advice.is_empty() {
                    crate::show::say!("{:24} → {}", "", finding.advice);
                }
            }
        }
    }
    Ok(u8::from(bad))
}

async fn server(global: &Global) -> FindingJson {
    let finding = |verdict, detail: String, advice: &str| FindingJson {
        name: "server".to_owned(),
        verdict,
        detail,
        advice: advice.to_owned(),
    };
    let (url, client) = match resolve(global) {
        Err(error) => return finding("bad", error.message, "`dispense config show`"),
        Ok(Endpoint::Configured { url, api_key, trust, .. }) => {
            let client = Client::connect_trusting(&url, &api_key, &trust).await;
            (url, client)
        }
        Ok(Endpoint::Local { data_dir }) => match lease::find(&data_dir).await {
            Ok(Some(lease)) => (lease.info.url.clone(), lease.info.connect().await),
            Ok(None) => {
                return finding("good", "none is configured and none runs: `run` starts its own".to_owned(), "");
            }
            Err(error) => return finding("bad", error.message, ""),
        },
    };
    let answered = async { client?.runners().await }.await;
    match answered {
        Ok(runners) => finding("good", format!("{url} answers and has {} runners", runners.len()), ""),
        Err(error) => finding("bad", error.message, "start it, or change the address with `dispense config set url`"),
    }
}
