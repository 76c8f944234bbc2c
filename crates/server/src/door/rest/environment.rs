//! The variables that a sandbox's processes start with.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Answer, Parts, bad_body};
use crate::auth::Principal;
use crate::sandbox::Sandbox;
use crate::sandbox::environment::Change;

#[derive(Serialize, JsonSchema)]
pub(super) struct EnvironmentJson {
    variables: BTreeMap<String, String>,
}

/// What is not named stays as it is.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangeJson {
    /// `null` removes a variable.
    variables: BTreeMap<String, Option<String>>,
}

impl From<Sandbox> for EnvironmentJson {
    fn from(sandbox: Sandbox) -> Self {
        Self { variables: sandbox.spec.env }
    }
}

pub(super) async fn environment(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
) -> Answer<Json<EnvironmentJson>> {
    Ok(Json(parts.sandboxes.seen_by(&caller).get(&id).await?.into()))
}

pub(super) async fn change(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
    body: Result<Json<ChangeJson>, JsonRejection>,
) -> Answer<Json<EnvironmentJson>> {
    let Json(ChangeJson { variables }) = body.map_err(|error| bad_body(&error))?;
    let (mut set, mut unset) = (BTreeMap::new(), Vec::new());
    for (name, value) in variables {
        match value {
            Some(value) => drop(set.insert(name, value)),
            None => unset.push(name),
        }
    }
    let change = Change::parse(set, unset)?;
    Ok(Json(parts.sandboxes.seen_by(&caller).change_environment(&id, change).await?.into()))
}
