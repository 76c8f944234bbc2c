//! SSH from outside: OpenSSH's own ssh, scp and sftp, and rsync.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use dispense_e2e::pair::Running;
use dispense_e2e::site::{Site, with_one_site, with_one_site_set, with_site};
use dispense_e2e::{Host, Mode, host, wait};
use serde_json::Value;

/// For what a sandbox does, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn commands_run_as_if_the_sandbox_were_a_machine() {
    with_site(&[], |site| {
        let output = site.ssh(&["dispense-web", "echo out; echo err >&2; exit 7"]);
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
        assert_eq!(output.status.code(), Some(7));
        assert_eq!(site.ssh(&["dispense-web", "no-such-command"]).status.code(), Some(127));
        assert_eq!(site.ok(&["-o", "SetEnv=A=b", "dispense-web", "echo $A; pwd"]), "b\n/workspace\n");
        assert_eq!(site.ok(&["-tt", "dispense-web", "tty >/dev/null && stty size"]), "24 80\r\n");
        let mut child = site
            .program("ssh")
            .args(["dispense-web", "sha256sum"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ssh is installed");
        let data: Vec<u8> = (0..20_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        child.stdin.take().expect("piped").write_all(&data).expect("it reads to the end");
        let output = child.wait_with_output().expect("ours");
        let local = site.file("data", "");
        fs::write(&local, &data).expect("writable");
        let sum = Command::new("sha256sum").arg(&local).output().expect("coreutils");
        assert_eq!(output.stdout[..64], sum.stdout[..64], "20 MB of stdin arrive as they went");
        // A shell as a terminal's user has it, without a saved configuration.
        let output = site.host.dispense(&["ssh", "web", "--", "echo", "direct"]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "direct\n");
        let unknown = site.host.dispense(&["ssh", "nothing"]);
        assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("nothing"));
        // The same name, another sandbox: nothing was written anew, and no question is asked.
        site.host.ok(&["delete", "web"]);
        site.host.ok(&["create", "--name", "web"]);
        assert_eq!(site.ok(&["dispense-web", "echo again"]), "again\n");
        site.host.ok(&["stop", "web"]);
        // Whoever comes to work in it finds it running.
        assert_eq!(site.ok(&["dispense-web", "echo woken"]), "woken\n");
    });
}

#[test]
fn a_process_ends_with_the_connection_that_it_was_for() {
    with_site(&[], |site| {
        let mut child = site
            .program("ssh")
            .args(["dispense-web", "echo up; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("ssh is installed");
        let mut line = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut line).expect("it prints");
        child.kill().expect("ours");
        child.wait().expect("ours");
        let list = || site.host.ok(&["ps", "web"]);
        wait::until("it ends", PATIENCE, list, |list| !list.contains("sleep 1000"));
    });
}

#[test]
fn files_go_both_ways_by_sftp_scp_and_rsync() {
    with_site(&[], |site| {
        let work = site.host.work_dir();
        let tree = work.join("tree");
        fs::create_dir_all(tree.join("sub")).expect("writable");
        fs::write(tree.join("sub/script"), "#!/bin/sh\n").expect("writable");
        fs::set_permissions(tree.join("sub/script"), fs::Permissions::from_mode(0o755)).expect("ours");
        fs::write(tree.join("with space"), vec![5; 3_000_000]).expect("writable");
        std::os::unix::fs::symlink("sub/script", tree.join("link")).expect("fresh");
        site.host.own_tree(&tree);
        let done = |output: Output| assert!(output.status.success(), "{output:?}");
        let text = tree.display().to_string();
        done(site.program("scp").args(["-r", "-p", &text, "dispense-web:copy"]).output().expect("scp is installed"));
        assert_eq!(
            site.ok(&["dispense-web", "cd copy && stat -c %a sub/script && wc -c < 'with space'"]),
            "755\n3000000\n"
        );
        let back = work.join("back").display().to_string();
        done(site.program("scp").args(["-r", "dispense-web:copy", &back]).output().expect("scp is installed"));
        assert_eq!(fs::read(work.join("back/with space")).expect("copied"), vec![5; 3_000_000]);
        let batch = "put \"with space\" renamed\nrename renamed other\nln -s other soft\nln other hard\nchmod 600 other\nls -l\nmkdir d\nrmdir d\n\
                     df\nget other fetched\nrm soft\n-rm nothing\n";
        let script = site.file("batch", batch);
        site.host.own(std::path::Path::new(&script));
        let output = site.program("sftp").args(["-b", &script, "dispense-web"]).current_dir(&tree).output();
        let output = output.expect("sftp is installed");
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && listed.contains("-rw------- "), "{output:?}");
        assert_eq!(fs::read(tree.join("fetched")).expect("fetched").len(), 3_000_000);
        assert_eq!(site.ok(&["dispense-web", "stat -c '%a %h' other; ls"]), "600 2\ncopy\nhard\nother\n");
        let shell = format!("ssh -F {}", site.config());
        let rsync = |arguments: &[&str]| {
            let mut command = site.host.command_as("rsync");
            done(command.args(["-a", "-e", &shell]).args(arguments).output().expect("rsync is installed"));
        };
        let from = format!("{}/", tree.display());
        rsync(&[&from, "dispense-web:synced/"]);
        fs::remove_file(tree.join("with space")).expect("ours");
        rsync(&["--delete", &from, "dispense-web:synced/"]);
        assert_eq!(site.ok(&["dispense-web", "cd synced && ls && readlink link"]), "fetched\nlink\nsub\nsub/script\n");
        // As another user of the sandbox, whom the kernel keeps from what is root's; a runner that is no root may have
        // none.
        if site.host.mode() == Mode::Root {
            let user = ["exec", "--user", "user", "web", "--", "internal-sftp"];
            assert!(site.host.dispense(&user).status.success(), "every user can run it");
        }
    });
}

#[test]
fn ports_of_the_sandbox_are_forwarded_and_no_others() {
    with_site(&[], |site| {
        let serve = "cd /workspace && echo forwarded > page && exec python3 -m http.server --bind 127.0.0.1 8000";
        site.host.ok(&["exec", "--detach", "web", "--", "sh", "-c", serve]);
        let ports = || site.host.ok(&["port", "list", "web"]);
        wait::until("it listens", PATIENCE, ports, |ports| ports.contains("8000"));
        let fetch = "GET /page HTTP/1.0\r\n\r\n";
        let forwarded = |target: &str| {
            let mut child = site
                .program("ssh")
                .args(["-W", target, "dispense-web"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("ssh is installed");
            // One that is refused does not read.
            let _ = child.stdin.take().expect("piped").write_all(fetch.as_bytes());
            child.wait_with_output().expect("ours")
        };
        for target in ["localhost:8000", "127.0.0.1:8000", "web:8000"] {
            let output = forwarded(target);
            assert!(String::from_utf8_lossy(&output.stdout).ends_with("forwarded\n"), "{target}: {output:?}");
        }
        let server = site.up.address();
        for target in [server.as_str(), "169.254.169.254:80", "example.org:80", "localhost:9"] {
            // The server listens on its own loopback, which is not the sandbox's.
            let output = forwarded(target);
            assert!(output.stdout.is_empty() && !output.status.success(), "{target}: {output:?}");
        }
    });
}

/// A program of this machine that answers each connection with a line and what it was sent.
fn echo() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut sent = Vec::new();
                let _ = stream.read_to_end(&mut sent);
                let _ = stream.write_all(&[b"from outside: ", &sent[..]].concat());
            });
        }
    });
    address
}

/// What a program of the sandbox does with a port there.
const CALL: &str = "import socket, sys\ns = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 30)\n\
                    s.sendall(b'x' * 100000 + b'end')\ns.shutdown(socket.SHUT_WR)\nall = b''\n\
                    while True:\n  more = s.recv(65536)\n  if not more: break\n  all += more\n\
                    print(all[:14].decode(), len(all), all[-3:].decode())";

#[test]
fn a_port_of_the_sandbox_leads_back_to_the_client() {
    with_site(&[], |site| {
        site.host.ok(&["exec", "web", "--", "sh", "-c", &format!("cat > call.py <<'END'\n{CALL}\nEND")]);
        let outside = echo();
        let seen = "from outside:  100017 end\n";
        let remote = format!("7000:{outside}");
        let flags = ["-o", "ExitOnForwardFailure=yes", "-R", &remote];
        let twice = "python3 call.py 7000; python3 call.py 7000";
        assert_eq!(site.ok(&[&flags[..], &["dispense-web", twice]].concat()), seen.repeat(2));
        // It ended with the connection.
        let ports = || site.host.ok(&["port", "list", "web"]);
        wait::until("nobody listens", PATIENCE, ports, |ports| !ports.contains("7000"));
        let after = site.ssh(&["dispense-web", "python3 call.py 7000"]);
        assert!(String::from_utf8_lossy(&after.stderr).contains("refused"), "{after:?}");
        // One that something has already.
        let taken = "exec python3 -m http.server --bind 127.0.0.1 7000";
        site.host.ok(&["exec", "--detach", "web", "--", "sh", "-c", taken]);
        wait::until("it listens", PATIENCE, ports, |ports| ports.contains("7000"));
        let refused = site.ssh(&[&flags[..], &["dispense-web", "true"]].concat());
        assert_eq!(refused.status.code(), Some(255), "{refused:?}");

        // Without SSH.
        let mut reverse = site
            .host
            .command(["port", "reverse", "web", &format!("0:{}", outside.port())])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut line = String::new();
        BufReader::new(reverse.stdout.as_mut().expect("piped")).read_line(&mut line).expect("it says where");
        let port = line.strip_prefix("web:").and_then(|rest| rest.split(' ').next()).expect("a port").to_owned();
        assert_eq!(site.host.ok(&["exec", "web", "--", "python3", "call.py", &port]), seen);
        host::terminate(reverse.id());
        assert!(reverse.wait().expect("ours").success());
    });
}

#[test]
fn the_clients_keys_are_there_when_they_are_asked_for_and_only_then() {
    with_site(&[], |site| {
        let key = site.host.work_dir().join("own");
        keygen(&["-q", "-t", "ed25519", "-N", "", "-C", "of the client", "-f", &key.display().to_string()]);
        site.host.own_tree(&site.host.work_dir());
        // It ends with what it runs.
        let with_agent = |flags: &str, command: &str| {
            let script =
                format!("ssh-add -q {} && ssh -F {} {flags} dispense-web '{command}'", key.display(), site.config());
            let output = site.host.command_as("ssh-agent").args(["sh", "-c", &script]).stdin(Stdio::null()).output();
            output.expect("ssh-agent is installed")
        };
        let list = with_agent("-A", "ssh-add -l; ls -l $SSH_AUTH_SOCK | cut -c1");
        let text = String::from_utf8_lossy(&list.stdout);
        assert!(text.contains("of the client") && text.ends_with("s\n"), "{list:?}");
        let without = with_agent("", "echo [$SSH_AUTH_SOCK]");
        assert_eq!(String::from_utf8_lossy(&without.stdout), "[]\n", "{without:?}");
    });
}

#[test]
fn a_jump_host_is_passed_through() {
    const SSHD: &str = "/usr/sbin/sshd";
    // sshd drops its privileges as root only.
    if !Path::new(SSHD).is_file() || !Mode::available().contains(&Mode::Root) {
        return host::skipped(&format!(
            "a jump host: {SSHD} is not there (`apt-get install openssh-server`), or no root"
        ));
    }
    with_site(&[], |site| {
        if site.host.mode() != Mode::Root {
            return;
        }
        let at = |name: &str| site.host.work_dir().join(name).display().to_string();
        for name in ["jump-host", "jump-user"] {
            keygen(&["-q", "-t", "ed25519", "-N", "", "-f", &at(name)]);
        }
        fs::create_dir_all("/run/sshd").expect("root may");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
        let settings = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             StrictModes no\nUsePAM no\nPermitRootLogin yes\n",
            at("jump-host"),
            at("jump-user.pub")
        );
        let settings = site.file("sshd_config", &settings);
        let sshd = Command::new(SSHD).args(["-D", "-e", "-f", &settings]).stderr(Stdio::null()).spawn();
        let sshd = Running::adopt(sshd.expect("it is there"));
        let listens = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        wait::until("sshd listens", PATIENCE, listens, |listens| *listens);
        let jump = format!(
            "Include {}\nHost jump\n HostName 127.0.0.1\n Port {port}\n User root\n IdentityFile {}\n \
             StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n",
            site.config(),
            at("jump-user")
        );
        let jump = site.file("jump-config", &jump);
        let mut ssh = site.host.command_as("ssh");
        ssh.args(["-F", &jump, "-o", "BatchMode=yes", "-J", "jump", "dispense-web", "echo through"]);
        let output = ssh.stdin(Stdio::null()).output().expect("ssh is installed");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "through\n", "{output:?}");
        sshd.stop();
    });
}

/// Runs ssh-keygen.
fn keygen(arguments: &[&str]) -> String {
    let output = Command::new("ssh-keygen").args(arguments).stdin(Stdio::null()).output();
    let output = output.expect("ssh-keygen is installed");
    assert!(output.status.success(), "ssh-keygen {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_certificate_opens_its_own_sandbox_and_nothing_else() {
    with_one_site(|site| {
        let (key, user, strict) = site.credentials();
        let strict: Vec<&str> = strict.iter().map(String::as_str).collect();
        site.enters(&strict, &user);
        let ca = site.host.work_dir().join("ca").display().to_string();
        keygen(&["-q", "-t", "ed25519", "-N", "", "-f", &ca]);
        site.refused("no key", &[], "web");
        site.refused("an unknown key", &["-i", &ca], "web");
        site.host.ok(&["create", "--name", "other"]);
        site.refused("a certificate of another sandbox", &["-i", &key], "other");
        site.refused("a sandbox that is not there", &["-i", &key], "nothing");
        let stranger = site.file("stranger", &fs::read_to_string(&key).expect("just written"));
        site.file("stranger.pub", &keygen(&["-y", "-f", &stranger]));
        keygen(&["-q", "-s", &ca, "-I", "key", "-n", &user, &format!("{stranger}.pub")]);
        site.refused("a certificate of another authority", &["-i", &stranger], "web");
        site.refused("a password", &["-o", "PreferredAuthentications=password", "-i", &key], "web");
    });
}

#[test]
fn a_registered_key_opens_until_it_or_its_account_ends() {
    with_one_site(|site| {
        let key = site.host.work_dir().join("mine").display().to_string();
        keygen(&["-q", "-t", "ed25519", "-N", "", "-f", &key]);
        let public = format!("{key}.pub");
        let json = |text: String| serde_json::from_str::<Value>(&text).expect("JSON");
        let added = json(site.host.ok(&["ssh-key", "add", &public, "--output", "json"]));
        site.enters(&["-i", &key], "web");
        site.host.ok(&["ssh-key", "remove", added["keys"][0]["fingerprint"].as_str().expect("shown")]);
        site.refused("a removed key", &["-i", &key], "web");
        let made = json(site.host.ok(&["key", "create", "--name", "m", "--role", "admin", "--output", "json"]));
        let secret = made["secret"].as_str().or(made["key"].as_str()).expect("the secret");
        let url = format!("http://{}", site.up.address());
        site.host.ok(&["--url", &url, "--api-key", secret, "ssh-key", "add", &public]);
        site.enters(&["-i", &key], "web");
        let mut open = site.bare_command(&["-i", &key], "web", "echo in; sleep 600");
        let mut open = open.stdout(Stdio::piped()).spawn().expect("ssh is installed");
        let mut entered = [0; 3];
        std::io::Read::read_exact(open.stdout.as_mut().expect("piped"), &mut entered).expect("it runs");
        let taken = site.host.dispense(&["ssh-key", "add", &public]);
        assert!(String::from_utf8_lossy(&taken.stderr).contains("another account"), "{taken:?}");
        site.host.ok(&["key", "revoke", "m"]);
        let ended = || open.try_wait().expect("ours");
        wait::until("what the key had opened ends", PATIENCE, ended, Option::is_some);
        site.refused("the key of a revoked account", &["-i", &key], "web");
        let private = site.host.dispense(&["ssh-key", "add", &key]);
        assert!(String::from_utf8_lossy(&private.stderr).contains("is a private key"), "{private:?}");
    });
}

#[test]
fn only_good_algorithms_are_offered_and_garbage_is_cut_off() {
    with_one_site(|site| {
        let (key, user, strict) = site.credentials();
        for (option, weak) in [
            ("KexAlgorithms", "diffie-hellman-group14-sha1"),
            ("KexAlgorithms", "diffie-hellman-group-exchange-sha1"),
            ("Ciphers", "aes128-cbc"),
            ("Ciphers", "3des-cbc"),
            ("MACs", "hmac-sha1"),
            ("HostKeyAlgorithms", "ssh-rsa"),
        ] {
            let pair = format!("{option}={weak}");
            let mut options = vec!["-i", &key, "-o", &pair];
            // An authenticated cipher needs no MAC: one that does is asked for.
            if option == "MACs" {
                options.extend(["-o", "Ciphers=aes256-ctr"]);
            }
            let output = site.bare(&options, &user, "true");
            assert!(String::from_utf8_lossy(&output.stderr).contains("no matching"), "{pair}: {output:?}");
        }
        let port = site.connection()["port"].as_u64().expect("a number");
        let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).expect("it accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
        // It may be cut off while it still sends.
        let _ = stream.write_all(&[0xff; 100_000]);
        let mut answer = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
        assert!(answer.starts_with(b"SSH-2.0-dispense\r\n") && answer.len() < 10_000, "{}", answer.len());
        let strict: Vec<&str> = strict.iter().map(String::as_str).collect();
        site.enters(&strict, &user);
    });
}

#[test]
fn an_api_key_is_a_password_where_that_is_switched_on() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    {
        let up = host.up_with_env(&[("DISPENSE_SSH_PASSWORDS", "true")]);
        host.ok(&["create", "--name", "web"]);
        let site = Site { host: &host, up };
        let port = site.connection()["port"].to_string();
        let login = |password: &str| {
            let ask = site.file("ask", &format!("#!/bin/sh\necho {password}\n"));
            fs::set_permissions(&ask, fs::Permissions::from_mode(0o700)).expect("ours");
            let mut ssh = Command::new("ssh");
            ssh.args(["-F", "/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
            ssh.args(["-o", "PreferredAuthentications=password", "-o", "NumberOfPasswordPrompts=1", "-p", &port]);
            ssh.args(["web@127.0.0.1", "echo in"]).stdin(Stdio::null());
            ssh.env("SSH_ASKPASS", ask).env("SSH_ASKPASS_REQUIRE", "force").output().expect("ssh is installed")
        };
        assert_eq!(String::from_utf8_lossy(&login(&site.up.key()).stdout), "in\n");
        assert!(!login("dsp_0000000000000000000000000000000000000000").status.success());
        site.up.stop();
    }
    host.finish();
}

/// Starts a command, and waits until it runs.
fn entered(site: &Site<'_>, command: &str) -> std::process::Child {
    let mut ssh = site.program("ssh");
    let mut open = ssh.args(["dispense-web", command]).stdout(Stdio::piped()).spawn().expect("ssh is installed");
    let mut said = [0; 3];
    open.stdout.as_mut().expect("piped").read_exact(&mut said).expect("it runs");
    assert_eq!(&said, b"in\n");
    open
}

#[test]
fn one_session_more_than_the_limit_is_refused_and_told_so() {
    with_one_site_set(&[("DISPENSE_SSH_MAX_SESSIONS", "1")], |site| {
        let mut first = entered(site, "echo in; exec sleep 600");
        let second = site.ssh(&["dispense-web", "echo second"]);
        let told = String::from_utf8_lossy(&second.stderr).into_owned();
        assert!(second.stdout.is_empty() && told.contains("server.ssh.max_sessions is 1"), "{second:?}");
        first.kill().expect("ours");
        first.wait().expect("ours");
        let again = || site.ssh(&["dispense-web", "echo again"]);
        wait::until("its place is free", PATIENCE, again, |again| again.stdout == b"again\n");
    });
}

#[test]
fn a_session_by_which_nothing_passes_is_ended_and_told_so() {
    with_one_site_set(&[("DISPENSE_SSH_IDLE_TIMEOUT", "2s")], |site| {
        let beats = "for i in 1 2 3 4 5 6 7 8 9 10; do echo $i; sleep 0.3; done";
        assert_eq!(site.ok(&["dispense-web", beats]).lines().count(), 10, "one that says something goes on");
        let silent = site.ssh(&["dispense-web", "sleep 600"]);
        let told = String::from_utf8_lossy(&silent.stderr).into_owned();
        assert!(silent.status.code() == Some(255) && told.contains("nothing has passed for 2 s"), "{silent:?}");
    });
}
