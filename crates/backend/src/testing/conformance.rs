//! What every backend must do. A backend passes when [`check`] returns.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use dispense_api::agent::{ShutdownRequest, WatchRequest, WatchResponse, watch_response};
use dispense_api::error::reason;
use dispense_api::frame::{self, Decoder, Frame};
use dispense_api::id::{Generation, SandboxId};
use dispense_api::method::Method;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{Backend, BackendError, BoxSpec, BoxState, ByteStream, Limits, Network};

/// Every step is local and takes milliseconds; a loaded machine takes its time.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// Boxes at the same time.
const MANY: usize = 8;

/// Runs the suite. `open` opens the backend on the same machine again each time, as a runner does when it
/// starts; the one before is closed first.
pub async fn check<F>(open: impl Fn() -> F)
where
    F: Future<Output = Arc<dyn Backend>>,
{
    let backend = open().await;
    validates_before_it_makes(&*backend).await;
    lives_and_stops(&*backend).await;
    is_idempotent(&*backend).await;
    tells_of_what_is_not_there(&*backend).await;
    notices_the_end_of_the_agent(&*backend).await;
    many_at_once(&backend).await;
    survives_its_runner(backend, open).await;
}

/// A spec of a new sandbox that every backend takes.
pub fn spec() -> BoxSpec {
    BoxSpec {
        sandbox: SandboxId::random(),
        generation: Generation(1),
        template: "host".to_owned(),
        limits: Limits { cpu_millis: 1000, memory_bytes: 128 << 20, disk_bytes: 0, pids: 256 },
        require_limits: false,
        network: Network::None,
        hostname: "conformance".to_owned(),
        env: BTreeMap::new(),
    }
}

async fn within<T>(what: &str, step: impl Future<Output = T>) -> T {
    match tokio::time::timeout(STEP_TIMEOUT, step).await {
        Ok(value) => value,
        Err(_) => panic!("{what} took longer than {STEP_TIMEOUT:?}"),
    }
}

async fn state(backend: &dyn Backend, sandbox: &SandboxId) -> Option<BoxState> {
    let list = within("list", backend.list()).await.expect("list");
    list.into_iter().find(|report| report.sandbox == *sandbox).map(|report| report.state)
}

async fn made(backend: &dyn Backend) -> BoxSpec {
    let spec = spec();
    within("create", backend.create(&spec)).await.expect("create");
    spec
}

async fn started(backend: &dyn Backend) -> BoxSpec {
    let spec = made(backend).await;
    within("start", backend.start(&spec.sandbox)).await.expect("start");
    spec
}

async fn call(
    backend: &dyn Backend,
    sandbox: &SandboxId,
    method: Method,
    request: &impl Message,
) -> Box<dyn ByteStream> {
    let mut stream = within("dial", backend.dial(sandbox)).await.expect("dial");
    let mut bytes = BytesMut::new();
    frame::encode_call(method.path(), &mut bytes);
    frame::encode(request, &mut bytes);
    stream.write_all(&bytes).await.expect("a fresh stream takes a call");
    stream.flush().await.expect("a fresh stream takes a call");
    stream
}

/// Which sandbox the agent at the other end says it is in.
async fn hello(backend: &dyn Backend, sandbox: &SandboxId) {
    let mut stream = call(backend, sandbox, Method::Watch, &WatchRequest::default()).await;
    let decoder = Decoder::new(64 << 10);
    let mut buffer = BytesMut::new();
    let frame = within("hello", async {
        loop {
            if let Some(frame) = decoder.decode(&mut buffer).expect("a frame") {
                return frame;
            }
            assert_ne!(stream.read_buf(&mut buffer).await.expect("a stream"), 0, "the agent closed the stream");
        }
    });
    let Frame::Message(bytes) = frame.await else { panic!("the agent refused to be watched") };
    let message = WatchResponse::decode(bytes).expect("a WatchResponse");
    assert!(matches!(message.kind, Some(watch_response::Kind::Hello(_))), "{message:?}");
}

async fn gone(backend: &dyn Backend, spec: &BoxSpec) {
    within("destroy", backend.destroy(&spec.sandbox)).await.expect("destroy");
    assert_eq!(state(backend, &spec.sandbox).await, None, "nothing is left of a destroyed box");
}

async fn validates_before_it_makes(backend: &dyn Backend) {
    let wrong = BoxSpec { template: "no-such-template".to_owned(), ..spec() };
    match within("create", backend.create(&wrong)).await {
        Err(BackendError::Refused { reason: reason::TEMPLATE_UNKNOWN, message }) => {
            assert!(message.contains("no-such-template") && message.contains("host"), "{message}");
        }
        other => panic!("an unknown template is refused by name, not {other:?}"),
    }
    assert_eq!(state(backend, &wrong.sandbox).await, None, "a refused create leaves nothing");
}

async fn lives_and_stops(backend: &dyn Backend) {
    let spec = made(backend).await;
    assert_eq!(state(backend, &spec.sandbox).await, Some(BoxState::Stopped));
    within("start", backend.start(&spec.sandbox)).await.expect("start");
    assert_eq!(state(backend, &spec.sandbox).await, Some(BoxState::Running));
    hello(backend, &spec.sandbox).await;
    within("stop", backend.stop(&spec.sandbox)).await.expect("stop");
    assert_eq!(state(backend, &spec.sandbox).await, Some(BoxState::Stopped));
    assert!(matches!(backend.dial(&spec.sandbox).await, Err(BackendError::NotRunning(_))));
    within("start again", backend.start(&spec.sandbox)).await.expect("start");
    hello(backend, &spec.sandbox).await;
    gone(backend, &spec).await;
}

async fn is_idempotent(backend: &dyn Backend) {
    let spec = made(backend).await;
    within("create twice", backend.create(&spec)).await.expect("create");
    let newer = BoxSpec { generation: Generation(2), ..spec.clone() };
    assert!(
        matches!(backend.create(&newer).await, Err(BackendError::Exists(_, Generation(1)))),
        "a box of another generation is not replaced"
    );
    within("stop one that never ran", backend.stop(&spec.sandbox)).await.expect("stop");
    for _ in 0..2 {
        within("start twice", backend.start(&spec.sandbox)).await.expect("start");
    }
    hello(backend, &spec.sandbox).await;
    for _ in 0..2 {
        within("stop twice", backend.stop(&spec.sandbox)).await.expect("stop");
    }
    gone(backend, &spec).await;
    within("destroy twice", backend.destroy(&spec.sandbox)).await.expect("destroy");
}

async fn tells_of_what_is_not_there(backend: &dyn Backend) {
    let nobody = SandboxId::random();
    assert!(matches!(backend.start(&nobody).await, Err(BackendError::Unknown(_))));
    assert!(matches!(backend.stop(&nobody).await, Err(BackendError::Unknown(_))));
    assert!(matches!(backend.dial(&nobody).await, Err(BackendError::Unknown(_))));
    assert!(matches!(backend.wait(&nobody).await, Err(BackendError::Unknown(_))));
    assert!(matches!(backend.adopt(&nobody).await, Err(BackendError::Unknown(_))));
}

async fn notices_the_end_of_the_agent(backend: &dyn Backend) {
    let spec = made(backend).await;
    within("wait for one that does not run", backend.wait(&spec.sandbox)).await.expect("wait");
    within("start", backend.start(&spec.sandbox)).await.expect("start");
    hello(backend, &spec.sandbox).await;
    let mut stream = call(backend, &spec.sandbox, Method::Shutdown, &ShutdownRequest::default()).await;
    let exit = within("wait", backend.wait(&spec.sandbox)).await.expect("wait");
    assert!(!exit.out_of_memory, "it ended because it was asked to");
    let mut rest = Vec::new();
    // The stream of a box that ended ends, well or badly.
    let _ = within("the end of the stream", stream.read_to_end(&mut rest)).await;
    within("stop after the end", backend.stop(&spec.sandbox)).await.expect("stop");
    assert_eq!(state(backend, &spec.sandbox).await, Some(BoxState::Stopped));
    gone(backend, &spec).await;
}

async fn many_at_once(backend: &Arc<dyn Backend>) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..MANY {
        let backend = backend.clone();
        tasks.spawn(async move {
            let spec = started(&*backend).await;
            hello(&*backend, &spec.sandbox).await;
            gone(&*backend, &spec).await;
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.expect("boxes do not disturb each other");
    }
}

async fn survives_its_runner<F>(backend: Arc<dyn Backend>, open: impl Fn() -> F)
where
    F: Future<Output = Arc<dyn Backend>>,
{
    let (running, stopped) = (started(&*backend).await, made(&*backend).await);
    hello(&*backend, &running.sandbox).await;
    within("close", backend.close()).await;
    drop(backend);
    let backend = open().await;
    assert_eq!(state(&*backend, &running.sandbox).await, Some(BoxState::Running), "boxes outlive their runner");
    assert_eq!(state(&*backend, &stopped.sandbox).await, Some(BoxState::Stopped));
    within("adopt", backend.adopt(&running.sandbox)).await.expect("adopt");
    hello(&*backend, &running.sandbox).await;
    within("create once more", backend.create(&running)).await.expect("the same spec is the same box");
    let waiting = {
        let (backend, sandbox) = (backend.clone(), running.sandbox.clone());
        tokio::spawn(async move { backend.wait(&sandbox).await })
    };
    within("stop an adopted one", backend.stop(&running.sandbox)).await.expect("stop");
    within("wait for an adopted one", waiting).await.expect("no panic").expect("wait");
    gone(&*backend, &running).await;
    gone(&*backend, &stopped).await;
    within("close", backend.close()).await;
}
