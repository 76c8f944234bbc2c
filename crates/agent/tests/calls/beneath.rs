//! Paths that may not leave a directory, while somebody swaps links in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use dispense_api::frame::Frame;
use dispense_api::method::Method;
use dispense_api::v1;
use prost::Message;
use tokio::io::AsyncWriteExt;

use crate::harness::Sandbox;

/// Calls while the links are swapped: thousands of swaps fall between them.
const CALLS: usize = 300;

/// `workspace` with a file and a directory, beside `outside` with a secret; and somebody who swaps `workspace/swapped`
/// and `workspace/folder` for links that lead outside, and back, as fast as it goes.
struct Swapping {
    root: PathBuf,
    stop: Arc<AtomicBool>,
    swapper: Option<std::thread::JoinHandle<()>>,
}

impl Swapping {
    fn start(base: &Path) -> Self {
        let (root, outside) = (base.join("workspace"), base.join("outside"));
        for folder in [root.join("folder"), outside.clone()] {
            std::fs::create_dir_all(folder).expect("writable");
        }
        std::fs::write(outside.join("secret"), "secret").expect("writable");
        std::fs::write(root.join("swapped"), "inside").expect("writable");
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, place) = (stop.clone(), root.clone());
        let swapper = std::thread::spawn(move || {
            // Each is prepared beside and put in place by one rename, so that there is always one or the other.
            while !ended.load(Ordering::Relaxed) {
                std::fs::write(place.join("plain"), "inside").expect("writable");
                std::os::unix::fs::symlink(outside.join("secret"), place.join("link")).expect("fresh");
                std::fs::rename(place.join("link"), place.join("swapped")).expect("ours");
                std::os::unix::fs::symlink(&outside, place.join("away")).expect("fresh");
                std::fs::rename(place.join("folder"), place.join("kept")).expect("ours");
                std::fs::rename(place.join("away"), place.join("folder")).expect("ours");
                std::fs::remove_file(place.join("folder")).expect("ours");
                std::fs::rename(place.join("kept"), place.join("folder")).expect("ours");
                std::fs::rename(place.join("plain"), place.join("swapped")).expect("ours");
            }
        });
        Self { root, stop, swapper: Some(swapper) }
    }

    fn beneath(&self) -> String {
        self.root.display().to_string()
    }
}

impl Drop for Swapping {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(swapper) = self.swapper.take() {
            // Its panic is a test's own mistake.
            swapper.join().expect("the swapper has no reason to fail");
        }
    }
}

/// Content of a file, or the code of the refusal.
async fn read(sandbox: &Sandbox, path: &str, beneath: &str) -> Result<Vec<u8>, String> {
    let mut call = sandbox.call(Method::ReadFile);
    let (path, beneath) = (path.to_owned(), beneath.to_owned());
    call.send(&v1::ReadFileRequest { path, beneath, ..Default::default() }).await;
    let mut content = Vec::new();
    loop {
        match call.next().await {
            Frame::Message(bytes) => match v1::ReadFileResponse::decode(bytes).expect("a response").kind {
                Some(v1::read_file_response::Kind::Data(data)) => content.extend_from_slice(&data),
                Some(v1::read_file_response::Kind::File(_)) | None => {}
            },
            Frame::Status(status) if status.code.is_empty() => return Ok(content),
            Frame::Status(status) => return Err(status.code),
            Frame::End => panic!("an answer has no end of requests"),
        }
    }
}

async fn write(sandbox: &Sandbox, path: &str, beneath: &str) -> Result<(), String> {
    let mut call = sandbox.call(Method::WriteFile);
    let request = |kind| v1::WriteFileRequest { sandbox: String::new(), kind: Some(kind) };
    let open = v1::WriteFile { path: path.to_owned(), beneath: beneath.to_owned(), ..Default::default() };
    call.send(&request(v1::write_file_request::Kind::Open(open))).await;
    call.send(&request(v1::write_file_request::Kind::Data(Bytes::from_static(b"written")))).await;
    // A refusal may have closed the stream already.
    let _ = call.stream.shutdown().await;
    loop {
        match call.next().await {
            Frame::Message(_) => {}
            Frame::Status(status) if status.code.is_empty() => return Ok(()),
            Frame::Status(status) => return Err(status.code),
            Frame::End => panic!("an answer has no end of requests"),
        }
    }
}

#[tokio::test]
async fn a_link_that_is_swapped_in_leads_nowhere() {
    let sandbox = Sandbox::new();
    let outside = sandbox.path().join("outside");
    let swapping = Swapping::start(sandbox.path());
    let beneath = swapping.beneath();
    let (mut inside, mut refused, mut written) = (0, 0, 0);
    for _ in 0..CALLS {
        match read(&sandbox, "swapped", &beneath).await {
            Ok(content) => {
                // A file that is being written is empty for a moment.
                assert!(content == b"inside" || content.is_empty(), "a file outside was read");
                inside += 1;
            }
            Err(_) => refused += 1,
        }
        written += usize::from(write(&sandbox, "folder/file", &beneath).await.is_ok());
    }
    drop(swapping);
    let names: Vec<_> =
        std::fs::read_dir(&outside).expect("ours").map(|entry| entry.expect("ours").file_name()).collect();
    assert_eq!(names, ["secret"], "nothing was written outside");
    assert_eq!(std::fs::read(outside.join("secret")).expect("ours"), b"secret");
    assert!(
        inside > 0 && written > 0,
        "the allowed neighbours work: {inside} read, {refused} refused, {written} written"
    );
}

#[tokio::test]
async fn what_leads_out_is_refused_and_what_stays_is_followed() {
    let sandbox = Sandbox::new();
    let root = sandbox.path().join("workspace");
    std::fs::create_dir_all(root.join("sub")).expect("writable");
    std::fs::write(root.join("sub/file"), "inside").expect("writable");
    std::fs::write(sandbox.path().join("secret"), "secret").expect("writable");
    std::os::unix::fs::symlink("sub/file", root.join("near")).expect("fresh");
    std::os::unix::fs::symlink("../secret", root.join("far")).expect("fresh");
    std::os::unix::fs::symlink("/proc/self/root", root.join("magic")).expect("fresh");
    let beneath = root.display().to_string();
    let secret = sandbox.path().join("secret").display().to_string();
    for path in ["../secret", "sub/../../secret", "far", &secret, "magic/etc/passwd"] {
        assert_eq!(read(&sandbox, path, &beneath).await, Err("permission_denied".to_owned()), "{path}");
        assert_eq!(write(&sandbox, path, &beneath).await, Err("permission_denied".to_owned()), "{path}");
    }
    assert_eq!(read(&sandbox, "near", &beneath).await.as_deref(), Ok(&b"inside"[..]));
    assert_eq!(write(&sandbox, "near", &beneath).await, Ok(()));
    assert_eq!(std::fs::read(root.join("sub/file")).expect("there"), b"written", "the target of a link is written");
    assert!(root.join("near").is_symlink());
    assert_eq!(read(&sandbox, "nothing", &beneath).await, Err("not_found".to_owned()));
}

/// The kernel asks to try again when something is renamed while it resolves a `..`.
#[tokio::test]
async fn what_is_renamed_meanwhile_disturbs_nobody_else() {
    let sandbox = Sandbox::new();
    let swapping = Swapping::start(sandbox.path());
    std::fs::create_dir(swapping.root.join("still")).expect("writable");
    std::fs::write(swapping.root.join("steady"), "inside").expect("writable");
    let path = format!("{}steady", "still/../".repeat(100));
    for _ in 0..CALLS {
        assert_eq!(read(&sandbox, &path, &swapping.beneath()).await.as_deref(), Ok(&b"inside"[..]));
    }
}
