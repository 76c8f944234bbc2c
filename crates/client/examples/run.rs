//! Creates a sandbox, runs a command in it and passes its output on.
//!
//! ```sh
//! DISPENSE_URL=http://127.0.0.1:8080 DISPENSE_API_KEY=dsp_… cargo run --example run -- uname -a
//! ```

use std::io::Write;

use dispense_client::v1::{
    CreateSandboxRequest, OutputStream, StartProcess, process_event::Kind, process_exited::Status,
};
use dispense_client::{Client, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::from_env().await?;
    let sandbox = client.create(CreateSandboxRequest { wait: true, ..Default::default() }).await?;
    let exit_code = run(&client, &sandbox.id, std::env::args().skip(1).collect()).await;
    // Whatever came of it.
    client.delete(&sandbox.id, false, true).await?;
    std::process::exit(i32::try_from(exit_code?).unwrap_or(1));
}

async fn run(client: &Client, sandbox: &str, args: Vec<String>) -> Result<u32, Error> {
    let mut process = client.run(sandbox, StartProcess { args, ..Default::default() }).await?;
    while let Some(event) = process.events.next().await? {
        match event.kind {
            Some(Kind::Output(output)) if output.stream() == OutputStream::Stderr => {
                std::io::stderr().write_all(&output.data).unwrap_or_default();
            }
            Some(Kind::Output(output)) => std::io::stdout().write_all(&output.data).unwrap_or_default(),
            Some(Kind::Exited(exited)) => {
                return Ok(match exited.status {
                    Some(Status::Code(code)) => code,
                    // As shells say it.
                    Some(Status::Signal(signal)) => 128 + signal,
                    None => 1,
                });
            }
            _ => {}
        }
    }
    Ok(1)
}
