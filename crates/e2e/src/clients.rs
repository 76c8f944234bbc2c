//! Clients of other makes, which `cargo xtask clients` installs below the target directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::host::skipped;

/// Scripts for them, in the tree.
fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// The proto files, in the tree.
fn proto() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto")
}

/// Where they are installed.
#[derive(Debug)]
pub struct Clients {
    folder: PathBuf,
    work: tempfile::TempDir,
}

impl Clients {
    /// Those that are installed; says what is skipped where they are not.
    pub fn available() -> Option<Self> {
        let target = std::env::current_exe().ok()?.ancestors().find(|path| path.join("debug").is_dir())?.to_owned();
        let folder = target.join("clients");
        if !folder.join("installed").is_file() {
            skipped(&format!("clients of other makes: {} is not there (`cargo xtask clients`)", folder.display()));
            return None;
        }
        Some(Self { folder, work: tempfile::tempdir().expect("a temporary directory") })
    }

    fn python(&self) -> Command {
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", self.folder.join("python")).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// Generates Python stubs and a descriptor set from the proto files.
    pub fn generate(&self) {
        let mut command = self.python();
        command.args(["-m", "grpc_tools.protoc", "--include_imports"]).arg("--proto_path").arg(proto());
        for (flag, path) in [("--python_out", ""), ("--grpc_python_out", ""), ("--descriptor_set_out", "all.bin")] {
            command.arg(format!("{flag}={}", self.work.path().join(path).display()));
        }
        command.args(["dispense.proto", "common.proto", "dispense/v1/process.proto"]);
        done(&command.output().expect("python3 is installed"), "grpc_tools.protoc");
    }

    /// Puts the program that previews show, with what it needs, into a folder.
    pub fn put_app(&self, folder: &Path) {
        let packages = folder.join("node_modules");
        std::fs::create_dir_all(&packages).expect("writable");
        std::fs::copy(scripts().join("app.mjs"), folder.join("app.mjs")).expect("ours");
        let from = self.folder.join("node_modules/ws");
        let copied = Command::new("cp").arg("-r").arg(from).arg(&packages).output().expect("cp is there");
        done(&copied, "cp");
    }

    /// Puts one more program into a folder.
    pub fn put_program(&self, name: &str, folder: &Path) {
        std::fs::copy(scripts().join(name), folder.join(name)).expect("ours");
    }

    /// Puts a project of a Vite page, with its packages, into a folder.
    pub fn put_site(&self, folder: &Path) {
        for from in [self.folder.join("site"), scripts().join("site")] {
            let copied = Command::new("cp").args(["-r", "--no-target-directory"]).arg(from).arg(folder).output();
            done(&copied.expect("cp is there"), "cp");
        }
    }

    /// A Node script of this folder, which is to be started.
    pub fn node(&self, script: &str) -> Command {
        // Node looks for packages beside the script.
        let copy = self.folder.join(script);
        std::fs::copy(scripts().join(script), &copy).expect("ours");
        let mut command = Command::new("node");
        command.arg(copy).env("PROTO", proto());
        command
    }

    /// A Python script of this folder, which is to be started.
    pub fn python_script(&self, script: &str) -> Command {
        let mut command = self.python();
        command.arg(scripts().join(script));
        command
    }

    /// Runs a script of this folder against a server.
    pub fn run(&self, script: &str, address: &str, key: &str) {
        self.run_with(script, address, key, &[]);
    }

    /// The same, with more variables.
    pub fn run_with(&self, script: &str, address: &str, key: &str, variables: &[(&str, &str)]) {
        let mut command = if script.ends_with(".sh") {
            let mut command = Command::new("sh");
            command.arg(scripts().join(script)).env("PYTHONPATH", self.folder.join("python"));
            command
        } else if script.ends_with(".py") {
            self.python_script(script)
        } else {
            self.node(script)
        };
        command
            .env("DISPENSE_ADDRESS", address)
            .env("DISPENSE_API_KEY", key)
            .env("STUBS", self.work.path())
            .env("DESCRIPTORS", self.work.path().join("all.bin"))
            .env("PROTO", proto())
            .envs(variables.iter().copied());
        done(&command.output().expect("python3 and node are installed"), script);
    }
}

fn done(output: &Output, what: &str) {
    assert!(
        output.status.success(),
        "{what} ended with {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
