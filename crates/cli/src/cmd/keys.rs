//! `dispense key`: who may call.

use dispense_client::{Error, v1};
use serde::Serialize;

use crate::args::keys::{KeyArgs, KeyCommand, KeyCreateArgs, RoleArg};
use crate::args::{Global, Output};
use crate::endpoint::connect;
use crate::show::{self, age, rfc3339};

#[derive(Serialize)]
struct ListJson {
    keys: Vec<KeyJson>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeyJson {
    id: String,
    name: String,
    prefix: String,
    role: &'static str,
    group: String,
    sandbox_ids: Vec<String>,
    account: String,
    created_at: Option<String>,
    expires_at: Option<String>,
    revoked_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

/// Makes, lists, replaces and ends keys.
pub(super) async fn key(global: &Global, args: KeyArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let client = &connected.client;
    match args.command {
        KeyCommand::Create(args) => issued(global, client.create_key(request(args)).await?),
        KeyCommand::Rotate { key, overlap } => {
            let overlap_secs = overlap.map(|overlap| overlap.as_secs());
            issued(global, client.rotate_key(v1::RotateKeyRequest { key, overlap_secs }).await?);
        }
        KeyCommand::Revoke { key } => {
            let key = client.revoke_key(&key).await?;
            match global.output {
                Output::Json => show::json(&json(key, None)),
                Output::Table => show::say!("{} {} revoked", key.name, key.prefix),
            }
        }
        KeyCommand::List { all } => {
            let keys = client.keys(all).await?;
            match global.output {
                Output::Json => show::json(&ListJson { keys: keys.into_iter().map(|key| json(key, None)).collect() }),
                Output::Table => table(keys),
            }
        }
    }
    Ok(0)
}

fn request(args: KeyCreateArgs) -> v1::CreateKeyRequest {
    let role = match args.role {
        RoleArg::Viewer => v1::Role::Viewer,
        RoleArg::Member => v1::Role::Member,
        RoleArg::Admin => v1::Role::Admin,
    };
    v1::CreateKeyRequest {
        name: args.name,
        role: role.into(),
        group: args.group.unwrap_or_default(),
        sandbox_ids: args.sandbox,
        expires_in_secs: args.expires.map_or(0, |time| time.as_secs().max(1)),
        e2b: args.e2b,
    }
}

/// The secret alone on stdout, so that `KEY=$(dispense key create …)` works.
fn issued(global: &Global, issued: v1::IssuedKey) {
    let key = issued.key.unwrap_or_default();
    match global.output {
        Output::Json => show::json(&json(key, Some(issued.secret))),
        Output::Table => {
            eprintln!("dispense: key `{}` ({}), shown once:", key.name, role(key.role()));
            show::say!("{}", issued.secret);
        }
    }
}

fn table(keys: Vec<v1::Key>) {
    let mut table = show::table(&["NAME", "PREFIX", "ROLE", "REACHES", "AGE", "ENDS", "ID"]);
    for key in keys {
        let reaches = match (key.group.as_str(), key.sandbox_ids.len()) {
            ("", 0) => "everything".to_owned(),
            ("", 1) => key.sandbox_ids[0].clone(),
            ("", count) => format!("{count} sandboxes"),
            (group, _) => format!("group {group}"),
        };
        let ends = match (&key.revoked_at, &key.expires_at) {
            (Some(_), _) => "revoked".to_owned(),
            (None, Some(at)) => rfc3339(at),
            (None, None) => "never".to_owned(),
        };
        let role = role(key.role()).to_owned();
        let age = key.created_at.as_ref().map(age).unwrap_or_default();
        table.add_row([key.name, key.prefix, role, reaches, age, ends, key.id]);
    }
    show::print(&table);
}

fn json(key: v1::Key, secret: Option<String>) -> KeyJson {
    KeyJson {
        role: role(key.role()),
        created_at: key.created_at.as_ref().map(rfc3339),
        expires_at: key.expires_at.as_ref().map(rfc3339),
        revoked_at: key.revoked_at.as_ref().map(rfc3339),
        id: key.id,
        name: key.name,
        prefix: key.prefix,
        group: key.group,
        sandbox_ids: key.sandbox_ids,
        account: key.account,
        secret,
    }
}

fn role(role: v1::Role) -> &'static str {
    match role {
        v1::Role::Unspecified => "unknown",
        v1::Role::Viewer => "viewer",
        v1::Role::Member => "member",
        v1::Role::Admin => "admin",
    }
}
