//! Attacks from inside a sandbox. Each asserts the refusal, and the neighbour that is allowed works.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use dispense_e2e::{Host, Mode, Up, wait};

/// A sandbox under attack.
struct Target<'a> {
    host: &'a Host,
}

impl<'a> Target<'a> {
    fn new(host: &'a Host, flags: &[&str]) -> Self {
        let mut args = vec!["create", "--name", "target"];
        args.extend_from_slice(flags);
        host.ok(&args);
        Self { host }
    }

    /// Exit code, stdout and stderr of a script.
    fn sh(&self, script: &str) -> (i32, String, String) {
        let output = self.host.dispense(&["exec", "--timeout", "30s", "target", "--", "sh", "-c", script]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    #[track_caller]
    fn refused(&self, script: &str) {
        let (code, out, err) = self.sh(script);
        assert_ne!(code, 0, "must be refused: {script}\n{out}{err}");
        assert_ne!(code, 125, "the attack itself must run: {script}\n{out}{err}");
    }

    #[track_caller]
    fn allowed(&self, script: &str) -> String {
        let (code, out, err) = self.sh(script);
        assert_eq!(code, 0, "must be allowed: {script}\n{out}{err}");
        out
    }

    /// Calls the kernel from Python: the errno, or 0.
    #[track_caller]
    fn errno(&self, call: &str) -> i32 {
        let script = format!(
            "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nresult = {call}\nprint(0 if result >= 0 else ctypes.get_errno())"
        );
        let output = self.host.dispense(&["exec", "target", "--", "python3", "-c", &script]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.trim().parse().unwrap_or_else(|_| panic!("{call}: {text}{}", String::from_utf8_lossy(&output.stderr)))
    }
}

fn each_mode(flags: &[&str], attack: impl Fn(&Target<'_>, &Up<'_>)) {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        attack(&Target::new(&host, flags), &up);
        up.stop();
        host.finish();
    }
}

#[test]
fn files_of_the_host_are_not_there() {
    each_mode(&[], |target, _| {
        let marker = target.host.work_dir().join("marker");
        fs::write(&marker, "host").expect("writable");
        let (data, work) = (target.host.data_dir(), marker);
        target.refused(&format!("cat {}", work.display()));
        target.refused(&format!("ls {}", data.display()));
        target.refused(&format!("cat {}/admin.key", data.display()));
        target.refused("grep -r dsp_ /etc /run /var /root /home /workspace /tmp /dev 2>/dev/null");
        // The users inside are made up, and have no passwords of the host.
        target.refused("grep -E '^[^:]+:[$]' /etc/shadow");
        for host_file in
            ["/root/.profile", "/root/.cargo", "/etc/ssh/ssh_host_rsa_key", "/var/lib/dpkg", "/var/run/docker.sock"]
        {
            if fs::symlink_metadata(host_file).is_ok() {
                target.refused(&format!("test -e {host_file} && ! test -d {host_file}"));
            }
        }
        assert_eq!(target.allowed("ls -A /root; ls -A /home"), ".bashrc\nuser\n");
        // What is its own it may use.
        target.allowed(
            "echo x > /root/own && cat /root/own && echo y > /etc/own && test -d /home/user && cat /etc/passwd",
        );
    });
}

#[test]
fn the_template_is_read_only_for_the_host_and_private_for_the_sandbox() {
    each_mode(&[], |target, _| {
        let before = fs::read("/usr/bin/env").expect("every host has it");
        if target.host.mode() == Mode::Root {
            // Root inside owns the template's files, in its own layer.
            target.allowed("echo changed > /usr/bin/env && grep changed /usr/bin/env");
        } else {
            target.sh("echo changed > /usr/bin/env");
        }
        assert_eq!(fs::read("/usr/bin/env").expect("every host has it"), before, "the host's file is untouched");
    });
}

#[test]
fn processes_of_the_host_are_neither_seen_nor_signalled() {
    each_mode(&[], |target, up| {
        let seen = target.allowed("ls /proc | grep -c '^[0-9]'");
        assert!(seen.trim().parse::<u32>().expect("a number") < 10, "{seen}");
        target.refused(&format!("kill -0 {}", up.pid()));
        target.refused("kill -9 1 && sleep 0.2 && ! kill -0 1");
        // No process of the host is behind a link of procfs.
        target.refused("ls /proc/1/root/../../../work 2>/dev/null | grep marker");
        target.allowed("sleep 100 & kill -0 $! && kill $!");
    });
}

#[test]
fn mounts_and_namespaces_cannot_be_made() {
    each_mode(&[], |target, _| {
        for script in [
            "mount -t tmpfs none /mnt",
            "mount -t proc none /mnt",
            "mount --bind /etc /mnt",
            "mount -o remount,rw /sys",
            "mount -o remount,rw /proc/sys",
            "umount /proc",
            "umount -l /dev",
            "unshare -m true",
            "unshare -U true",
            "unshare -n true",
            "nsenter -t 1 -m true",
            "chroot /proc/1/cwd ls /nonexistent",
            "cat /proc/self/fd/../../../root/marker",
        ] {
            target.refused(script);
        }
        assert_ne!(target.errno("libc.syscall(155, b'/', b'/tmp')"), 0, "pivot_root");
        assert_ne!(target.errno("libc.syscall(304, -100, 0, 0)"), 0, "open_by_handle_at");
        assert_eq!(target.errno("libc.syscall(435, 0, 0)"), 38, "clone3 is told to fall back");
        target.allowed("cd / && cd .. && test \"$(pwd)\" = / && ls /proc/self/root/etc/passwd");
        // Threads and processes of the usual kind work.
        target.allowed(
            "python3 -c 'import threading; t = threading.Thread(target=print, args=(1,)); t.start(); t.join()'",
        );
    });
}

#[test]
fn kernel_settings_and_devices_are_out_of_reach() {
    each_mode(&[], |target, _| {
        for script in [
            "echo 1 > /proc/sys/kernel/panic",
            "echo core > /proc/sys/kernel/core_pattern",
            "echo b > /proc/sysrq-trigger",
            "echo 1 > /sys/kernel/mm/ksm/run",
            "cat /proc/kcore | head -c 1 | grep -q .",
            "cat /proc/keys | grep -q .",
            "mkdir /sys/fs/cgroup/memory/evil",
            "echo 1 > /sys/fs/cgroup/memory/memory.limit_in_bytes",
            "mkdir /sys/fs/cgroup/evil",
            "echo max > /sys/fs/cgroup/memory.max",
            "echo max > /sys/fs/cgroup/pids.max",
            "echo $$ > /sys/fs/cgroup/cgroup.procs",
            "mknod /tmp/sda b 8 0 && cat /tmp/sda",
            "mknod /dev/mem c 1 1 && cat /dev/mem",
            "mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg",
            "ls /dev/kvm /dev/fuse /dev/mem /dev/sda 2>/dev/null | grep -q .",
        ] {
            target.refused(script);
        }
        target.allowed("head -c 10 /dev/urandom > /dev/null && echo x > /dev/null && cat /proc/sys/kernel/ostype && test -d /sys/kernel");
        target.allowed("mkfifo /tmp/fifo && test -p /tmp/fifo");
    });
}

#[test]
fn dangerous_system_calls_are_refused() {
    each_mode(&[], |target, _| {
        // Numbers of x86-64; each must fail with EPERM or ENOSYS, and not for its arguments.
        let calls = [
            ("bpf", "libc.syscall(321, 0, 0, 0)"),
            ("keyctl", "libc.syscall(250, 0, -3, 0)"),
            ("add_key", "libc.syscall(248, b'user', b'a', b'b', 1, -3)"),
            ("userfaultfd", "libc.syscall(323, 1)"),
            ("io_uring_setup", "libc.syscall(425, 1, ctypes.create_string_buffer(120))"),
            ("perf_event_open", "libc.syscall(298, ctypes.create_string_buffer(120), 0, -1, -1, 0)"),
            ("kexec_load", "libc.syscall(246, 0, 0, 0, 0)"),
            ("init_module", "libc.syscall(175, b'', 0, b'')"),
            ("reboot", "libc.syscall(169, 0, 0, 0, 0)"),
            ("swapon", "libc.syscall(167, b'/tmp/x', 0)"),
            ("settimeofday", "libc.syscall(164, ctypes.create_string_buffer(16), 0)"),
            ("setns", "libc.syscall(308, 0, 0)"),
            ("fsopen", "libc.syscall(430, b'tmpfs', 0)"),
            ("open_tree", "libc.syscall(428, -100, b'/', 1)"),
        ];
        for (name, call) in calls {
            let errno = target.errno(call);
            assert!(errno == 1 || errno == 38, "{name}: errno {errno}");
        }
        for (name, call) in [("getpid", "libc.getpid()"), ("memfd_create", "libc.memfd_create(b'x', 0)")] {
            assert_eq!(target.errno(call), 0, "{name} is a plain call");
        }
    });
}

#[test]
fn nothing_beyond_its_own_loopback_is_reachable() {
    each_mode(&[], |target, _| {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let connect =
            |address: &str| format!("python3 -c \"import socket; socket.create_connection(('{address}', {port}), 3)\"");
        for address in ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1"] {
            target.refused(&connect(address));
        }
        target.refused("python3 -c \"import socket; socket.create_connection(('169.254.169.254', 80), 3)\"");
        // Abstract sockets of the host live in its network namespace.
        target.refused("grep -q @ /proc/net/unix");
        assert_eq!(target.allowed("ls /sys/class/net"), "lo\n");
        let own = "python3 -c \"import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname(), 3); print('own')\"";
        assert_eq!(target.allowed(own), "own\n");
    });
}

#[test]
fn another_sandbox_is_out_of_reach() {
    each_mode(&[], |target, _| {
        target.host.ok(&["create", "--name", "victim"]);
        target.host.ok(&[
            "exec",
            "victim",
            "--",
            "sh",
            "-c",
            "echo secret > /workspace/secret; echo secret > /tmp/secret",
        ]);
        target.refused("find / -xdev -name secret -path '*workspace*' 2>/dev/null | grep -q .");
        target.refused("cat /workspace/secret /tmp/secret");
        target.refused("ps aux | grep -q [v]ictim");
        assert_eq!(target.host.ok(&["exec", "victim", "--", "cat", "/workspace/secret"]), "secret\n");
    });
}

#[test]
fn privileges_do_not_outlive_the_sandbox() {
    each_mode(&[], |target, _| {
        // A set-user-id file made inside means nothing outside.
        target.allowed("cp /bin/sh /workspace/sh && chmod 4755 /workspace/sh");
        let out = target.host.work_dir().join("sh");
        target.host.ok(&["cp", "target:/workspace/sh", out.to_str().expect("UTF-8")]);
        let mode = fs::metadata(&out).expect("copied").permissions().mode();
        assert_eq!(mode & 0o7000, 0, "{mode:o}");
        target.refused("dmesg");
        target.refused("hostname evil");
        target.refused("date -s '2000-01-01'");
        target.allowed("test \"$(hostname)\" = target");
    });
}

#[test]
fn a_fork_bomb_hits_the_limit_and_the_server_answers() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        if mode.enforces_limits() {
            let target = Target::new(&host, &["--pids", "64"]);
            // Bounded here too, should the limit fail: 2^12 processes.
            let bomb = "b() { [ $1 -gt 0 ] || { sleep 5; return; }; b $(($1 - 1)) & b $(($1 - 1)) & wait; }; b 12";
            let (_, _, err) = target.sh(bomb);
            assert!(err.contains("fork") || err.contains("Resource temporarily unavailable"), "{err}");
            assert_eq!(host.ok(&["list", "--output", "json"]).matches("\"name\":").count(), 1, "the server answers");
            wait::until(
                "the sandbox recovers",
                Duration::from_secs(20),
                || target.sh("echo alive").1,
                |text| text == "alive\n",
            );
        }
        up.stop();
        host.finish();
    }
}

#[test]
fn a_memory_bomb_is_told_as_such() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        if mode.enforces_limits() {
            let bomb = "x = b''\nwhile True: x += b'x' * (1 << 20)";
            let output = host.dispense(&["run", "--memory", "64M", "--", "python3", "-c", bomb]);
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(128 + 9), "{message}");
            assert!(message.contains("ran out of its memory of 64 MiB"), "{message}");
        }
        let output =
            host.dispense(&["run", "--memory", "64M", "--", "python3", "-c", "x = b'x' * (8 << 20); print(len(x))"]);
        assert_eq!(output.stdout, b"8388608\n", "what fits is not killed");
        host.finish();
    }
}

#[test]
fn a_full_disk_is_told_as_such_and_hurts_nobody_else() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let output =
            host.dispense(&["run", "--disk", "16M", "--", "sh", "-c", "head -c 64M /dev/zero > /workspace/fill"]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_ne!(output.status.code(), Some(0), "{message}");
        assert!(message.contains("disk is full"), "{message}");
        let output =
            host.dispense(&["run", "--disk", "16M", "--", "sh", "-c", "head -c 4M /dev/zero > /workspace/fill"]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        host.finish();
    }
}

#[test]
fn a_process_that_ignores_everything_ends_with_its_sandbox() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        let target = Target::new(&host, &[]);
        let script = "trap '' TERM INT HUP; setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' & echo up; while :; do sleep 1; done";
        let mut child = host
            .command(["exec", "target", "--", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let mut line = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut line).expect("the script prints");
        target.host.ok(&["delete", "target"]);
        child.wait().expect("ours");
        up.stop();
        host.finish();
    }
}

/// The box is put together by root, at each start, from what the box itself has left.
#[test]
fn links_in_the_place_of_mount_points_change_nothing_of_the_host() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        let victim = host.work_dir().join("victim");
        std::fs::create_dir_all(victim.join("user")).expect("ours");
        host.own_tree(&victim);
        let look = || [victim.clone(), victim.join("user")].map(|path| std::fs::metadata(path).expect("ours"));
        let told = |meta: std::fs::Metadata| (meta.mode(), meta.uid());
        let before = look().map(told);
        host.ok(&["create", "--name", "web"]);
        let links = format!("rm -rf /home && ln -s {0} /home && rmdir /tmp && ln -s {0} /tmp", victim.display());
        host.ok(&["exec", "web", "--", "sh", "-c", &links]);
        host.ok(&["stop", "web"]);
        host.dispense(&["start", "web"]);
        assert_eq!(look().map(told), before);
        up.stop();
        host.finish();
    }
}
