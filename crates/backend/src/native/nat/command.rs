//! The programs that set networks up: `ip`, `nft` and `nsenter`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A command of a few netlink messages.
const TIMEOUT: Duration = Duration::from_secs(10);
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Where they are looked for, whatever the environment says.
pub(super) const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Which of the programs is not there, and how to get it.
pub(super) fn missing() -> Option<String> {
    let programs = [("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")];
    let missing =
        programs.iter().find(|(program, _)| !FOLDERS.iter().any(|folder| Path::new(folder).join(program).exists()));
    missing
        .map(|(program, package)| format!("network `nat` needs the program `{program}`: install the package {package}"))
}

/// Runs a program with `input`; its first line on stderr when it fails.
pub(super) async fn run(program: &str, args: &[&str], input: &str) -> Result<(), String> {
    let command = async {
        let mut child = Command::new(program)
            .args(args)
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that has failed already reads no more.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    match tokio::time::timeout(TIMEOUT, command).await {
        Err(_) => Err(format!("`{program}` did not end within {} s", TIMEOUT.as_secs())),
        Ok(Err(error)) => Err(format!("`{program}` was not run: {error}")),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(format!("`{program}` said: {}", reason(&output.stderr))),
    }
}

/// The first line that a program said on stderr.
pub(super) fn reason(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.lines().find(|line| !line.is_empty()).unwrap_or("no reason").to_owned()
}
