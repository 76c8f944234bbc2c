//! A server with SSH, and the programs of OpenSSH that reach it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::{Host, Mode, Up};

/// A server with a sandbox `web`, which `ssh dispense-web` reaches.
pub struct Site<'a> {
    /// Where it is.
    pub host: &'a Host,
    /// Its server.
    pub up: Up<'a>,
}

impl<'a> Site<'a> {
    fn start(host: &'a Host, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let up = host.up_with_all(flags, variables);
        host.ok(&["create", "--name", "web"]);
        assert_eq!(host.ok(&["ssh", "web", "--save-config"]), "ssh dispense-web\n");
        Self { host, up }
    }

    /// The client's configuration file.
    pub fn config(&self) -> String {
        self.home().join(".ssh/config").display().to_string()
    }

    fn home(&self) -> PathBuf {
        let home = self.host.command(["--version"]);
        let home = home.get_envs().find(|(name, _)| *name == "HOME").and_then(|(_, value)| value);
        PathBuf::from(home.expect("every command has a home"))
    }

    /// A program of OpenSSH's, with the configuration that `--save-config` wrote.
    pub fn program(&self, name: &str) -> Command {
        let mut command = self.host.command_as(name);
        command.args(["-F", &self.config(), "-o", "ConnectTimeout=30"]).stdin(Stdio::null());
        command
    }

    /// Runs ssh to its end.
    pub fn ssh(&self, arguments: &[&str]) -> Output {
        self.program("ssh").args(arguments).output().expect("ssh is installed")
    }

    /// What ssh prints, when it succeeds.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.ssh(arguments);
        assert!(output.status.success(), "ssh {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// What a program needs that knows nothing of `dispense`: from the REST API.
    pub fn connection(&self) -> Value {
        let output = Command::new("curl")
            .args(["--silent", "--header", &format!("x-api-key: {}", self.up.key())])
            .arg(format!("http://{}/api/v1/sandboxes/web/connection", self.up.address()))
            .output()
            .expect("curl is installed");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("JSON: {output:?}"))
    }

    /// ssh without any configuration: port, user and options are given.
    pub fn bare(&self, options: &[&str], user: &str, command: &str) -> Output {
        self.bare_command(options, user, command).output().expect("ssh is installed")
    }

    /// The same, not started yet.
    pub fn bare_command(&self, options: &[&str], user: &str, command: &str) -> Command {
        let port = self.connection()["port"].to_string();
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30", "-o", "IdentitiesOnly=yes"]);
        ssh.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-p", &port]);
        ssh.args(options).arg(format!("{user}@127.0.0.1")).arg(command).stdin(Stdio::null());
        ssh
    }

    /// The private key with its certificate beside it, as the REST API gives them, and the options that believe the server.
    pub fn credentials(&self) -> (String, String, Vec<String>) {
        let made = self.connection();
        let text = |name: &str| made[name].as_str().unwrap_or_else(|| panic!("{name} in {made}")).to_owned();
        let key = self.file("key", &text("privateKey"));
        self.file("key-cert.pub", &text("certificate"));
        let known = self.file("known", &format!("@cert-authority {} {}\n", text("hostAlias"), text("hostAuthority")));
        let known = format!("UserKnownHostsFile={known}");
        let strict = ["-i", &key, "-o", &known, "-o", "StrictHostKeyChecking=yes", "-o", "HostKeyAlias=dispense"];
        let strict = strict.map(str::to_owned).into();
        (key, text("user"), strict)
    }

    /// A file that nobody else may read.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.host.work_dir().join(name);
        fs::write(&path, text).expect("writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
        path.display().to_string()
    }

    /// Whoever comes so is not let in; `what` says what they have.
    #[track_caller]
    pub fn refused(&self, what: &str, options: &[&str], user: &str) {
        let output = self.bare(options, user, "true");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains("Permission denied (publickey)"), "{what}: {output:?}");
    }

    /// Whoever comes so is let in.
    #[track_caller]
    pub fn enters(&self, options: &[&str], user: &str) {
        let output = self.bare(options, user, "echo in");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "in\n", "{output:?}");
    }
}

/// Runs a test once as each kind of user.
pub fn with_site(flags: &[&str], test: impl Fn(&Site<'_>)) {
    for mode in Mode::available() {
        let host = Host::new(mode);
        {
            let site = Site::start(&host, flags, &[]);
            test(&site);
            site.up.stop();
        }
        host.finish();
    }
}

/// Runs a test once.
pub fn with_one_site(test: impl Fn(&Site<'_>)) {
    with_one_site_set(&[], test);
}

/// Runs a test once, with settings of the server.
pub fn with_one_site_set(variables: &[(&str, &str)], test: impl Fn(&Site<'_>)) {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    {
        let site = Site::start(&host, &[], variables);
        test(&site);
        site.up.stop();
    }
    host.finish();
}
