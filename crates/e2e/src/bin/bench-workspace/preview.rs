//! Requests and downloads through a preview, beside nginx as a proxy. Behind both stands nginx with the same files: in the
//! sandbox, and on this machine.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use dispense_e2e::{host, wait};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::ours::{NAME, Ours};
use crate::{Args, Table};

const NGINX: &str = "/usr/sbin/nginx";
/// Requests in flight, each on a connection of its own.
const CONNECTIONS: usize = 32;
/// Of the backend in the sandbox.
const PORT: u16 = 3000;
/// Of the file that is asked for again and again.
const SMALL_BYTES: usize = 1024;

pub(crate) fn measure(ours: &Ours, args: &Args, table: &mut Table) -> Result<()> {
    if !Path::new(NGINX).is_file() {
        println!("not measured: previews ({NGINX} is not there: `apt-get install nginx-light`)");
        return Ok(());
    }
    let site = ours.folder().join("site");
    fs::create_dir(&site)?;
    fs::write(site.join("small"), vec![b'x'; SMALL_BYTES])?;
    let large = fs::File::create(site.join("large"))?;
    large.set_len((u64::from(args.megabytes) * 5) << 20)?;
    let mine = through_preview(ours, &site)?;
    let (backend, proxy, theirs) = through_nginx(ours.folder(), &site)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let time = Duration::from_secs(args.seconds);
    let before = ours.memory_mb();
    let mut most: f64 = 0.0;
    for round in 0..=args.rounds {
        let rates = (runtime.block_on(rate(&mine, time))?, runtime.block_on(rate(&theirs, time))?);
        let downloads = (download(&mine)?, download(&theirs)?);
        most = most.max(ours.memory_mb());
        if round == 0 {
            continue;
        }
        let row = table.row("preview of 1 KiB, 32 in flight, nginx", "a second", "at least 0.4");
        row.ours.push(rates.0);
        row.peer.push(rates.1);
        let row = table.row("preview, a large download, nginx", "MB/s", "at least 0.5");
        row.ours.push(downloads.0);
        row.peer.push(downloads.1);
    }
    table.note(format!(
        "memory of server and runner: {before:.0} MB before the previews, at most {most:.0} MB after {} downloads of {} MB",
        args.rounds + 1,
        args.megabytes * 5
    ));
    drop((backend, proxy));
    Ok(())
}

/// Where a site is, and what a browser would send to it.
struct Site {
    port: u16,
    host: String,
    cookie: String,
}

/// A configuration that needs nothing of the package's own.
fn configuration(folder: &Path, server: &str, log: &str) -> String {
    let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temp: String = temp.iter().map(|kind| format!("{kind}_temp_path {}/{kind};\n", folder.display())).collect();
    format!(
        "daemon off;\nworker_processes 1;\nerror_log stderr;\npid {}/pid;\nevents {{}}\nhttp {{\naccess_log {log};\n\
         sendfile on;\nkeepalive_requests 1000000000;\n{temp}{server}\n}}\n",
        folder.display()
    )
}

fn through_preview(ours: &Ours, site: &Path) -> Result<Site> {
    let inside = Path::new("/workspace/site");
    let server = format!("server {{ listen 127.0.0.1:{PORT}; root {}; }}", inside.display());
    fs::write(site.join("nginx.conf"), format!("user user;\n{}", configuration(inside, &server, "off")))?;
    ours.dispense(&["cp", "--quiet", &site.display().to_string(), &format!("{NAME}:/workspace/site")])?;
    ours.dispense(&["exec", "--detach", NAME, "--", "nginx", "-c", "/workspace/site/nginx.conf"])?;
    let list = || ours.dispense(&["port", "list", NAME]).unwrap_or_default();
    wait::until("nginx listens", Duration::from_secs(10), list, |ports| ports.contains(&PORT.to_string()));
    let link = ours.dispense(&["preview", NAME, &PORT.to_string()])?;
    let head = curl(&["--include", link.trim()])?;
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).context("no cookie")?;
    let cookie = cookie.split(';').next().unwrap_or_default().to_owned();
    let port = ours.port();
    Ok(Site { port: port.parse()?, host: format!("{PORT}-{NAME}.localhost:{port}"), cookie })
}

fn through_nginx(folder: &Path, site: &Path) -> Result<(Nginx, Nginx, Site)> {
    let free = || Ok::<_, std::io::Error>(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
    let (behind, port) = (free()?, free()?);
    let backend = format!("server {{ listen 127.0.0.1:{behind}; root {}; }}", site.display());
    let proxy = format!(
        "upstream site {{ server 127.0.0.1:{behind}; keepalive {CONNECTIONS}; }}\n\
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://site; proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; }} }}"
    );
    let backend = Nginx::start(&folder.join("backend"), &backend, "off", behind)?;
    // As its package has it, and as ours.
    let log = folder.join("proxy/access.log").display().to_string();
    let proxy = Nginx::start(&folder.join("proxy"), &proxy, &log, port)?;
    Ok((backend, proxy, Site { port, host: format!("127.0.0.1:{port}"), cookie: "none=none".to_owned() }))
}

/// Requests a second.
async fn rate(site: &Site, time: Duration) -> Result<f64> {
    let done = Arc::new(AtomicU64::new(0));
    let deadline = Instant::now() + time;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (done, port, host, cookie) = (done.clone(), site.port, site.host.clone(), site.cookie.clone());
        tasks.spawn(async move {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.set_nodelay(true)?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            while Instant::now() < deadline {
                let request = http::Request::get("/small").header("host", &host).header("cookie", &cookie);
                let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
                ensure!(response.status() == 200, "it answered {}", response.status());
                let body = response.into_body().collect().await?.to_bytes();
                ensure!(body.len() == SMALL_BYTES, "{} bytes came", body.len());
                done.fetch_add(1, Ordering::Relaxed);
            }
            connection.abort();
            Ok(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / time.as_secs_f64())
}

/// MB a second, as curl sees it.
fn download(site: &Site) -> Result<f64> {
    let url = format!("http://127.0.0.1:{}/large", site.port);
    let (host, cookie) = (format!("host: {}", site.host), format!("cookie: {}", site.cookie));
    let args = ["--fail", "--output", "/dev/null", "--write-out", "%{speed_download}", "--header", &host];
    let bytes: f64 = curl(&[&args[..], &["--header", &cookie, &url]].concat())?.trim().parse()?;
    Ok(bytes / f64::from(1 << 20))
}

fn curl(args: &[&str]) -> Result<String> {
    let common = ["--silent", "--show-error", "--max-time", "300"];
    let output = Command::new("curl").args(common).args(args).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One of the peer's.
struct Nginx(Child);

impl Nginx {
    fn start(folder: &Path, server: &str, log: &str, port: u16) -> Result<Self> {
        fs::create_dir(folder)?;
        let file: PathBuf = folder.join("nginx.conf");
        fs::write(&file, format!("user root;\n{}", configuration(folder, server, log)))?;
        let mut command = Command::new(NGINX);
        command.arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(fs::File::create(folder.join("log"))?).spawn()?;
        let listens = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        wait::until("nginx listens", Duration::from_secs(10), listens, |listens| *listens);
        Ok(Self(child))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        host::terminate_if_there(self.0.id());
        let _ = self.0.wait();
    }
}
