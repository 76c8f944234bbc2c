//! The examples of the client library, each run as a reader of them would, against a server with real sandboxes.

use std::path::PathBuf;
use std::process::Output;

use dispense_e2e::{Host, Mode, Up};

/// A built example; `cargo xtask test` builds them with everything else.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let folder = test.parent().and_then(std::path::Path::parent).expect("tests stand in deps/");
    let path = folder.join("examples").join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask test`, which builds it", path.display());
    path
}

fn run(host: &Host, up: &Up, name: &str, args: &[&str]) -> (Option<i32>, String) {
    // Where every user can read it.
    let copy = host.work_dir().join(name);
    std::fs::copy(example(name), &copy).expect("ours");
    host.own(&copy);
    let mut command = host.command_as(copy.to_str().expect("ASCII"));
    command.args(args).env("DISPENSE_URL", format!("http://{}", up.address())).env("DISPENSE_API_KEY", up.key());
    let Output { status, stdout, stderr } = command.output().expect("it starts");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (status.code(), text(&stdout) + &text(&stderr))
}

#[test]
fn every_example_does_what_it_says() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    host.ok(&["create", "--name", "box"]);
    let ran = run(&host, &up, "run", &["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!(ran, (Some(3), "out\nerr\n".into()));
    let (code, text) = run(&host, &up, "files", &["box"]);
    let wanted = "/workspace/numbers.txt has 3893 bytes\n5\n6\n7\n/workspace/numbers.txt\n";
    assert_eq!((code, text.as_str()), (Some(0), wanted));
    let (code, text) = run(&host, &up, "attach", &["box"]);
    assert!(code == Some(0) && text.contains("ready\nyou said hello\nit ended: Some(Code(0))\n"), "{text}");
    let (code, text) = run(&host, &up, "port", &["box"]);
    assert_eq!((code, text.as_str()), (Some(0), "HTTP/1.0 200 OK\n"));
    let (code, text) = run(&host, &up, "errors", &[]);
    assert!(code == Some(0) && text.contains("no-such-sandbox") && text.contains("InvalidArgument"), "{text}");
    host.ok(&["delete", "box"]);
    up.stop();
    host.finish();
}
