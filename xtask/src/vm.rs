//! The tests of the native backend in a virtual machine of the kind that users have: Debian's own kernel and systemd,
//! cgroups of version 2, and an ordinary user to whom systemd delegates. Emulated, so that it runs wherever QEMU does.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{Step, cargo, found};

/// What the machine is made of; beside these come the packages that each Debian has.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,linux-image-cloud-amd64,uidmap,\
                        iproute2,nftables,python3,busybox-static,e2fsprogs,udev,procps,kmod,util-linux";
/// The test programs that run there, and of each the tests; none named means all.
const TESTS: [(&str, &[&str]); 7] = [
    ("conformance", &[]),
    (
        "nat_proxy",
        &[
            "a_runner_that_was_killed_goes_on_with_the_network_of_its_boxes",
            "refusals_hold_when_root_of_the_box_has_changed_its_rules",
        ],
    ),
    ("nat", &["a_remote_that_refuses_is_told_to_the_program_at_once"]),
    ("run", &["everybody_inside_owns_where_they_work"]),
    ("refusals", &["required_limits_are_enforced_or_refused"]),
    (
        "isolation",
        &[
            "a_fork_bomb_hits_the_limit_and_the_server_answers",
            "a_memory_bomb_is_told_as_such",
            "kernel_settings_and_devices_are_out_of_reach",
        ],
    ),
    ("crash", &["a_killed_server_leaves_nothing_of_leased_sandboxes_after_the_next_start"]),
];
/// Without the instruction whose flags QEMU 7.2 gets wrong when it emulates two processors: newer kernels die of it.
const CPU: &str = "Nehalem,-cx16";
/// All of it, on a slow machine.
const DEADLINE: Duration = Duration::from_secs(1200);
const LAST_LINE: &str = "vm: ended with ";

/// Starts the tests when the machine is up, and switches it off.
const UNIT: &str = "[Unit]\nAfter=multi-user.target systemd-logind.service\nSuccessAction=poweroff-force\n\
                    FailureAction=poweroff-force\n[Service]\nType=oneshot\nStandardOutput=file:/dev/ttyS1\n\
                    StandardError=inherit\nExecStartPre=/bin/mount /dev/vdb /mnt\nExecStart=/bin/bash /mnt/run\n\
                    [Install]\nWantedBy=multi-user.target\n";

/// Two at a time, each in a process of its own; a failed one tells its output.
const SCRIPT: &str = r#"export DISPENSE_TEST_CGROUPS=delegated
one() {
  begun=$(date +%s)
  if timeout 300 /mnt/debug/deps/$1 --exact $2 --nocapture >/tmp/$1-$2.log 2>&1; then word=PASS; else word=FAIL; fi
  log=$([ $word = PASS ] || sed 's/^/    /' /tmp/$1-$2.log)
  printf '%s [%4ss] %s %s\n%s' $word $(($(date +%s) - begun)) $1 $2 "$log${log:+
}"
  [ $word = PASS ]
}
export -f one
uname -sr; systemctl --version | head -n 1; stat --file-system --format 'cgroups: %T' /sys/fs/cgroup
loginctl enable-linger dispense-test
xargs --arg-file=/mnt/tests --max-args=2 --max-procs=2 bash -c 'one "$@"' one
code=$?
# Once more with everything on a tmpfs, which older kernels do not map ids of.
TMPDIR=/dev/shm xargs --arg-file=/mnt/tests --max-args=2 --max-procs=2 bash -c 'case $1 in conformance | run) one "$@" ;; esac' one
echo "vm: ended with $((code + $?))"
"#;

/// Makes the machine unless it is there, and runs the tests in it; `words` name programs of [`TESTS`], or a program and
/// one of its tests as `PROGRAM::TEST`.
pub(crate) fn run(suite: &str, words: &[String]) -> Result<()> {
    for (program, package) in [("debootstrap", "debootstrap"), ("qemu-system-x86_64", "qemu-system-x86")] {
        if !found(program) {
            bail!("`{program}` is not installed: `apt-get install {package}`");
        }
    }
    let target = std::env::current_exe()?;
    let debug = target.parent().context("xtask stands in no directory")?;
    let folder = debug.parent().context("xtask stands in no target directory")?.join("vm").join(suite);
    fs::create_dir_all(&folder)?;
    let machine = machine(&folder, suite)?;
    let tests = tests(&folder, debug, words)?;
    boot(&folder, &machine, &tests)
}

/// The machine's disk, made once.
fn machine(folder: &Path, suite: &str) -> Result<PathBuf> {
    let (root, disk, stamp) = (folder.join("root"), folder.join("machine.img"), folder.join("made"));
    let recipe = format!("{PACKAGES}\n{UNIT}");
    if fs::read_to_string(&stamp).is_ok_and(|there| there == recipe) {
        return Ok(disk);
    }
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let include = format!("--include={PACKAGES}");
    let quiet = ["--variant=minbase", include.as_str(), suite];
    Step::new("debootstrap").args(quiet).args([&root]).args([mirror()?]).quiet().run()?;
    Step::new("chroot").args([&root]).args(["useradd", "--create-home", "dispense-test"]).run()?;
    fs::write(root.join("etc/systemd/system/dispense-test.service"), UNIT)?;
    fs::write(root.join("etc/fstab"), "/dev/vda / ext4 defaults 0 1\n")?;
    // It has no network of its own; the tests make what they need.
    fs::write(root.join("etc/resolv.conf"), "")?;
    Step::new("chroot").args([&root]).args(["systemctl", "--quiet", "enable", "dispense-test.service"]).run()?;
    for name in ["vmlinuz", "initrd.img"] {
        fs::copy(root.join(name), folder.join(name)).with_context(|| format!("the machine has no /{name}"))?;
    }
    make_disk(&root, &disk, "4G")?;
    fs::remove_dir_all(&root)?;
    fs::write(&stamp, recipe)?;
    Ok(disk)
}

/// Where this machine itself gets its packages.
fn mirror() -> Result<String> {
    let listed = Command::new("apt-get").args(["indextargets", "--format", "$(SITE)", "Label: Debian"]).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    listed.lines().next().map(str::to_owned).context("apt knows no archive of Debian")
}

/// A disk with the test programs, the binary that they drive, and the list of the tests.
fn tests(folder: &Path, debug: &Path, words: &[String]) -> Result<PathBuf> {
    cargo(["build", "--package", "dispense-cli"]).run()?;
    let stage = folder.join("tests");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    fs::create_dir_all(stage.join("debug/deps"))?;
    strip(&debug.join("dispense"), &stage.join("debug/dispense"))?;
    let mut list = String::new();
    for (program, named) in TESTS {
        let wanted = |test: &str| {
            words.is_empty() && (named.is_empty() || named.contains(&test))
                || words.iter().any(|word| word == program || *word == format!("{program}::{test}"))
        };
        let built = built(program)?;
        let output = Command::new(&built).args(["--list", "--format", "terse"]).output()?;
        for test in String::from_utf8(output.stdout)?.lines().filter_map(|line| line.strip_suffix(": test")) {
            if wanted(test) {
                list.push_str(&format!("{program} {test}\n"));
            }
        }
        strip(&built, &stage.join("debug/deps").join(program))?;
    }
    if list.is_empty() {
        bail!("no such test: {}", words.join(" "));
    }
    fs::write(stage.join("tests"), list)?;
    fs::write(stage.join("run"), SCRIPT)?;
    let disk = folder.join("tests.img");
    make_disk(&stage, &disk, "1G")?;
    Ok(disk)
}

/// Builds a test program and says where it is.
fn built(program: &str) -> Result<PathBuf> {
    // All of the workspace, so that it is the build that the other tests use.
    let words = ["test", "--no-run", "--workspace", "--test", program, "--message-format", "json"];
    let output =
        Command::new(env!("CARGO")).args(words).current_dir(crate::root()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("the tests `{program}` were not built");
    }
    let text = String::from_utf8(output.stdout)?;
    let artifact = text.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == program).then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    artifact.with_context(|| format!("cargo names no program `{program}`"))
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    Step::new("strip").arg("-o", to).args([from]).run()
}

fn make_disk(folder: &Path, disk: &Path, size: &str) -> Result<()> {
    let _ = fs::remove_file(disk);
    Step::new("truncate").args(["--size", size]).args([disk]).run()?;
    Step::new("mkfs.ext4").arg("-qd", folder).args([disk]).run()
}

/// Ends the machine whatever happens.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn boot(folder: &Path, machine: &Path, tests: &Path) -> Result<()> {
    let drive = |path: &Path| format!("file={},if=virtio,format=raw,snapshot=on", path.display());
    let console = format!("file:{}", folder.join("console.log").display());
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2", "-m", "4096", "-no-reboot", "-nic", "none"]);
    command.args(["-drive", &drive(machine), "-drive", &drive(tests), "-display", "none", "-serial", &console]);
    command.args(["-serial", "stdio", "-append", "root=/dev/vda rw console=ttyS0 quiet panic=-1", "-kernel"]);
    command.arg(folder.join("vmlinuz")).arg("-initrd").arg(folder.join("initrd.img"));
    let begun = Instant::now();
    let mut machine = Machine(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
    let stdout = machine.0.stdout.take().context("it is piped")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            // The other side ends first when the time is over.
            let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
    });
    loop {
        let left = DEADLINE.saturating_sub(begun.elapsed());
        let Ok(line) = lines.recv_timeout(left) else {
            bail!("the machine ended, or {} s were over; see {}", DEADLINE.as_secs(), console);
        };
        println!("{line}");
        match line.strip_prefix(LAST_LINE) {
            Some("0") => break,
            Some(_) => bail!("a test failed in the machine"),
            None => {}
        }
    }
    println!("vm: all of it took {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}
