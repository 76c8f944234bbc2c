//! HAProxy in front of several servers, as an operator sets it up: one address for clients and one for runners.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::ServerProcess;
use crate::host::skipped;
use crate::pair::Running;
use crate::server::free_address;
use crate::wait;

/// Debian's package puts it here.
const PROGRAM: &str = "/usr/sbin/haproxy";
const UP_TIMEOUT: Duration = Duration::from_secs(30);

/// A running balancer.
pub struct Balancer {
    url: String,
    runner_url: String,
    _process: Running,
    _folder: tempfile::TempDir,
}

impl Balancer {
    /// Starts one; `None`, with the reason, where it is not installed.
    pub fn start(servers: &[&ServerProcess]) -> Option<Self> {
        if !Path::new(PROGRAM).exists() {
            skipped("a load balancer: it is not installed (`apt-get install haproxy`)");
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary directory");
        let [public, runners] = [free_address(), free_address()];
        let mut text = String::from(
            "defaults\n mode tcp\n timeout connect 2s\n timeout client 1h\n timeout server 1h\n retries 2\n \
             option redispatch\n",
        );
        let plain = |url: &str| url.trim_start_matches("http://").to_owned();
        for (name, address, url) in [
            ("public", public, ServerProcess::url as fn(&ServerProcess) -> &str),
            ("runners", runners, ServerProcess::runner_url),
        ] {
            text.push_str(&format!("listen {name}\n bind {address}\n balance roundrobin\n"));
            for (index, server) in servers.iter().enumerate() {
                text.push_str(&format!(" server s{index} {} check inter 200ms\n", plain(url(server))));
            }
        }
        let file = folder.path().join("haproxy.cfg");
        fs::write(&file, text).expect("ours");
        let process = Running::start(Command::new(PROGRAM).arg("-db").arg("-f").arg(&file));
        let connect = || std::net::TcpStream::connect(public).is_ok();
        wait::until("the balancer serves", UP_TIMEOUT, connect, |connected| *connected);
        let [url, runner_url] = [public, runners].map(|address| format!("http://{address}"));
        Some(Self { url, runner_url, _process: process, _folder: folder })
    }

    /// Where clients reach the servers.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where runners reach them.
    pub fn runner_url(&self) -> &str {
        &self.runner_url
    }
}
