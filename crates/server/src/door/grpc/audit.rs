//! `dispense.v1.AuditService`.

use std::sync::Arc;

use dispense_api::v1;
use dispense_api::v1::audit_service_server::AuditService;
use tonic::{Request, Response, Status};

use crate::audit::Entry;
use crate::door::Parts;
use crate::door::request::page_size;
use crate::sandbox::view::timestamp;

pub(super) struct AuditDoor(pub(super) Arc<Parts>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl AuditService for AuditDoor {
    async fn list_audit(&self, request: Request<v1::ListAuditRequest>) -> Answer<v1::ListAuditResponse> {
        let request = request.into_inner();
        let after = i64::try_from(request.after).unwrap_or(i64::MAX);
        let page = self.0.sandboxes.audit.page(after, page_size(request.page_size)?).await;
        let entries = page.map_err(dispense_api::error::Error::from)?.into_iter().map(wire).collect();
        Ok(Response::new(v1::ListAuditResponse { entries }))
    }

    async fn verify_audit(&self, _request: Request<v1::VerifyAuditRequest>) -> Answer<v1::VerifyAuditResponse> {
        let verdict = self.0.sandboxes.audit.verify().await.map_err(dispense_api::error::Error::from)?;
        Ok(Response::new(v1::VerifyAuditResponse {
            entries: verdict.entries,
            broken_at: verdict.broken_at.map_or(0, number),
            last_hash: verdict.last_hash,
        }))
    }
}

fn wire(entry: Entry) -> v1::AuditEntry {
    let record = entry.record;
    v1::AuditEntry {
        seq: number(entry.seq),
        at: Some(timestamp(record.at)),
        account: record.account,
        key_id: record.key_id,
        action: record.action,
        target: record.target,
        outcome: record.outcome,
        request_id: record.request_id,
        hash: entry.hash,
    }
}

fn number(seq: i64) -> u64 {
    u64::try_from(seq).unwrap_or(0)
}
