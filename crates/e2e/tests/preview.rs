//! Previews from outside: curl, a WebSocket client, and peers that try to get where they may not.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use dispense_e2e::app::{App, UP_TIMEOUT, curl, with_app};
use dispense_e2e::clients::Clients;
use dispense_e2e::forward::Forward;
use dispense_e2e::{Host, Mode, wait};

/// For five gigabytes, on a loaded machine.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(200);
const COOKIE: &str = "__dispense_preview";

#[test]
fn what_a_program_serves_comes_through_as_it_is() {
    with_app(|app, clients| {
        let answer = app.get("/hello?a=1", &[]);
        assert_eq!(answer.status, 200);
        let seen: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
        assert_eq!((&seen["url"], &seen["headers"]["host"]), (&"/hello?a=1".into(), &"localhost:3000".into()));
        assert!(!answer.body.contains(COOKIE), "the platform's cookie stays outside: {}", answer.body);
        // The other name of the same port needs a link of its own: cookies are for one host.
        let other = format!("http://{}/", app.name("web.preview"));
        assert_eq!(curl(&["--include", &other]).status, 401);
        let answer = app.get("/redirect", &[]);
        let location = format!("location: http://{}/there", app.name("3000-web"));
        assert!(answer.head.contains(&location), "{}", answer.head);
        assert!(answer.head.contains("set-cookie: mine=1\r\n"), "for this host alone: {}", answer.head);
        assert_eq!(app.get("/h2", &["--http2-prior-knowledge"]).status, 200);
        let answer = app.get("/trailers", &["--header", "te: trailers", "--raw"]);
        assert!(answer.body.to_ascii_lowercase().contains("x-sum: 42"), "trailers are kept: {}", answer.body);
        let cookie = app.cookie.as_str();
        let (address, name) = (app.up.address(), app.name("3000-web"));
        clients.run_with("preview.mjs", &address, "", &[("PREVIEW_HOST", &name), ("PREVIEW_COOKIE", cookie)]);
    });
}

#[test]
fn bodies_stream_both_ways_and_are_never_kept() {
    with_app(|app, _| {
        let url = format!("http://{}", app.name("3000-web"));
        let cookie = format!("cookie: {}", app.cookie);
        let flags = ["--silent", "--no-buffer", "--max-time", "60", "--header", &cookie];
        let mut events = Command::new("curl")
            .args(flags)
            .arg(format!("{url}/events"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl is installed");
        let mut lines = BufReader::new(events.stdout.take().expect("piped")).lines().map_while(Result::ok);
        assert_eq!(lines.next().as_deref(), Some("data: first"));
        assert_eq!(app.get("/go", &[]).body, "gone\n", "the first event came before the second was made");
        assert_eq!(lines.nth(1).as_deref(), Some("data: second"));
        events.wait().expect("ours");
        let download = format!("{url}/download?mib=64");
        let count = "%{size_download}";
        let output =
            Command::new("curl").args(flags).args(["--output", "/dev/null", "--write-out", count, &download]).output();
        let output = output.expect("curl is installed");
        assert_eq!(String::from_utf8_lossy(&output.stdout), (64u64 << 20).to_string());
        let upload = app.host.work_dir().join("upload");
        fs::File::create(&upload).and_then(|file| file.set_len(100 << 20)).expect("writable");
        let answer = app.get("/upload", &["--upload-file", upload.to_str().expect("text")]);
        assert!(answer.body.contains("\"bytes\":104857600"), "{} {}", answer.head, answer.body);
    });
}

#[test]
fn five_gigabytes_pass_and_none_of_them_stay() {
    const MIB: u64 = 5 << 10;
    let (Some(clients), Some(mode)) = (Clients::available(), Mode::available().into_iter().next()) else { return };
    let host = Host::new(mode);
    {
        let app = App::start(&host, &clients);
        let before = memory_kib(app.up.pid());
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--header", &format!("cookie: {}", app.cookie), "--output", "/dev/null"]);
        curl.args(["--write-out", "%{size_download}", &format!("http://{}/download?mib={MIB}", app.name("3000-web"))]);
        let mut curl = curl.stdout(Stdio::piped()).spawn().expect("curl is installed");
        let mut most = before;
        let look = || {
            most = most.max(memory_kib(app.up.pid()));
            curl.try_wait().expect("ours")
        };
        wait::until("it is downloaded", DOWNLOAD_TIMEOUT, look, Option::is_some);
        let size = std::io::read_to_string(curl.stdout.take().expect("piped")).expect("text");
        assert_eq!(size, (MIB << 20).to_string());
        assert!(most - before < 64 << 10, "{MIB} MiB passed, and at the most {} KiB were held", most - before);
        app.up.stop();
    }
    host.finish();
}

fn memory_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("the kernel tells");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn nobody_gets_in_without_a_link_a_key_or_a_public_preview() {
    with_app(|app, _| {
        let url = format!("http://{}/", app.name("3000-web"));
        let plain = |extra: &[&str]| curl(&[&["--include"][..], extra, &[&url]].concat());
        assert_eq!(plain(&[]).status, 401);
        let page = plain(&["--header", "accept: text/html"]);
        assert!(page.status == 401 && page.body.contains("<h1>This preview is private</h1>"), "{}", page.body);
        // Nobody learns which sandboxes there are.
        let nothing = curl(&["--include", &format!("http://{}/", app.name("3000-nothing"))]);
        assert_eq!(nothing.body, plain(&[]).body.replace("web", "nothing"));
        app.host.ok(&["create", "--name", "other"]);
        let foreign = app.redeem(app.host.ok(&["preview", "other", "3000"]).trim());
        let port = app.redeem(app.host.ok(&["preview", "web", "8000"]).trim());
        let (_, token) = app.cookie.split_once('=').expect("a pair");
        let (until, proof) = token.split_once('.').expect("a token");
        let later = format!("{COOKIE}={}.{proof}", until.parse::<u64>().expect("a time") + 1000);
        let longer = format!("{COOKIE}={token}0");
        for cookie in [foreign.as_str(), &port, &later, &longer, "__dispense_preview=", "__dispense_preview=1.x"] {
            assert_eq!(plain(&["--header", &format!("cookie: {cookie}")]).status, 401, "{cookie}");
        }
        let link = app.host.ok(&["preview", "web", "3000"]);
        let (origin, query) = link.trim().split_once("/?").expect("a link");
        let elsewhere = format!("http://{}/?{query}", app.name("3000-other"));
        assert_eq!(curl(&["--include", &elsewhere]).status, 401, "a link is for one sandbox");
        let cookie = format!("cookie: {COOKIE}={}", query.split_once('=').expect("a pair").1);
        assert_eq!(plain(&["--header", &cookie]).status, 401, "a link is no cookie");
        let clean = curl(&["--include", &format!("{origin}/a/b?x=1&{query}&y=2")]);
        assert!(clean.head.contains("location: /a/b?x=1&y=2\r\n"), "{}", clean.head);
        let outside = curl(&["--include", &format!("{origin}//evil.example/?{query}")]);
        assert!(outside.head.contains("location: /evil.example/\r\n"), "{}", outside.head);
        let short = app.host.ok(&["preview", "web", "3000", "--ttl", "1s"]);
        let expired = || curl(&["--include", short.trim()]);
        let answer = wait::until("the link expires", UP_TIMEOUT, expired, |answer| answer.status != 303);
        assert!(answer.status == 401 && answer.body.contains("has expired"), "{}", answer.body);
        let key = format!("x-api-key: {}", app.up.key());
        let answer = plain(&["--header", &key]);
        assert!(answer.status == 200 && !answer.body.contains("dsp_"), "{}", answer.body);
        assert_eq!(plain(&["--header", "x-api-key: dsp_0000000000000000000000000000000000000000"]).status, 401);
        assert_eq!(
            plain(&["--header", &format!("cookie: {}", app.cookie), "--header", "origin: http://evil.example"]).status,
            403
        );
        app.host.ok(&["preview", "web", "3000", "--public"]);
        assert_eq!(plain(&[]).status, 200);
        app.host.ok(&["preview", "web", "3000", "--close"]);
        assert_eq!(plain(&[]).status, 401);
        let refused = app.host.dispense(&["preview", "web", "3001"]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("agent's own"));
        let agent = curl(&["--include", "--header", &key, &format!("http://{}/", app.name("3001-web"))]);
        assert_eq!(agent.status, 403);
    });
}

#[test]
fn the_agents_own_ports_are_no_previews_wherever_they_are() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let key = format!("x-api-key: {}", up.key());
    let port = up.address().rsplit_once(':').expect("a port").1.to_owned();
    host.ok(&["create", "--name", "usual"]);
    host.ok(&["create", "--name", "moved", "--env", "AGENT_SSH_PORT=2200"]);
    host.ok(&["create", "--name", "bare", "--skip-services"]);
    for (sandbox, number, is_agents) in [
        ("usual", 3001, true),
        ("usual", 2222, true),
        ("usual", 2200, false),
        ("moved", 3001, true),
        ("moved", 2200, true),
        ("moved", 2222, false),
        ("bare", 3001, false),
        ("bare", 2222, false),
    ] {
        let made = host.dispense(&["preview", sandbox, &number.to_string()]);
        let told = String::from_utf8_lossy(&made.stderr).into_owned();
        assert_eq!(made.status.success(), !is_agents, "{sandbox} {number}: {told}");
        assert_eq!(told.contains("the agent's own"), is_agents, "{sandbox} {number}: {told}");
        let url = format!("http://{number}-{sandbox}.localhost:{port}/");
        let seen = curl(&["--include", "--header", &key, &url]);
        let wanted = if is_agents { (403, "\"agent_port\"") } else { (503, "\"port_closed\"") };
        assert!(seen.status == wanted.0 && seen.body.contains(wanted.1), "{sandbox} {number}: {}", seen.body);
        assert_eq!(curl(&["--include", &url]).status, 401, "nobody learns where the agent is");
    }
    up.stop();
    host.finish();
}

#[test]
fn the_last_bytes_of_a_caller_that_hangs_up_arrive() {
    const MIB: usize = 16;
    let Some(clients) = Clients::available() else { return };
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up_with(&["--tls"]);
    host.ok(&["create", "--name", "web"]);
    clients.put_program("late.mjs", &host.work_dir());
    host.ok(&["cp", &host.work_dir().join("late.mjs").display().to_string(), "web:/workspace/late.mjs"]);
    host.ok(&["exec", "--detach", "web", "--", "node", "late.mjs"]);
    let list = || host.ok(&["port", "list", "web"]);
    wait::until("the program listens", UP_TIMEOUT, list, |ports| ports.contains("4000"));
    let (address, mib) = (up.address(), MIB.to_string());
    let address = address.trim_start_matches("https://");
    let name = format!("4000-web.localhost:{}", address.rsplit_once(':').expect("a port").1);
    clients.run_with("late.py", address, &up.key(), &[("PREVIEW_HOST", &name), ("MIB", &mib)]);
    let told = || host.ok(&["exec", "web", "--", "sh", "-c", "cat told 2>/dev/null; true"]);
    let told = wait::until("the program has heard the end", UP_TIMEOUT, told, |told| !told.is_empty());
    assert_eq!(told, format!("{} bytes", MIB << 20));
    up.stop();
    host.finish();
}

#[test]
fn what_is_not_up_says_so_and_looks_again() {
    with_app(|app, _| {
        app.host.ok(&["exec", "web", "--", "pkill", "node"]);
        let list = || app.host.ok(&["port", "list", "web"]);
        wait::until("the program ends", UP_TIMEOUT, list, |ports| !ports.contains("3000"));
        let program = app.get("/", &[]);
        assert_eq!((program.status, program.body.contains("\"port_closed\"")), (503, true), "{}", program.body);
        let page = app.get("/", &["--header", "accept: text/html,*/*"]);
        assert!(page.body.contains("Nothing listens on port 3000 yet"), "{}", page.body);
        assert!(page.body.contains("http-equiv=\"refresh\"") && page.head.contains("retry-after: 2"), "{}", page.body);
        app.start_program();
        assert_eq!(app.get("/", &[]).status, 200);
        app.host.ok(&["stop", "web"]);
        let page = app.get("/", &["--header", "accept: text/html"]);
        assert!(page.status == 409 && page.body.contains("is stopped"), "{} {}", page.status, page.body);
        app.host.ok(&["start", "web"]);
        app.start_program();
        assert_eq!(app.get("/", &[]).status, 200, "the same cookie, for it is the same sandbox");
    });
}

/// What a raw peer gets until the server closes the connection.
fn exchange(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it accepts");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("not zero");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    // Cut off is an answer too.
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn requests_that_could_be_read_in_two_ways_are_refused() {
    with_app(|app, _| {
        let (address, name, cookie) = (app.up.address(), app.name("3000-web"), &app.cookie);
        let other = app.name("3000-other");
        let head = format!("host: {name}\r\ncookie: {cookie}\r\nconnection: close\r\n");
        let inner = format!("GET /smuggled HTTP/1.1\r\nhost: {name}\r\n\r\n");
        let control = exchange(&address, &format!("GET / HTTP/1.1\r\n{head}\r\n"));
        assert!(control.starts_with("HTTP/1.1 200"), "the allowed neighbour works: {control}");
        let chunked = exchange(
            &address,
            &format!("POST / HTTP/1.1\r\n{head}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        );
        assert!(chunked.contains("\"bytes\":3"), "{chunked}");
        for (what, request) in [
            (
                "two lengths",
                format!("POST / HTTP/1.1\r\n{head}content-length: 0\r\ncontent-length: {}\r\n\r\n{inner}", inner.len()),
            ),
            (
                "an unknown coding",
                format!("POST / HTTP/1.1\r\n{head}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{inner}"),
            ),
            ("a length that is none", format!("POST / HTTP/1.1\r\n{head}content-length: +3\r\n\r\nabc{inner}")),
            (
                "a folded header",
                format!("GET / HTTP/1.1\r\n{head}x-a: 1\r\n transfer-encoding: chunked\r\n\r\n{inner}"),
            ),
            (
                "a space before the colon",
                format!("POST / HTTP/1.1\r\n{head}transfer-encoding : chunked\r\n\r\n0\r\n\r\n{inner}"),
            ),
            ("two hosts", format!("GET / HTTP/1.1\r\nhost: {name}\r\n{head}\r\n")),
            ("an address of another host", format!("GET http://{other}/ HTTP/1.1\r\n{head}\r\n")),
        ] {
            let answer = exchange(&address, &request);
            assert!(!answer.contains(" 200 ") && !answer.contains("smuggled"), "{what}: {answer}");
        }
        // A length beside chunks is dropped, as the standard has it: there is one request, and one answer.
        let both = format!(
            "POST / HTTP/1.1\r\n{head}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{inner}"
        );
        let answer = exchange(&address, &both);
        assert!(!answer.contains("smuggled") && answer.matches("HTTP/1.1").count() <= 1, "{answer}");
    });
}

#[test]
fn a_forwarded_port_carries_connections_with_their_half_closes() {
    with_app(|app, _| {
        let forward = Forward::to(app.host, "web", 3000);
        let answer = exchange(forward.address(), "GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"url\":\"/x\""), "{answer}");
        forward.stop();
        let refused = app.host.dispense(&["port", "forward", "nothing", "0:3000"]);
        assert_eq!(refused.status.code(), Some(1));
    });
}
