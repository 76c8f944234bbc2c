//! Starts a process that nobody watches, and attaches to it later: its output is read from the beginning.
//!
//! ```sh
//! DISPENSE_URL=http://127.0.0.1:8080 DISPENSE_API_KEY=dsp_… cargo run --example attach -- SANDBOX
//! ```

use bytes::Bytes;
use dispense_client::v1::{AttachProcess, ProcessRef, StartProcess, process_event::Kind};
use dispense_client::{Client, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::from_env().await?;
    let sandbox = std::env::args().nth(1).unwrap_or_else(|| "box".into());
    let script = "echo ready; read answer; echo you said $answer";
    let start = StartProcess { args: ["sh", "-c", script].map(Into::into).into(), stdin: true, ..Default::default() };
    let started = client.start_process(&sandbox, start).await?;
    println!("process {} runs", started.pid);
    let process = Some(ProcessRef::from(&started));
    let mut attached = client.attach(&sandbox, AttachProcess { process, ..Default::default() }).await?;
    attached.input.write(Bytes::from_static(b"hello\n")).await?;
    attached.input.close().await?;
    // A connection that is cut meanwhile comes back by itself, and no byte is missing or twice.
    while let Some(event) = attached.events.next().await? {
        match event.kind {
            Some(Kind::Output(output)) => print!("{}", String::from_utf8_lossy(&output.data)),
            Some(Kind::Exited(exited)) => println!("it ended: {:?}", exited.status),
            _ => {}
        }
    }
    Ok(())
}
