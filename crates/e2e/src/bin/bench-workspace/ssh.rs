//! scp through the gateway into a sandbox, beside scp to OpenSSH's own sshd on loopback.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dispense_e2e::{host, wait};

use crate::ours::{NAME, Ours};
use crate::{Args, Table};

const SSHD: &str = "/usr/sbin/sshd";
/// For one copy.
const COPY_TIMEOUT: &str = "300";

pub(crate) fn measure(ours: &Ours, args: &Args, table: &mut Table) -> Result<()> {
    if !Path::new(SSHD).is_file() {
        println!("not measured: SSH ({SSHD} is not there: `apt-get install openssh-server`)");
        return Ok(());
    }
    ours.dispense(&["ssh", NAME, "--save-config"])?;
    let config = ours.folder().join(".ssh/config");
    let peer = Sshd::start(&ours.folder().join("sshd"))?;
    let file = ours.folder().join("file");
    // What a cipher or a compression could make of it does not matter.
    fs::write(&file, vec![0x5a; usize::try_from(args.megabytes)? << 20])?;
    let back = ours.folder().join("back");
    let mine = format!("dispense-{NAME}:/workspace/file");
    let theirs = format!("peer:{}", ours.folder().join("copied").display());
    let megabytes = f64::from(args.megabytes);
    let (file, back) = (file.display().to_string(), back.display().to_string());
    for round in 0..=args.rounds {
        let up = (copy(&config, &file, &mine)?, copy(&peer.config, &file, &theirs)?);
        let down = (copy(&config, &mine, &back)?, copy(&peer.config, &theirs, &back)?);
        if round == 0 {
            continue;
        }
        for (what, (ours, peer)) in [("scp to it, sshd on loopback", up), ("scp from it, sshd on loopback", down)] {
            let row = table.row(what, "MB/s", "at least 0.5");
            row.ours.push(megabytes / ours);
            row.peer.push(megabytes / peer);
        }
    }
    Ok(())
}

/// Seconds of one scp.
fn copy(config: &Path, from: &str, to: &str) -> Result<f64> {
    let begun = Instant::now();
    let mut command = Command::new("timeout");
    command.args([COPY_TIMEOUT, "scp", "-q", "-F"]).arg(config).args([from, to]).stdin(Stdio::null());
    let output = command.output()?;
    ensure!(output.status.success(), "scp {from} {to}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(begun.elapsed().as_secs_f64())
}

/// The peer, for one key.
struct Sshd {
    child: Child,
    config: PathBuf,
}

impl Sshd {
    fn start(folder: &Path) -> Result<Self> {
        fs::create_dir(folder)?;
        // Where it drops its privileges, as the package's unit makes it.
        fs::create_dir_all("/run/sshd")?;
        for name in ["host", "user"] {
            let output = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(folder.join(name))
                .stdin(Stdio::null())
                .output()?;
            ensure!(output.status.success(), "ssh-keygen: {}", String::from_utf8_lossy(&output.stderr));
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let at = |name: &str| folder.join(name).display().to_string();
        let server = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
             UsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n",
            at("host"),
            at("user.pub")
        );
        fs::write(folder.join("sshd_config"), server)?;
        let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
        let client = format!(
            "Host peer\n HostName 127.0.0.1\n Port {port}\n User {user}\n IdentityFile {}\n UserKnownHostsFile {}\n \
             StrictHostKeyChecking accept-new\n",
            at("user"),
            at("known_hosts")
        );
        let config = folder.join("config");
        fs::write(&config, client)?;
        let mut command = Command::new(SSHD);
        command.args(["-D", "-e", "-f"]).arg(folder.join("sshd_config")).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(fs::File::create(folder.join("log"))?).spawn()?;
        let listens = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        wait::until("sshd listens", Duration::from_secs(10), listens, |listens| *listens);
        Ok(Self { child, config })
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        host::terminate_if_there(self.child.id());
        let _ = self.child.wait();
    }
}
