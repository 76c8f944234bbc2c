//! What ends what a preview has opened: its key, its link, its share, and their time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};

use dispense_e2e::app::{App, curl, upgrade, with_app};
use dispense_e2e::clients::Clients;
use dispense_e2e::{Host, Mode};

/// A WebSocket.
type Open = (TcpStream, BufReader<TcpStream>);

/// Waits until it is closed: cut off is an end, too.
fn closed((_, reader): &mut Open) {
    if let Err(error) = reader.read_to_end(&mut Vec::new()) {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it goes on");
    }
}

/// A ping is answered.
fn goes_on((stream, reader): &mut Open) {
    stream.write_all(&[0x89, 0x80, 0, 0, 0, 0]).expect("it is open");
    let mut pong = [0; 2];
    reader.read_exact(&mut pong).expect("an answer");
    assert_eq!(pong, [0x8a, 0]);
}

/// An answer that goes on, of which the first line has come.
fn events(app: &App<'_>, credential: &str) -> (Child, BufReader<ChildStdout>) {
    let mut command = Command::new("curl");
    command.args(["--silent", "--no-buffer", "--max-time", "60", "--header", credential]);
    let url = format!("http://{}/events", app.name("3000-web"));
    let mut child = command.arg(url).stdout(Stdio::piped()).spawn().expect("curl is installed");
    let (mut line, mut told) = (String::new(), BufReader::new(child.stdout.take().expect("piped")));
    told.read_line(&mut line).expect("text");
    assert_eq!(line, "data: first\n");
    (child, told)
}

/// Waits until it ends, which it does before its time.
fn cut((mut child, mut told): (Child, BufReader<ChildStdout>)) {
    let mut rest = String::new();
    told.read_to_string(&mut rest).expect("its end");
    assert!(!rest.contains("second") && !child.wait().expect("ours").success(), "{rest}");
}

#[test]
fn what_a_key_opened_ends_with_it() {
    with_app(|app, _| {
        let guest = || {
            let made = app.host.ok(&["key", "create", "--name", "guest", "--role", "admin", "--output", "json"]);
            let made: serde_json::Value = serde_json::from_str(&made).expect("JSON");
            made["secret"].as_str().expect("a key").to_owned()
        };
        let link = |key: &str, flags: &[&str]| {
            let (url, arguments) =
                (format!("http://{}", app.up.address()), [&["preview", "web", "3000"], flags].concat());
            let mut command = app.host.command(arguments);
            let output = command.env("DISPENSE_URL", url).env("DISPENSE_API_KEY", key).output().expect("it starts");
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).expect("text").trim().to_owned()
        };
        let (address, name) = (app.up.address(), app.name("3000-web"));
        let status = |credential: &str| curl(&["--include", "--header", credential, &format!("http://{name}/")]).status;
        let key = guest();
        let first = link(&key, &[]);
        let (cookie, key) = (format!("cookie: {}", app.redeem(&first)), format!("x-api-key: {key}"));
        let admins = format!("cookie: {}", app.cookie);
        assert_eq!([&cookie, &key, &admins].map(|one| status(one)), [200; 3]);
        let mut open: [Open; 3] = [&cookie, &key, &admins].map(|one| upgrade(&address, &name, "websocket", one));
        let stream = events(app, &cookie);

        app.host.ok(&["key", "revoke", "guest"]);
        assert_eq!([&cookie, &key, &admins].map(|one| status(one)), [401, 401, 200]);
        let again = curl(&["--include", &first]);
        assert!(again.status == 401 && again.body.contains("\"link_revoked\""), "{}", again.body);
        open[..2].iter_mut().for_each(closed);
        cut(stream);
        // The other key's goes on.
        goes_on(&mut open[2]);

        // The links of one port, and no other's.
        let (other, here) = (app.host.ok(&["preview", "web", "8000"]), app.host.ok(&["preview", "web", "3000"]));
        let cookie_here = format!("cookie: {}", app.redeem(here.trim()));
        app.host.ok(&["preview", "web", "3000", "--revoke"]);
        assert_eq!([&admins, &cookie_here].map(|one| status(one)), [401; 2]);
        let again = curl(&["--include", here.trim()]);
        assert!(again.status == 401 && again.body.contains("was revoked"), "{}", again.body);
        app.redeem(other.trim());
        let newer = format!("cookie: {}", app.redeem(app.host.ok(&["preview", "web", "3000"]).trim()));
        assert_eq!(status(&newer), 200);

        // A port that everybody may see is no key's.
        let short = guest();
        link(&short, &["--public"]);
        app.host.ok(&["key", "revoke", "guest"]);
        assert_eq!(status(&cookie), 200);
    });
}

#[test]
fn what_a_link_or_a_share_opened_ends_with_it() {
    with_app(|app, _| {
        let (address, name) = (app.up.address(), app.name("3000-web"));
        let open = |credential: &str| -> Open { upgrade(&address, &name, "websocket", credential) };
        let (nobody, key) = ("x-nobody: 1", format!("x-api-key: {}", app.up.key()));
        let cookie = format!("cookie: {}", app.cookie);
        app.host.ok(&["preview", "web", "3000", "--public"]);
        let (mut public, mut link, mut keys) = (open(nobody), open(&cookie), open(&key));
        let (public_events, link_events) = (events(app, nobody), events(app, &cookie));

        app.host.ok(&["preview", "web", "3000", "--close"]);
        closed(&mut public);
        cut(public_events);
        goes_on(&mut link);
        let newer = format!("cookie: {}", app.redeem(app.host.ok(&["preview", "web", "3000"]).trim()));
        let other = open(&newer);

        app.host.ok(&["preview", "web", "3000", "--revoke"]);
        [link, other].iter_mut().for_each(closed);
        cut(link_events);
        goes_on(&mut keys);
    });
}

#[test]
fn what_a_link_or_a_share_opened_ends_with_its_time() {
    let (Some(clients), Some(mode)) = (Clients::available(), Mode::available().into_iter().next()) else { return };
    let host = Host::new(mode);
    {
        let app = App::start(&host, &clients);
        let (address, name) = (app.up.address(), app.name("3000-web"));
        let open = |credential: &str| -> Open { upgrade(&address, &name, "websocket", credential) };
        // Times in which a loaded machine can open it.
        let linked = |ttl: &str| {
            let link = host.ok(&["preview", "web", "3000", "--ttl", ttl]);
            open(&format!("cookie: {}", app.redeem(link.trim())))
        };
        let (mut expires, mut stays) = (linked("6s"), linked("1h"));
        goes_on(&mut expires);
        host.ok(&["preview", "web", "3000", "--public", "--ttl", "6s"]);
        let mut shared = open("x-nobody: 1");
        // Shared anew, it goes on for longer.
        host.ok(&["preview", "web", "3000", "--public", "--ttl", "10s"]);
        closed(&mut expires);
        goes_on(&mut shared);
        closed(&mut shared);
        goes_on(&mut stays);
        app.up.stop();
    }
    host.finish();
}
