//! Writes a file into a sandbox, reads a part of it, and lists its directory.
//!
//! ```sh
//! DISPENSE_URL=http://127.0.0.1:8080 DISPENSE_API_KEY=dsp_… cargo run --example files -- SANDBOX
//! ```

use bytes::Bytes;
use dispense_client::v1::WriteFile;
use dispense_client::{Client, Error};

const PATH: &str = "/workspace/numbers.txt";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::from_env().await?;
    let sandbox = std::env::args().nth(1).unwrap_or_else(|| "box".into());
    // In pieces of any size; the file appears whole or not at all.
    let upload = client.write_file(&sandbox, WriteFile { path: PATH.into(), ..Default::default() });
    for number in 1..=1000 {
        upload.write(Bytes::from(format!("{number}\n"))).await?;
    }
    let file = upload.finish().await?;
    println!("{} has {} bytes", file.path, file.size);
    let (offset, length) = (8, 6);
    let mut download = client.read_file(&sandbox, PATH, offset, length).await?;
    while let Some(data) = download.next().await? {
        print!("{}", String::from_utf8_lossy(&data));
    }
    for file in client.list_directory(&sandbox, "/workspace", 1).await? {
        println!("{}", file.path);
    }
    Ok(())
}
