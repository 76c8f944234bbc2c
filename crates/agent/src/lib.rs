//! The agent: the first process of every sandbox. It reaps, starts processes, and serves files and ports, over
//! one listening socket that it inherits; each connection is one call.
//!
//! It knows no runner, server or backend. It runs inside the sandbox, so it keeps no secret from it but the
//! token of its own heartbeats.

mod activity;
mod call;
mod config;
mod file;
mod port;
mod process;
mod process_calls;
mod reaper;
mod report;
mod serve;
mod service;
mod sftp;
mod sys;
mod usage;
mod user;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

pub use config::Config;
pub use serve::{Agent, serve, serve_connection};
pub use service::serve_inside;

/// Reaps the children of this process for as long as it is polled; [`run`] does so by itself.
pub async fn reap() {
    let error = reaper::run().await;
    tracing::error!(%error, "children are not reaped any more");
}

/// The descriptor of the listening socket when `AGENT_LISTEN_FD` says nothing.
const LISTEN_FD_DEFAULT: i32 = 3;
/// Between SIGTERM and SIGKILL when the agent itself is asked to end by a signal.
const SIGNAL_GRACE_MS: u32 = 5000;
/// The last calls are answered within this time.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_millis(500);
/// Between looks whether processes are left during the grace.
const SHUTDOWN_POLL: Duration = Duration::from_millis(20);

/// Serves SFTP on stdin and stdout, where that is the name that this program was started by.
pub fn serve_sftp(mut args: impl Iterator<Item = std::ffi::OsString>) -> Option<ExitCode> {
    args.next().filter(|name| name == sftp::COMMAND)?;
    Some(match sftp::serve(io::stdin().lock(), io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", sftp::COMMAND);
            ExitCode::FAILURE
        }
    })
}

/// The configuration, out of the environment. The token is taken away from there: whoever may read files may not send
/// heartbeats. Only while there is one thread.
pub fn take_config() -> Config {
    let config = Config::from_env(std::env::vars_os());
    sys::blot_out(config::TOKEN);
    config
}

/// The listening socket: `AGENT_LISTEN` is a path to bind, `AGENT_LISTEN_FD` an inherited descriptor.
pub fn listener() -> io::Result<StdListener> {
    if let Some(path) = std::env::var_os("AGENT_LISTEN") {
        return StdListener::bind(path);
    }
    let number = std::env::var("AGENT_LISTEN_FD").ok().and_then(|text| text.parse().ok()).unwrap_or(LISTEN_FD_DEFAULT);
    let missing = || io::Error::other(format!("descriptor {number} is not open: set AGENT_LISTEN_FD or AGENT_LISTEN"));
    let fd: OwnedFd = sys::inherited(number).ok_or_else(missing)?;
    Ok(StdListener::from(fd))
}

/// Runs the agent until it is asked to end.
pub async fn run(config: Config, listener: StdListener) -> io::Result<()> {
    if let Err(error) = std::fs::create_dir_all(&config.workdir) {
        tracing::warn!(path = %config.workdir.display(), %error, "working directory cannot be made");
    }
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let agent = Agent::new(config);
    let mut heartbeats = tokio::task::JoinSet::new();
    heartbeats.spawn(report::beat(agent.clone()));
    serve_inside(agent.clone()).await;
    tokio::select! {
        error = reaper::run() => return Err(error),
        () = serve(agent.clone(), listener) => {}
        _ = terminate.recv() => {
            agent.shutdown_grace_ms.store(SIGNAL_GRACE_MS, Ordering::Relaxed);
            agent.shutdown.cancel();
        }
    }
    tokio::select! {
        error = reaper::run() => return Err(error),
        () = end_processes(&agent) => {}
    }
    agent.over.cancel();
    agent.finish(LAST_ANSWERS_TIMEOUT).await;
    while heartbeats.join_next().await.is_some() {}
    Ok(())
}

/// Asks every process of the sandbox to end, then kills what is left. Only as the first process: elsewhere it
/// would reach processes that are not the sandbox's.
async fn end_processes(agent: &Arc<Agent>) {
    if std::process::id() != 1 {
        return;
    }
    let everybody = rustix::process::Pid::INIT;
    let grace = Duration::from_millis(agent.shutdown_grace_ms.load(Ordering::Relaxed).into());
    let deadline = tokio::time::Instant::now() + grace;
    for pid in others() {
        if let Some(pid) = rustix::process::Pid::from_raw(pid).filter(|pid| *pid != everybody) {
            // One that ended meanwhile needs no signal.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
    while tokio::time::Instant::now() < deadline && !others().is_empty() {
        tokio::time::sleep(SHUTDOWN_POLL).await;
    }
    // The kernel kills what is left when the first process ends.
    agent.processes.write_down(others().is_empty()).await;
}

/// Every process but this one.
fn others() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != 1).collect()
}
