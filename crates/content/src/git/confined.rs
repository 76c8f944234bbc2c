//! A program that writes below one directory, which has a bound. It has a process group of its own, so that its children end
//! with it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// Between two looks; a tree that takes long to look through is looked at less often.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// At most this share of the time is spent looking.
const LOOK_SHARE: u32 = 10;
/// A file takes this much of a disk at least, its entry counted too: many empty ones are a lot.
const FILE_MIN_BYTES: u64 = 4096;
/// Until what was killed is gone.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// How it ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// By itself; with the end of what it said.
    Itself(ExitStatus, String),
    /// It was ended, since the directory has grown beyond its bound.
    Grown,
}

/// Kills the group with the future that has it.
struct Group(Child);

impl Group {
    fn kill(&self) {
        // INVARIANT: not waited for yet, or it would have no number: nobody else can have it.
        if let Some(pid) = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // One that has ended needs no signal.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a program while what is below `folder` has at most `bytes_max`; of what it says on stderr `said_max` bytes are kept.
///
/// CANCEL SAFETY: dropped half-way, the program and its children are killed.
pub(super) async fn run(mut command: Command, folder: &Path, bytes_max: u64, said_max: usize) -> io::Result<Ended> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut group = Group(command.process_group(0).spawn()?);
    let stderr = group.0.stderr.take().expect("it is piped");
    // All its children have it: it ends with the last of them.
    let mut said = std::pin::pin!(tail(stderr, said_max));
    let said = tokio::select! {
        said = &mut said => said?,
        grown = outgrown(folder, bytes_max) => {
            grown?;
            group.kill();
            // Whoever removes the directory next is not to meet one who writes.
            let _ = tokio::time::timeout(END_TIMEOUT, &mut said).await;
            return Ok(Ended::Grown);
        }
    };
    let status = group.0.wait().await?;
    // The last of it may have come between two looks.
    if size_of(folder.to_owned()).await? > bytes_max {
        return Ok(Ended::Grown);
    }
    Ok(Ended::Itself(status, said))
}

/// The end of what is said.
async fn tail(mut stream: impl AsyncRead + Unpin, max: usize) -> io::Result<String> {
    let (mut said, mut buffer) = (Vec::new(), vec![0; 4096]);
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(String::from_utf8_lossy(&said).trim().replace('\n', "; "));
        }
        said.extend_from_slice(&buffer[..count]);
        said.drain(..said.len().saturating_sub(max));
    }
}

/// Returns when a directory has more than so many bytes.
async fn outgrown(folder: &Path, bytes_max: u64) -> io::Result<()> {
    loop {
        let begun = Instant::now();
        if size_of(folder.to_owned()).await? > bytes_max {
            return Ok(());
        }
        tokio::time::sleep(LOOK_INTERVAL.max(begun.elapsed() * LOOK_SHARE)).await;
    }
}

async fn size_of(folder: PathBuf) -> io::Result<u64> {
    tokio::task::spawn_blocking(move || measure(folder)).await.map_err(io::Error::other)?
}

/// What a tree takes of a disk. What comes and goes meanwhile is passed over.
fn measure(folder: PathBuf) -> io::Result<u64> {
    let passed = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(0) } else { Err(error) };
    let (mut total, mut waiting) = (0, vec![folder]);
    while let Some(folder) = waiting.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                total += passed(error)?;
                continue;
            }
        };
        for entry in entries {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) => {
                    total += passed(error)?;
                    continue;
                }
            };
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
            // Blocks may be given late, or saved: where the tree goes they may all be needed.
            total += metadata.len().max(metadata.blocks() * 512).max(FILE_MIN_BYTES);
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    async fn ran(script: &str, bytes_max: u64) -> (Ended, u64) {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(folder.path());
        let ran = tokio::time::timeout(PATIENCE, run(command, folder.path(), bytes_max, 10)).await;
        (ran.expect("in time").expect("sh is there"), measure(folder.path().to_owned()).expect("ours"))
    }

    #[tokio::test]
    async fn one_that_writes_without_an_end_is_ended_with_its_children() {
        // Its child would write on: that nothing holds stderr any more says that it is gone, too.
        let (ended, size) = ran("while :; do head -c 100000 /dev/zero >> big; done & wait", 4 << 20).await;
        assert!(matches!(ended, Ended::Grown) && size > 4 << 20, "{ended:?}, {size}");
    }

    #[tokio::test]
    async fn files_without_bytes_count() {
        let (ended, _) = ran("i=0; while [ $i -lt 300 ]; do : > $i; i=$((i+1)); done", 1 << 20).await;
        assert!(matches!(ended, Ended::Grown), "{ended:?}");
    }

    #[tokio::test]
    async fn the_end_of_what_it_says_is_kept() {
        let (ended, _) = ran("mkdir -p a/b; echo 0123456789abc >&2; exit 3", 1 << 20).await;
        let Ended::Itself(status, said) = ended else { panic!("{ended:?}") };
        assert_eq!((status.code(), said.as_str()), (Some(3), "456789abc"));
    }
}
