//! Files over REST, with curl, in a sandbox of the native backend.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use dispense_e2e::curl::Curl;
use dispense_e2e::{Host, Mode};
use serde_json::{Value, json};

/// Far more than any buffer on the way.
const LARGE_BYTES: u64 = 192 << 20;
/// What the server may grow by while a large file passes.
const GROWTH_MAX_KIB: u64 = 64 << 10;

/// Runs a test against `dispense up` with the sandbox `box`.
fn with_a_box(test: impl FnOnce(&Host, &Curl, u32)) {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    let curl = Curl::of(&up);
    host.ok(&["create", "--name", "box"]);
    test(&host, &curl, up.pid());
    up.stop();
    host.finish();
}

fn at(path: &str) -> String {
    format!("/api/v1/sandboxes/box/files?path={path}")
}

fn below(what: &str, query: &str) -> String {
    format!("/api/v1/sandboxes/box/files/{what}?{query}")
}

fn put(curl: &Curl, path: &str, content: &str) -> (u16, Value) {
    let answer = curl.ask(&at(path), &["--request", "PUT", "--data-binary", content]);
    (answer.status, answer.json())
}

#[test]
fn a_file_is_written_read_looked_at_moved_and_removed() {
    with_a_box(|host, curl, _| {
        let (status, file) = put(curl, "/workspace/a/b.txt&parents=true&mode=640", "hello");
        assert_eq!((status, &file["size"], &file["mode"]), (200, &json!(5), &json!("0640")), "{file}");
        assert_eq!(host.ok(&["exec", "box", "--", "cat", "/workspace/a/b.txt"]), "hello");
        let read = curl.ask(&at("a/b.txt"), &[]);
        assert_eq!((read.status, &read.body[..]), (200, &b"hello"[..]), "relative to the working directory");
        assert_eq!((read.header("content-length"), read.header("accept-ranges")), (Some("5"), Some("bytes")));
        assert_eq!(read.header("content-type"), Some("application/octet-stream"));
        assert_eq!(read.header("x-content-type-options"), Some("nosniff"));
        let (_, file) = put(curl, "/workspace/a/b.txt", "other");
        assert_eq!(file["mode"], json!("0640"), "a replaced file keeps its mode");
        let (status, file) = curl.call("GET", &below("stat", "path=a/b.txt"), None);
        assert_eq!((status, &file["kind"], &file["size"]), (200, &json!("file"), &json!(5)), "{file}");
        let (status, made) = curl.call("POST", &below("directory", "path=a/c/d&parents=true&mode=700"), None);
        assert_eq!((status, &made["kind"], &made["mode"]), (201, &json!("directory"), &json!("0700")), "{made}");
        let (status, moved) = curl.call("POST", &below("move", "path=a/b.txt&to=a/c/e.txt"), None);
        assert_eq!((status, &moved["path"]), (200, &json!("/workspace/a/c/e.txt")), "{moved}");
        let paths = |query: &str| {
            let (status, list) = curl.call("GET", &below("list", query), None);
            assert_eq!(status, 200, "{list}");
            let files = list["files"].as_array().expect("a list").clone();
            files.iter().map(|file| file["path"].as_str().expect("a path").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(paths("path=/workspace/a"), ["/workspace/a/c"]);
        assert_eq!(paths("path=/workspace/a&depth=2"), ["/workspace/a/c", "/workspace/a/c/d", "/workspace/a/c/e.txt"]);
        let (status, gone) = curl.call("DELETE", &at("a&recursive=true"), None);
        assert_eq!((status, &gone["removed"]), (200, &json!(4)), "{gone}");
        assert_eq!(curl.ask(&at("a/c/e.txt"), &[]).status, 404);
        assert_eq!(put(curl, "empty", "").1["size"], json!(0));
        assert_eq!(curl.ask(&at("empty"), &[]).body, b"");
        assert!(!curl.ask(&at("/proc/self/status"), &[]).body.is_empty(), "what has no size is read to its end");
    });
}

#[test]
fn a_range_is_honoured_and_one_outside_the_file_is_refused() {
    with_a_box(|_, curl, _| {
        put(curl, "digits", "0123456789");
        for (range, content, told) in
            [("2-4", "234", "bytes 2-4/10"), ("7-", "789", "bytes 7-9/10"), ("-2", "89", "bytes 8-9/10")]
        {
            let part = curl.ask(&at("digits"), &["--range", range]);
            assert_eq!((part.status, &part.body[..]), (206, content.as_bytes()), "{range}");
            assert_eq!(part.header("content-range"), Some(told));
            assert_eq!(part.header("content-length"), Some(content.len().to_string().as_str()));
        }
        for range in ["10-", "-0"] {
            let outside = curl.ask(&at("digits"), &["--range", range]);
            assert_eq!((outside.status, &outside.json()["reason"]), (416, &json!("range_outside")), "{range}");
            assert_eq!(outside.header("content-range"), Some("bytes */10"));
        }
        let several = curl.ask(&at("digits"), &["--range", "0-1,4-5"]);
        assert_eq!((several.status, &several.body[..]), (200, &b"0123456789"[..]));
        let tag = several.header("etag").expect("a tag").to_owned();
        let resumed = |tag: &str| curl.ask(&at("digits"), &["--range", "5-", "--header", &format!("if-range: {tag}")]);
        assert_eq!(resumed(&tag).status, 206);
        put(curl, "digits", "9876543210");
        let other = resumed(&tag);
        assert_eq!((other.status, &other.body[..]), (200, &b"9876543210"[..]), "it is another file by now");
        let head = curl.ask(&at("digits"), &["--head"]);
        assert_eq!((head.status, head.header("content-length")), (200, Some("10")));
    });
}

#[test]
fn what_is_wrong_with_a_path_is_told_with_a_status_and_a_reason() {
    with_a_box(|_, curl, _| {
        put(curl, "there", "x");
        let cases = [
            ("GET", at("/nowhere"), 404, "file_unknown"),
            ("GET", at("/workspace"), 409, "is_a_directory"),
            ("GET", at(""), 400, "path_invalid"),
            ("GET", "/api/v1/sandboxes/box/files".to_owned(), 400, "invalid_field"),
            ("GET", format!("{}&colour=red", at("there")), 400, "invalid_field"),
            ("GET", "/api/v1/sandboxes/nobody/files?path=x".to_owned(), 404, "sandbox_unknown"),
            ("GET", below("stat", "path=/nowhere"), 404, "file_unknown"),
            ("GET", below("list", "path=there"), 409, "not_a_directory"),
            ("PUT", at("/nowhere/x"), 404, "file_unknown"),
            ("PUT", at("there&exclusive=true"), 409, "file_exists"),
            ("PUT", at("there&mode=abc"), 400, "invalid_field"),
            ("PUT", at("/proc/x"), 404, "file_unknown"),
            ("POST", below("directory", "path=there"), 409, "file_exists"),
            ("POST", below("move", "path=/nowhere&to=x"), 404, "file_unknown"),
            ("POST", below("move", "path=there"), 400, "invalid_field"),
            ("DELETE", at("/nowhere"), 404, "file_unknown"),
            ("DELETE", at("/workspace"), 409, "directory_not_empty"),
            ("PATCH", at("there"), 405, "method_unknown"),
        ];
        for (verb, path, status, reason) in cases {
            let (got, refused) = curl.call(verb, &path, None);
            assert_eq!((got, &refused["reason"]), (status, &json!(reason)), "{verb} {path}: {refused}");
        }
        assert_eq!(curl.ask(&at("there"), &[]).body, b"x", "nothing of it changed what was there");
    });
}

#[test]
fn an_upload_that_is_cut_leaves_the_old_file() {
    with_a_box(|host, curl, _| {
        put(curl, "kept", "old");
        let (address, key) = curl.address_and_key();
        let mut stream = TcpStream::connect(address).expect("it serves");
        let head = format!(
            "PUT {} HTTP/1.1\r\nhost: {address}\r\nx-api-key: {key}\r\ncontent-length: 1000\r\n\r\n",
            at("kept")
        );
        stream.write_all(head.as_bytes()).expect("sent");
        stream.write_all(b"new").expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("half-closed");
        // The server ends the connection when it has given up.
        let _ = stream.read_to_end(&mut Vec::new());
        assert_eq!(curl.ask(&at("kept"), &[]).body, b"old");
        let names = || host.ok(&["exec", "box", "--", "ls", "-A", "/workspace"]);
        dispense_e2e::wait::until(
            "nothing of the new one is left",
            std::time::Duration::from_secs(10),
            names,
            |names| names == "kept\n",
        );
    });
}

/// The most memory that a process has had.
fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("it has memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn a_large_file_passes_in_both_directions_without_being_held() {
    with_a_box(|host, curl, pid| {
        let (from, to) = (host.work_dir().join("from"), host.work_dir().join("to"));
        // Any bytes that are not all the same.
        let made = Command::new("sh")
            .args(["-c", "seq 1 100000000 | head --bytes \"$1\" > \"$2\"", "sh", &LARGE_BYTES.to_string()])
            .arg(&from)
            .status()
            .expect("sh is there");
        assert!(made.success());
        let before = peak_kib(pid);
        let sent = curl.ask(&at("large"), &["--upload-file", from.to_str().expect("text")]);
        assert_eq!((sent.status, &sent.json()["size"]), (200, &json!(LARGE_BYTES)), "{sent:?}");
        let back = curl.command(&at("large")).arg("--output").arg(&to).status().expect("curl is installed");
        assert!(back.success());
        let grown = peak_kib(pid) - before;
        assert!(grown < GROWTH_MAX_KIB, "it grew by {grown} KiB");
        let same = Command::new("cmp").args([&from, &to]).status().expect("cmp is there");
        assert!(same.success(), "what came back is what was sent");
        let part = curl.ask(&at("large"), &["--range", &format!("{}-", LARGE_BYTES - 4)]);
        assert_eq!(
            part.header("content-range"),
            Some(&*format!("bytes {}-{}/{LARGE_BYTES}", LARGE_BYTES - 4, LARGE_BYTES - 1))
        );
        assert_eq!(part.body.len(), 4);
    });
}
