//! What an error tells: a code to decide by, a reason that stays the same, and a sentence for a person.
//!
//! ```sh
//! DISPENSE_URL=http://127.0.0.1:8080 DISPENSE_API_KEY=dsp_… cargo run --example errors
//! ```

use dispense_client::v1::CreateSandboxRequest;
use dispense_client::{Client, Code, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::from_env().await?;
    match client.get("no-such-sandbox").await {
        Err(error) if error.code == Code::NotFound => println!("{}: {error}", error.reason),
        other => println!("unexpected: {other:?}"),
    }
    let refused = client.create(CreateSandboxRequest { name: "Not a name!".into(), ..Default::default() }).await;
    if let Err(error) = refused {
        println!("{:?}: {error}", error.code);
    }
    Ok(())
}
