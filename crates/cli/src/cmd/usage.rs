//! `dispense usage`: what a sandbox used over time.

use std::time::SystemTime;

use dispense_client::{Error, v1};
use serde::Serialize;

use crate::args::{Global, Output, UsageArgs};
use crate::endpoint::connect;
use crate::show::{self, rfc3339};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UsageJson {
    step_secs: u32,
    samples: Vec<SampleJson>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SampleJson {
    at: Option<String>,
    cpu_percent: Option<f64>,
    #[serde(rename = "memoryMB")]
    memory_mb: Option<u64>,
    session_count: u32,
}

impl From<v1::UsageSample> for SampleJson {
    fn from(sample: v1::UsageSample) -> Self {
        Self {
            at: sample.at.as_ref().map(rfc3339),
            cpu_percent: sample.cpu_percent,
            memory_mb: sample.memory_mb,
            session_count: sample.session_count,
        }
    }
}

/// Shows the samples, oldest first.
pub(super) async fn usage(global: &Global, args: UsageArgs) -> Result<u8, Error> {
    let connected = connect(global).await?;
    let from = SystemTime::now().checked_sub(args.since);
    let usage = connected.client.usage(&args.sandbox, from, None).await?;
    let samples: Vec<SampleJson> = usage.samples.into_iter().map(Into::into).collect();
    if global.output == Output::Json {
        show::json(&UsageJson { step_secs: usage.step_secs, samples });
        return Ok(0);
    }
    let mut table = show::table(&["TIME", "CPU %", "MEMORY MB", "SESSIONS"]);
    for sample in samples {
        let cpu = sample.cpu_percent.map(|percent| format!("{percent:.1}")).unwrap_or_default();
        let memory = sample.memory_mb.map(|mb| mb.to_string()).unwrap_or_default();
        table.add_row([sample.at.unwrap_or_default(), cpu, memory, sample.session_count.to_string()]);
    }
    show::print(&table);
    Ok(0)
}
