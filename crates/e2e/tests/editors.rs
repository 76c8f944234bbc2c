//! Programs that work on a sandbox's files over SSH, as other people wrote them: a file system, and an editor that starts
//! its server inside.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dispense_e2e::site::with_site;
use dispense_e2e::{Mode, host, wait};

/// For what a sandbox does, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("procfs");
    let point = point.display().to_string();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(&point))
}

#[test]
fn a_workspace_is_mounted_with_sshfs() {
    if OpenOptions::new().read(true).write(true).open("/dev/fuse").is_err() {
        return eprintln!("not tested: sshfs, since this kernel lets us make no FUSE mount");
    }
    if Command::new("sshfs").arg("--version").output().is_err() {
        return host::skipped("sshfs: it is not installed (`apt-get install sshfs`)");
    }
    with_site(&[], |site| {
        if site.host.mode() != Mode::Root {
            return;
        }
        let point = site.host.work_dir().join("mounted");
        fs::create_dir(&point).expect("ours");
        let command = format!("ssh_command=ssh -F {}", site.config());
        let mut sshfs = site.host.command_as("sshfs");
        sshfs.args(["-f", "-o", &command, "dispense-web:/workspace"]).arg(&point).stdin(Stdio::null());
        let mut running = sshfs.spawn().expect("sshfs is installed");
        wait::until("it is mounted", PATIENCE, || is_mounted(&point), |mounted| *mounted);
        fs::create_dir_all(point.join("src/déjà vu")).expect("a directory is made");
        let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        fs::write(point.join("src/déjà vu/data"), &data).expect("a file is written");
        fs::rename(point.join("src/déjà vu/data"), point.join("src/data")).expect("a file is moved");
        assert!(fs::read(point.join("src/data")).expect("a file is read") == data, "3 MB come back as they went");
        let seen = site.host.ok(&["exec", "web", "--", "sh", "-c", "wc -c < src/data; echo inside > src/new; ls src"]);
        assert_eq!(seen, "3000000\ndata\ndéjà vu\nnew\n");
        assert_eq!(fs::read_to_string(point.join("src/new")).expect("what the sandbox made"), "inside\n");
        fs::remove_file(point.join("src/new")).expect("a file is removed");
        assert!(Command::new("umount").arg(&point).status().expect("util-linux").success());
        assert!(running.wait().expect("ours").success());
    });
}

/// What an editor pipes into the shell that it starts: a server on a port of its own choice, which it tells.
const SERVER: &str = "mkdir -p ~/.editor && cd ~/.editor && echo served > file\n\
                      python3 -u -m http.server 0 --bind 127.0.0.1 2>/dev/null &\n\
                      echo \"pid $!\"; wait\n";

#[test]
fn an_editor_starts_its_server_and_reaches_it() {
    with_site(&[], |site| {
        let socks = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port().to_string();
        let mut ssh = site.program("ssh");
        ssh.args(["-T", "-D", &socks, "-o", "ConnectTimeout=60", "dispense-web", "bash"]);
        let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ssh is installed");
        ssh.stdin.take().expect("piped").write_all(SERVER.as_bytes()).expect("a shell reads it");
        let mut lines = BufReader::new(ssh.stdout.take().expect("piped")).lines().map(|line| line.expect("text"));
        let told = lines.find_map(|line| Some(line.split_once(" port ")?.1.split(' ').next()?.to_owned()));
        let port = told.expect("it says where it listens");
        let get = || {
            let proxy = format!("127.0.0.1:{socks}");
            let url = format!("http://127.0.0.1:{port}/file");
            let output = Command::new("curl").args(["--silent", "--socks5", &proxy, &url]).output();
            String::from_utf8(output.expect("curl is installed").stdout).expect("text")
        };
        wait::until("the editor reaches its server", PATIENCE, get, |seen| seen == "served\n");
        // The window is closed: what it started ends with its connection.
        host::terminate(ssh.id());
        let _ = ssh.wait();
        let processes = || site.host.ok(&["ps", "web"]);
        wait::until("its shell has ended", PATIENCE, processes, |list| !list.contains("running"));
    });
}
