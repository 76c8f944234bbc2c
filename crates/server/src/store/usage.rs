//! Rows of usage: the samples of an hour or a day, packed as lists of small numbers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dispense_api::id::SandboxId;
use prost::Message;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::{Readers, StoreError};
use crate::sandbox::usage::{COARSE, FINE, Sample, Tier, merge};

/// The samples of a row: one number a sample in each list.
#[derive(Clone, PartialEq, Message)]
struct Packed {
    /// Steps since the sample before, of the first since the start of the row.
    #[prost(uint32, repeated, tag = "1")]
    steps: Vec<u32>,
    /// Tenths of a percent and one; 0 means unknown.
    #[prost(uint32, repeated, tag = "2")]
    cpu: Vec<u32>,
    /// MiB and one; 0 means unknown.
    #[prost(uint64, repeated, tag = "3")]
    memory: Vec<u64>,
    #[prost(uint32, repeated, tag = "4")]
    sessions: Vec<u32>,
    #[prost(uint32, repeated, tag = "5")]
    reports: Vec<u32>,
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float's conversion saturates")]
fn pack(start: i64, samples: &[Sample], tier: Tier) -> String {
    let mut packed = Packed::default();
    let mut before = start;
    for sample in samples {
        packed.steps.push(u32::try_from((sample.at - before) / tier.step_secs).unwrap_or_default());
        packed.cpu.push(sample.cpu_percent.map_or(0, |percent| (percent * 10.0).round() as u32 + 1));
        packed.memory.push(sample.memory_mb.map_or(0, |mb| mb.saturating_add(1)));
        packed.sessions.push(sample.session_count);
        packed.reports.push(sample.reports);
        before = sample.at;
    }
    STANDARD.encode(packed.encode_to_vec())
}

/// Nothing, of a row that is not what was written.
fn unpack(start: i64, text: &str, tier: Tier) -> Vec<Sample> {
    let packed = STANDARD.decode(text).ok().and_then(|bytes| Packed::decode(&*bytes).ok()).unwrap_or_default();
    let mut at = start;
    let lists = packed.steps.iter().zip(&packed.cpu).zip(&packed.memory).zip(&packed.sessions).zip(&packed.reports);
    let samples = lists.map(|((((steps, cpu), memory), sessions), reports)| {
        at += i64::from(*steps) * tier.step_secs;
        Sample {
            at,
            cpu_percent: cpu.checked_sub(1).map(|tenths| f64::from(tenths) / 10.0),
            memory_mb: memory.checked_sub(1),
            session_count: *sessions,
            reports: *reports,
        }
    });
    samples.collect()
}

/// Adds samples of minutes, in the order of time, to a sandbox's rows.
pub(crate) async fn add(tx: &mut AnyConnection, sandbox: &SandboxId, samples: &[Sample]) -> Result<(), StoreError> {
    let hour = |sample: &Sample| sample.at.div_euclid(FINE.row_secs);
    for samples in samples.chunk_by(|one, other| hour(one) == hour(other)) {
        let start = hour(&samples[0]) * FINE.row_secs;
        let mut fine = get(&mut *tx, sandbox, FINE, start).await?;
        merge(&mut fine, samples, FINE);
        put(&mut *tx, sandbox, FINE, start, &fine).await?;
        // The hour's quarters are made of its minutes each time anew.
        let mut quarters = Vec::new();
        merge(&mut quarters, &fine, COARSE);
        let day = start - start.rem_euclid(COARSE.row_secs);
        let mut coarse = get(&mut *tx, sandbox, COARSE, day).await?;
        coarse.retain(|sample| hour(sample) * FINE.row_secs != start);
        merge(&mut coarse, &quarters, COARSE);
        put(&mut *tx, sandbox, COARSE, day, &coarse).await?;
    }
    Ok(())
}

async fn get(tx: &mut AnyConnection, sandbox: &SandboxId, tier: Tier, start: i64) -> Result<Vec<Sample>, StoreError> {
    let sql = "SELECT samples FROM usage WHERE sandbox_id = $1 AND step_secs = $2 AND start_at = $3";
    let query = sqlx::query(sql).bind(sandbox.to_string()).bind(tier.step_secs).bind(start);
    let row = query.fetch_optional(tx).await?;
    row.map_or(Ok(Vec::new()), |row| Ok(unpack(start, &row.try_get::<String, _>("samples")?, tier)))
}

async fn put(
    tx: &mut AnyConnection,
    sandbox: &SandboxId,
    tier: Tier,
    start: i64,
    samples: &[Sample],
) -> Result<(), StoreError> {
    let sql = "INSERT INTO usage (sandbox_id, step_secs, start_at, samples) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (sandbox_id, step_secs, start_at) DO UPDATE SET samples = excluded.samples";
    let query = sqlx::query(sql).bind(sandbox.to_string()).bind(tier.step_secs).bind(start);
    query.bind(pack(start, samples, tier)).execute(tx).await?;
    Ok(())
}

/// Those of the rows that have something between two times.
pub(crate) async fn range(
    readers: &Readers,
    sandbox: &SandboxId,
    tier: Tier,
    from: i64,
    to: i64,
) -> Result<Vec<Sample>, StoreError> {
    let sql = "SELECT start_at, samples FROM usage \
               WHERE sandbox_id = $1 AND step_secs = $2 AND start_at > $3 AND start_at <= $4 ORDER BY start_at";
    let query = sqlx::query(sql).bind(sandbox.to_string()).bind(tier.step_secs);
    let rows = readers.all(query.bind(from.saturating_sub(tier.row_secs)).bind(to)).await?;
    let samples = |row: &AnyRow| -> Result<Vec<Sample>, StoreError> {
        Ok(unpack(row.try_get("start_at")?, &row.try_get::<String, _>("samples")?, tier))
    };
    Ok(rows.iter().map(samples).collect::<Result<Vec<_>, _>>()?.concat())
}

/// Removes rows that are kept no longer, at most so many. Returns how many.
pub(crate) async fn purge(tx: &mut AnyConnection, now_secs: i64, at_most: i64) -> Result<u64, StoreError> {
    let mut removed = 0;
    for tier in [FINE, COARSE] {
        let before = now_secs - tier.kept_secs - tier.row_secs;
        let sql = "DELETE FROM usage WHERE step_secs = $1 AND (sandbox_id, start_at) IN \
                   (SELECT sandbox_id, start_at FROM usage WHERE step_secs = $1 AND start_at < $2 LIMIT $3)";
        let left = at_most.saturating_sub(i64::try_from(removed).unwrap_or(i64::MAX));
        let query = sqlx::query(sql).bind(tier.step_secs).bind(before).bind(left);
        removed += query.execute(&mut *tx).await?.rows_affected();
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: i64, cpu: f64, memory: u64) -> Sample {
        Sample { at, cpu_percent: Some(cpu), memory_mb: Some(memory), session_count: 1, reports: 2 }
    }

    #[test]
    fn a_row_is_small_and_says_what_was_put_in() {
        let start = 1_700_000_000 - 1_700_000_000 % 3600;
        let hour: Vec<Sample> =
            (0..60).map(|minute| sample(start + 60 * minute, 100.0 + minute as f64 / 2.0, 800)).collect();
        let text = pack(start, &hour, FINE);
        assert!(text.len() < 700, "{} bytes", text.len());
        assert_eq!(unpack(start, &text, FINE), hour);
        let unknown = [Sample { cpu_percent: None, memory_mb: None, ..hour[7] }];
        assert_eq!(unpack(start, &pack(start, &unknown, FINE), FINE), unknown);
        assert!(unpack(start, "what is this", FINE).is_empty());
    }

    #[tokio::test]
    async fn minutes_become_quarters_whenever_they_come() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = super::super::Store::in_folder(dir.path()).await;
        let id = SandboxId::random();
        let hour = 1_700_000_000 - 1_700_000_000 % 3600;
        // Over the hour's end, and a second time for the same minute, as after a restart.
        for part in [
            vec![sample(hour, 10.0, 5), sample(hour + 3600, 1.0, 1)],
            vec![sample(hour, 30.0, 9), sample(hour + 60, 50.0, 7)],
        ] {
            let id = id.clone();
            let write = store.write(move |tx| {
                let (id, part) = (id.clone(), part.clone());
                Box::pin(async move { add(tx, &id, &part).await })
            });
            write.await.expect("written");
        }
        let fine = range(store.readers(), &id, FINE, hour, hour + 7200).await.expect("read");
        let short: Vec<_> =
            fine.iter().map(|one| (one.at - hour, one.cpu_percent, one.memory_mb, one.reports)).collect();
        assert_eq!(short, [(0, Some(20.0), Some(9), 4), (60, Some(50.0), Some(7), 2), (3600, Some(1.0), Some(1), 2)]);
        let coarse = range(store.readers(), &id, COARSE, hour, hour + 7200).await.expect("read");
        let short: Vec<_> =
            coarse.iter().map(|one| (one.at - hour, one.cpu_percent, one.memory_mb, one.reports)).collect();
        assert_eq!(short, [(0, Some(30.0), Some(9), 6), (3600, Some(1.0), Some(1), 2)]);
        let later = hour + FINE.kept_secs + 2 * FINE.row_secs;
        store.write(move |tx| Box::pin(async move { purge(tx, later, 1_000).await })).await.expect("purged");
        assert_eq!(range(store.readers(), &id, FINE, hour, hour + 7200).await.expect("read").len(), 1);
        assert_eq!(range(store.readers(), &id, COARSE, hour, hour + 7200).await.expect("read").len(), 2);
        store.close().await;
    }
}
