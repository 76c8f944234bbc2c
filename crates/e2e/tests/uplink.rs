//! The way between server and runner cut for half a minute, during a typing session, an SSH session, a rebuild and a
//! download: the first three go on as if nothing had been, the last fails at once and works again afterwards.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dispense_e2e::clients::Clients;
use dispense_e2e::{Mode, Pair, wait};

const CUT: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(120);
/// A tenth of a second each: longer than the cut.
const LINES: u32 = 450;
/// Bytes that come slowly, in the sandbox.
const SLOW_SERVER: &str = r#"
import http.server, time
class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "600")
        self.end_headers()
        for _ in range(600):
            self.wfile.write(b".")
            if "slow" in self.path:
                time.sleep(0.1)
http.server.ThreadingHTTPServer(("127.0.0.1", 3000), Slow).serve_forever()
"#;

fn lines() -> String {
    (1..=LINES).map(|line| format!("line {line}\n")).collect()
}

/// Reads a line of a child that says that it has begun.
fn begun(child: &mut Child) -> BufReader<std::process::ChildStdout> {
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("text");
    assert!(!line.is_empty(), "it ended before it began");
    stdout
}

fn curl(address: &str, link: &str, path: &str) -> Command {
    let mut command = Command::new("curl");
    let host = link.split('/').nth(2).expect("a host").to_owned();
    command.args([
        "--silent",
        "--show-error",
        "--no-buffer",
        "--max-time",
        "100",
        "--header",
        &format!("Host: {host}"),
    ]);
    command.arg(format!("http://{address}{path}")).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

#[test]
fn sessions_outlive_a_cut_of_half_a_minute() {
    let Some(clients) = Clients::available() else { return };
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let mut pair = Pair::start(mode);
    pair.ok(&["create", "--name", "web"]);
    let address = pair.server().url().trim_start_matches("http://").to_owned();
    pair.ok(&["exec", "--detach", "web", "--", "python3", "-c", SLOW_SERVER]);
    let link = pair.ok(&["preview", "web", "3000", "--public"]).trim().to_owned();
    let whole = || curl(&address, &link, "/").output().expect("curl is installed").stdout.len();
    wait::until("the server in the sandbox answers", PATIENCE, whole, |bytes| *bytes == 600);

    let mut typing = clients.node("typing.mjs");
    typing
        .env("DISPENSE_ADDRESS", &address)
        .env("DISPENSE_API_KEY", pair.server().key())
        .env("LINES", LINES.to_string());
    let mut typing = typing.stdout(Stdio::piped()).spawn().expect("node is installed");
    let mut typed = begun(&mut typing);
    let mut ssh = pair.command(&["ssh", "web", "--", "echo begin; cat"]);
    let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary starts");
    let mut echoed = begun(&mut ssh);
    let mut stdin = ssh.stdin.take().expect("piped");
    let writer = std::thread::spawn(move || {
        for line in lines().split_inclusive('\n') {
            stdin.write_all(line.as_bytes()).expect("it is taken");
            std::thread::park_timeout(Duration::from_millis(100));
        }
    });
    let build = format!("for i in $(seq 1 {LINES}); do echo line $i; sleep 0.1; done");
    let mut build = pair.command(&["exec", "web", "--", "sh", "-c", &build]);
    let build = build.stdout(Stdio::piped()).spawn().expect("the binary starts");
    let mut download = curl(&address, &link, "/slow").spawn().expect("curl is installed");
    download.stdout.as_mut().expect("piped").read_exact(&mut [0; 5]).expect("it has begun");

    pair.take_runner().kill();
    let cut = download.wait_with_output().expect("ours");
    assert!(!cut.status.success() && cut.stdout.len() < 600, "the download fails, and does not end well: {cut:?}");
    std::thread::park_timeout(CUT);
    pair.start_runner();

    let mut text = String::new();
    typed.read_to_string(&mut text).expect("text");
    let seen: Vec<String> = serde_json::from_str(text.trim()).unwrap_or_else(|_| panic!("a list: {text}"));
    assert_eq!(seen.concat(), lines().replace('\n', ""));
    assert!(typing.wait().expect("ours").success());
    writer.join().expect("no panic");
    let mut text = String::new();
    echoed.read_to_string(&mut text).expect("text");
    assert_eq!(text, lines());
    assert!(ssh.wait().expect("ours").success());
    let built = build.wait_with_output().expect("ours");
    assert_eq!(String::from_utf8_lossy(&built.stdout), lines());
    assert!(built.status.success());
    wait::until("downloads work again", PATIENCE, whole, |bytes| *bytes == 600);
    pair.finish();
}
