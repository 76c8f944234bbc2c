//! The listener and the dispatch of calls.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dispense_api::agent::Call;
use dispense_api::error::{Code, Error, reason};
use dispense_api::method::Method;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::activity::Activity;
use crate::call::{self, Gone, Requests, Responses};
use crate::config::Config;
use crate::port::Waiting;
use crate::process::Processes;
use crate::service::Visits;
use crate::{file, port, process_calls, report};

/// Connections at the same time; each carries one call, or waits for one.
const CONNECTIONS_MAX: usize = 1024;
/// After `accept` failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A connection that has not said what it wants by then is closed.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// And one that is kept, when no other call comes: longer than any server keeps one, so that none is closed while a call
/// is on its way.
const KEPT_TIMEOUT: Duration = Duration::from_secs(120);

/// What every call works with.
#[derive(Debug)]
pub struct Agent {
    pub(crate) config: Arc<Config>,
    pub(crate) processes: Processes,
    pub(crate) sessions: AtomicU32,
    pub(crate) activity: Arc<Activity>,
    /// It is asked to end.
    pub(crate) shutdown: CancellationToken,
    /// Its processes have ended, or their grace has passed.
    pub(crate) over: CancellationToken,
    pub(crate) started: std::time::Instant,
    pub(crate) shutdown_grace_ms: AtomicU32,
    /// Calls of `Shutdown` that wait for their answer.
    pub(crate) shutdown_calls: AtomicU32,
    pub(crate) shutdown_answered: Notify,
    /// Connections that came to listeners.
    pub(crate) waiting: Waiting,
    pub(crate) visits: Visits,
    tasks: TaskTracker,
}

impl Agent {
    /// An agent without a listener: [`serve_connection`] brings calls.
    pub fn new(config: Config) -> Arc<Self> {
        let (config, tasks) = (Arc::new(config), TaskTracker::new());
        let activity = Arc::new(Activity::default());
        let processes = Processes::new(config.clone(), tasks.clone(), activity.clone());
        Arc::new(Self {
            config,
            processes,
            sessions: AtomicU32::new(0),
            activity,
            shutdown: CancellationToken::new(),
            over: CancellationToken::new(),
            started: std::time::Instant::now(),
            shutdown_grace_ms: AtomicU32::new(0),
            shutdown_calls: AtomicU32::new(0),
            shutdown_answered: Notify::new(),
            waiting: Waiting::default(),
            visits: Visits::default(),
            tasks,
        })
    }

    /// Runs a task that ends with the agent.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Waits until those that wait for the end have been answered.
    pub(crate) async fn finish(&self, timeout: Duration) {
        let answered = async {
            while self.shutdown_calls.load(Ordering::Relaxed) > 0 {
                self.shutdown_answered.notified().await;
            }
        };
        // A caller that does not read its answer is not waited for.
        let _ = tokio::time::timeout(timeout, answered).await;
    }
}

/// Serves calls until the agent shuts down.
pub async fn serve(agent: Arc<Agent>, listener: UnixListener) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Some((stream, _)) = accept(&agent, || listener.accept()).await {
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::warn!("{CONNECTIONS_MAX} connections are open: one more was closed");
            continue;
        };
        let gone = gone_check(&stream);
        let call = serve_connection(agent.clone(), stream, gone);
        agent.tasks.spawn(async move {
            call.await;
            drop(slot);
        });
    }
}

/// The next connection of a listener; `None` when the agent ends.
pub(crate) async fn accept<T, F>(agent: &Agent, next: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = io::Result<T>>,
{
    loop {
        let accepted = tokio::select! {
            () = agent.shutdown.cancelled() => return None,
            accepted = next() => accepted,
        };
        match accepted {
            Ok(accepted) => return Some(accepted),
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                // Descriptors or memory ran out: others must end first.
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A hung-up socket tells so whatever is polled for.
fn gone_check(stream: &UnixStream) -> Gone {
    let Ok(fd) = stream.as_fd().try_clone_to_owned() else { return Arc::new(|| false) };
    Arc::new(move || {
        let mut fds = [PollFd::new(&fd, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    })
}

/// Carries calls over one byte stream, one after the other, to its end.
pub async fn serve_connection<S>(agent: Arc<Agent>, stream: S, gone: Arc<dyn Fn() -> bool + Send + Sync>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut requests, mut responses) = call::split(stream, gone);
    let mut patience = CALL_TIMEOUT;
    loop {
        let next = tokio::time::timeout(patience, requests.next::<Call>());
        let call = tokio::select! {
            call = next => call,
            () = agent.over.cancelled() => return,
        };
        responses.begin();
        let call = match call {
            Ok(Ok(Some(call))) => call,
            Ok(Err(error)) => return drop(responses.finish(Err(error), false).await),
            Ok(Ok(None)) | Err(_) => return,
        };
        let kept = call.keep;
        let answered = serve_call(&agent, call, &mut requests, &mut responses).await;
        if let Err(error) = answered {
            return tracing::debug!(%error, "the caller has gone");
        }
        if !kept || !requests.finish().await {
            return;
        }
        patience = KEPT_TIMEOUT;
    }
}

async fn serve_call<S>(
    agent: &Arc<Agent>,
    call: Call,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    requests.trace = call.traceparent;
    let Some(method) = Method::parse(&call.method) else {
        let method: String = call.method.chars().take(100).collect();
        let error = Error::new(Code::Unimplemented, reason::PROTOCOL, format!("this agent has no method `{method}`"));
        return responses.finish(Err(error), call.keep).await;
    };
    // What the runner itself asks for is no session of a user.
    let is_session = !matches!(method, Method::Watch | Method::Shutdown | Method::SetEnvironment);
    let _session = is_session.then(|| Session::open(agent));
    let is_shutdown = method == Method::Shutdown;
    if is_shutdown {
        agent.shutdown_calls.fetch_add(1, Ordering::Relaxed);
    }
    let result = dispatch(agent, method, requests, responses).await;
    if let Err(error) = &result {
        tracing::debug!(method = method.path(), %error, "call refused");
    }
    let answered = responses.finish(result, call.keep).await;
    if is_shutdown {
        agent.shutdown_calls.fetch_sub(1, Ordering::Relaxed);
        agent.shutdown_answered.notify_one();
    }
    answered
}

async fn dispatch<S>(
    agent: &Arc<Agent>,
    method: Method,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    match method {
        Method::StartProcess => process_calls::start(agent, requests, responses).await,
        Method::RunProcess => process_calls::run(agent, requests, responses).await,
        Method::AttachProcess => process_calls::attach(agent, requests, responses).await,
        Method::SignalProcess => process_calls::signal(agent, requests, responses).await,
        Method::ResizeProcess => process_calls::resize(agent, requests, responses).await,
        Method::ListProcesses => process_calls::list(agent, requests, responses).await,
        Method::ReadFile => file::content::read(agent, requests, responses).await,
        Method::WriteFile => file::content::write(agent, requests, responses).await,
        Method::ListDirectory => file::tree::list(agent, requests, responses).await,
        Method::StatFile => file::tree::stat(agent, requests, responses).await,
        Method::MakeDirectory => file::tree::make_directory(agent, requests, responses).await,
        Method::MoveFile => file::tree::rename(agent, requests, responses).await,
        Method::RemoveFile => file::tree::remove(agent, requests, responses).await,
        Method::WatchFiles => file::watch::watch(agent, requests, responses).await,
        Method::UploadArchive => file::transfer::upload(agent, requests, responses).await,
        Method::DownloadArchive => file::transfer::download(agent, requests, responses).await,
        Method::OpenPort => port::open(agent, requests, responses).await,
        Method::ListenPort => port::listen(agent, requests, responses).await,
        Method::ListPorts => port::list(agent, requests, responses).await,
        Method::WatchPorts => port::watch(agent, requests, responses).await,
        Method::Watch => report::watch(agent, requests, responses).await,
        Method::Shutdown => report::shut_down(agent, requests, responses).await,
        Method::SetEnvironment => process_calls::set_environment(agent, requests, responses).await,
    }
}

/// Counts an open call.
struct Session<'a>(&'a Agent);

impl<'a> Session<'a> {
    fn open(agent: &'a Agent) -> Self {
        agent.sessions.fetch_add(1, Ordering::Relaxed);
        Self(agent)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
        self.0.activity.mark();
    }
}
