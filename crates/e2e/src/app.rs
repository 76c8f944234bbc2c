//! A program in a sandbox whose port is shown by a preview, and those who look at it: curl, a browser's cookie, a WebSocket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::clients::Clients;
use crate::{Host, Mode, Up, wait};

/// For a program to come up in a sandbox, on a loaded machine.
pub const UP_TIMEOUT: Duration = Duration::from_secs(60);

/// A server with a sandbox `web` whose program listens on port 3000, and a browser's cookie for it.
pub struct App<'a> {
    /// Where it is.
    pub host: &'a Host,
    /// Its server.
    pub up: Up<'a>,
    /// `NAME=VALUE`, of port 3000.
    pub cookie: String,
}

/// Head and body of an answer.
#[derive(Debug)]
pub struct Answer {
    /// Of HTTP.
    pub status: u16,
    /// In lower case, with the ends of its lines.
    pub head: String,
    /// The rest.
    pub body: String,
}

impl<'a> App<'a> {
    /// Starts all of it.
    pub fn start(host: &'a Host, clients: &Clients) -> Self {
        let up = host.up();
        host.ok(&["create", "--name", "web"]);
        clients.put_app(&host.work_dir());
        host.own_tree(&host.work_dir());
        let from = format!("{}/.", host.work_dir().display());
        host.ok(&["cp", &from, "web:/workspace"]);
        let mut app = Self { host, up, cookie: String::new() };
        app.start_program();
        app.cookie = app.redeem(host.ok(&["preview", "web", "3000"]).trim());
        app
    }

    /// Starts the program, and waits until it listens.
    pub fn start_program(&self) {
        self.host.ok(&["exec", "--detach", "--name", "app", "web", "--", "node", "app.mjs"]);
        let list = || self.host.ok(&["port", "list", "web"]);
        wait::until("the program listens", UP_TIMEOUT, list, |ports| ports.contains("3000"));
    }

    /// The host name of a place.
    pub fn name(&self, label: &str) -> String {
        let address = self.up.address();
        format!("{label}.localhost:{}", address.rsplit_once(':').expect("a port").1)
    }

    /// Follows a link as a browser does; the cookie that it gets.
    pub fn redeem(&self, link: &str) -> String {
        let answer = curl(&["--include", link]);
        assert_eq!(answer.status, 303, "{}", answer.head);
        assert!(answer.head.contains("location: /\r\n"), "the clean address: {}", answer.head);
        let line = answer.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
        assert!(line.contains("HttpOnly") && line.contains("SameSite=Lax") && !line.contains("Domain"), "{line}");
        line.split(';').next().expect("a pair").to_owned()
    }

    /// As the browser with the cookie.
    pub fn get(&self, path: &str, flags: &[&str]) -> Answer {
        let url = format!("http://{}{path}", self.name("3000-web"));
        let cookie = format!("cookie: {}", self.cookie);
        curl(&[&["--include", "--header", &cookie][..], flags, &[&url]].concat())
    }
}

/// Runs curl; `--include` gives the head.
pub fn curl(arguments: &[&str]) -> Answer {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "90"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("curl is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{arguments:?}: {text}{output:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer {
        status,
        head: format!(
            "{}\r\n",
            head.to_ascii_lowercase().replace("httponly", "HttpOnly").replace("samesite=lax", "SameSite=Lax")
        ),
        body: body.to_owned(),
    }
}

/// Runs a test as each kind of user.
pub fn with_app(test: impl Fn(&App<'_>, &Clients)) {
    let Some(clients) = Clients::available() else { return };
    for mode in Mode::available() {
        let host = Host::new(mode);
        {
            let app = App::start(&host, &clients);
            test(&app, &clients);
            app.up.stop();
        }
        host.finish();
    }
}

/// Changes to another protocol on a preview; with what came behind the answer's head.
pub fn upgrade(address: &str, name: &str, protocol: &str, credential: &str) -> (TcpStream, BufReader<TcpStream>) {
    let stream = TcpStream::connect(address).expect("it accepts");
    stream.set_read_timeout(Some(UP_TIMEOUT)).expect("not zero");
    let websocket = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n";
    let head = format!(
        "GET / HTTP/1.1\r\nhost: {name}\r\n{credential}\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n{websocket}\r\n"
    );
    (&stream).write_all(head.as_bytes()).expect("it reads");
    let mut reader = BufReader::new(stream.try_clone().expect("ours"));
    let lines: Vec<String> =
        reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    assert!(lines.first().is_some_and(|line| line.contains(" 101 ")), "{lines:?}");
    (stream, reader)
}
