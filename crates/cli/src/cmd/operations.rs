//! `dispense events` and `dispense audit`: what happened, and who asked for it.

use dispense_client::{Code, Error, v1};
use serde::Serialize;
use std::collections::BTreeMap;

use crate::args::operations::{AuditArgs, EventsArgs};
use crate::args::{Global, Output};
use crate::endpoint::connect;
use crate::show::{self, rfc3339};

/// Entries of one request.
const PAGE_ENTRIES: u32 = 1000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventJson {
    seq: u64,
    at: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    sandbox_id: String,
    group: String,
    data: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EntryJson {
    seq: u64,
    at: Option<String>,
    account: String,
    key_id: String,
    action: String,
    target: String,
    outcome: String,
    request_id: String,
    hash: String,
}

/// Shows events, one a line, so that a program can read them as they come.
pub(super) async fn events(global: &Global, args: EventsArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let request = v1::WatchEventsRequest {
        after: args.after.unwrap_or_default(),
        from_now: args.follow && args.after.is_none(),
        no_follow: !args.follow,
    };
    let mut events = connected.client.events(request).await?;
    while let Some(event) = events.next().await? {
        match global.output {
            Output::Json => {
                let line = EventJson {
                    seq: event.seq,
                    at: event.at.as_ref().map(rfc3339),
                    kind: event.r#type,
                    sandbox_id: event.sandbox_id,
                    group: event.group,
                    data: event.data,
                };
                show::say!("{}", serde_json::to_string(&line).unwrap_or_default());
            }
            Output::Table => {
                let field = |name: &str| event.data.get(name).map(String::as_str).unwrap_or_default();
                let at = event.at.as_ref().map(rfc3339).unwrap_or_default();
                let why = if field("reason").is_empty() { String::new() } else { format!(": {}", field("reason")) };
                show::say!("{:<6} {at} {:<16} {} {}{why}", event.seq, event.r#type, field("name"), field("state"));
            }
        }
    }
    Ok(0)
}

/// Shows the audit log, or walks its chain.
pub(super) async fn audit(global: &Global, args: AuditArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    if args.verify {
        let verdict = connected.client.verify_audit().await?;
        if verdict.broken_at > 0 {
            let message = format!("entry {} of the audit log is not what was written", verdict.broken_at);
            return Err(Error::new(Code::FailedPrecondition, "audit_broken", message));
        }
        show::say!("{} entries are whole; the last has the hash {}", verdict.entries, verdict.last_hash);
        return Ok(0);
    }
    let mut after = args.after;
    loop {
        let page = connected.client.audit(v1::ListAuditRequest { after, page_size: PAGE_ENTRIES }).await?;
        let Some(last) = page.last() else { return Ok(0) };
        after = last.seq;
        for entry in page {
            tell(global, entry);
        }
    }
}

fn tell(global: &Global, entry: v1::AuditEntry) {
    let at = entry.at.as_ref().map(rfc3339);
    match global.output {
        Output::Json => {
            let line = EntryJson {
                seq: entry.seq,
                at,
                account: entry.account,
                key_id: entry.key_id,
                action: entry.action,
                target: entry.target,
                outcome: entry.outcome,
                request_id: entry.request_id,
                hash: entry.hash,
            };
            show::say!("{}", serde_json::to_string(&line).unwrap_or_default());
        }
        Output::Table => show::say!(
            "{:<6} {} {} {} {} {}",
            entry.seq,
            at.unwrap_or_default(),
            entry.key_id,
            entry.action,
            entry.target,
            entry.outcome
        ),
    }
}
