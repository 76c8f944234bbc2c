//! `dispense up`, `dispense server`, and the embedded server behind `run`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use dispense_client::Error;
use tokio::signal::unix::{SignalKind, signal};

use dispense_runner::Offer;
use dispense_server::{AccessConfig, PreviewConfig, WorkspaceConfig};

use crate::args::serve::{ListenArgs, ServerArgs, UpArgs};
use crate::args::{Global, OfferArgs};
use crate::endpoint::data_dir;
use crate::failure::local;
use crate::local::lease::Announcement;
use crate::local::{Local, LocalConfig, LocalInfo};
use crate::settings::{Kind, Settings};
use crate::units::Pair;

/// Server and runner, until a signal.
pub(super) async fn up(global: &Global, args: UpArgs) -> Result<u8, Error> {
    serve(global, &args.listen, Kind::Up, args.offer).await
}

/// The server alone, until a signal.
pub(super) async fn server(global: &Global, args: ServerArgs) -> Result<u8, Error> {
    serve(global, &args.listen, Kind::Server, OfferArgs::default()).await
}

async fn serve(global: &Global, listen: &ListenArgs, kind: Kind, offer: OfferArgs) -> Result<u8, Error> {
    let settings = listen.settings(kind)?;
    let data_dir = data_dir(global)?;
    let mut stop = StopSignals::listen()?;
    let started = Local::start(LocalConfig {
        data_dir: data_dir.clone(),
        address: settings.address()?,
        runner_address: settings.runner_address()?,
        log_tail_bytes: settings.log_tail_bytes()?,
        access: settings.access()?,
        tls: settings.tls()?,
        database: settings.database()?,
        advertised_host: settings.advertised_host()?,
        rotate_secrets: listen.rotate_secrets,
        previews: settings.previews()?,
        ssh: settings.ssh()?,
        workspace: settings.workspace()?,
        provider_url: settings.provider_url()?,
        embedded: false,
        runner: kind == Kind::Up,
        offer: offer.offer(),
        templates: absolute(offer.template)?,
        source_roots: roots(offer.source_root)?,
    });
    let mut server = tokio::select! {
        started = started => started?,
        () = stop.next() => return Ok(0),
    };
    introduce(&server.info, &settings, &data_dir.join("admin.key"));
    let ended = tokio::select! {
        () = stop.next() => Ok(0),
        error = server.ended() => Err(error),
    };
    // A second signal does not wait.
    tokio::select! {
        () = server.stop() => ended,
        () = stop.next() => Ok(crate::failure::OURS),
    }
}

/// Says how to use it. A reader who has left does not end the server.
fn introduce(info: &LocalInfo, settings: &Settings, key: &Path) {
    let LocalInfo { url, runner_url, join_token, .. } = info;
    let mut text = format!(
        "Dispense serves at {url} and keeps its administrator's key in {}\n\
         On this machine, as this user:  dispense run -- uname -a\n\
         From elsewhere:                 DISPENSE_URL={url} DISPENSE_API_KEY=… dispense list\n\
         Another machine joins with:     dispense runner --join {runner_url} --token {join_token}\n",
        key.display()
    );
    if let Some(pin) = &info.tls_pin {
        text.push_str(&format!("Those who do not know its certificate add:  --tls-pin {pin}\n"));
    }
    let beyond = |address: Result<std::net::SocketAddr, Error>| address.is_ok_and(|one| !one.ip().is_loopback());
    if info.tls_pin.is_none() && (beyond(settings.address()) || beyond(settings.runner_address())) {
        text.push_str("Traffic beyond this machine is not encrypted: use a private network, or TLS (`--tls`).\n");
    }
    if let Err(error) = std::io::stdout().write_all(text.as_bytes()) {
        tracing::debug!(%error, "stdout");
    }
}

/// The server behind `run`: lives as long as somebody holds a lease.
pub(super) async fn embedded(global: &Global) -> Result<u8, Error> {
    // A session of its own: Ctrl-C is for the command that the user sees.
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "setsid");
    }
    let mut stop = StopSignals::listen()?;
    let started = Local::start(LocalConfig {
        data_dir: data_dir(global)?,
        address: ([127, 0, 0, 1], 0).into(),
        runner_address: ([127, 0, 0, 1], 0).into(),
        log_tail_bytes: dispense_server::LOG_TAIL_BYTES_DEFAULT,
        access: AccessConfig::default(),
        tls: None,
        database: None,
        advertised_host: String::new(),
        rotate_secrets: false,
        previews: PreviewConfig::default(),
        ssh: None,
        workspace: WorkspaceConfig::default(),
        provider_url: None,
        embedded: true,
        runner: true,
        offer: Offer::default(),
        templates: BTreeMap::new(),
        // It does nothing that its one user could not do.
        source_roots: ["s3://", "https://", "http://"].map(PathBuf::from).into(),
    });
    let mut server = match started.await {
        Ok(server) => server,
        Err(error) => {
            Announcement::Failed { reason: error.reason.clone(), message: error.message.clone() }.tell();
            return Err(error);
        }
    };
    Announcement::Ready.tell();
    tokio::select! {
        () = stop.next() => {}
        why = server.unused() => if let Some(error) = why {
            tracing::error!(%error, "runner");
        },
    }
    server.stop().await;
    Ok(0)
}

/// Paths of templates, which are read after the working directory may have changed.
pub(super) fn absolute(templates: Vec<Pair>) -> Result<BTreeMap<String, PathBuf>, Error> {
    templates
        .into_iter()
        .map(|(name, path)| {
            let found = std::path::absolute(&path).and_then(|path| path.metadata().map(|_| path));
            let found = found.map_err(|error| local(format_args!("read the template `{name}` at {path}"), &error))?;
            Ok((name, found))
        })
        .collect()
}

/// What a runner shares: directories as they are without links, and the beginnings of URLs.
pub(super) fn roots(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, Error> {
    let real = |path: PathBuf| {
        let real = std::fs::canonicalize(&path).and_then(|real| match real.is_dir() {
            true => Ok(real),
            false => Err(std::io::ErrorKind::NotADirectory.into()),
        });
        real.map_err(|error| local(format_args!("share --source-root {}", path.display()), &error))
    };
    let is_url = |path: &PathBuf| path.to_string_lossy().contains("://");
    paths.into_iter().map(|path| if is_url(&path) { Ok(path) } else { real(path) }).collect()
}

/// SIGINT and SIGTERM.
pub(super) struct StopSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl StopSignals {
    pub(super) fn listen() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(|error| local("listen for signals", &error));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
