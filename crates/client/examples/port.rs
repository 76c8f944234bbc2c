//! Speaks to a server that listens inside a sandbox, over a byte stream.
//!
//! ```sh
//! DISPENSE_URL=http://127.0.0.1:8080 DISPENSE_API_KEY=dsp_… cargo run --example port -- SANDBOX
//! ```

use bytes::Bytes;
use dispense_client::v1::StartProcess;
use dispense_client::v1::port_event::Kind;
use dispense_client::{Client, Error, PortStream};
use tokio_stream::StreamExt;

const PORT: u16 = 8000;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::from_env().await?;
    let sandbox = std::env::args().nth(1).unwrap_or_else(|| "box".into());
    let mut ports = client.watch_ports(&sandbox).await?;
    let args = ["python3", "-m", "http.server", "8000", "--bind", "127.0.0.1"].map(Into::into).into();
    let server = client.start_process(&sandbox, StartProcess { args, ..Default::default() }).await?;
    while let Some(change) = ports.next().await {
        if let Some(Kind::Opened(port)) = change?.kind
            && port.port == u32::from(PORT)
        {
            break;
        }
    }
    let PortStream { writer, mut reader } = client.open_port(&sandbox, PORT).await?;
    writer.write(Bytes::from_static(b"GET / HTTP/1.0\r\n\r\n")).await?;
    let mut answer = Vec::new();
    while let Some(data) = reader.next().await? {
        answer.extend_from_slice(&data);
    }
    println!("{}", String::from_utf8_lossy(&answer).lines().next().unwrap_or_default());
    client.signal(&sandbox, server.pid, 15).await?;
    Ok(())
}
