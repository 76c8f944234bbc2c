//! Running other programs: each step is printed, and a failing one ends the task.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// One program with its arguments.
pub(crate) struct Step(Command);

/// `cargo` with these arguments, in the root of the tree.
pub(crate) fn cargo<const N: usize>(args: [&str; N]) -> Step {
    Step::new(env!("CARGO")).args(args)
}

/// Whether a program is installed.
pub(crate) fn found(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

impl Step {
    /// A program in the root of the tree.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.current_dir(crate::root());
        Self(command)
    }

    /// Adds arguments.
    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.0.args(args);
        self
    }

    /// Adds a flag with a path.
    pub(crate) fn arg(mut self, flag: &str, path: &std::path::Path) -> Self {
        self.0.arg(flag).arg(path);
        self
    }

    /// Sets a variable of the environment.
    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.0.env(key, value);
        self
    }

    /// Leaves out what it says on stdout.
    pub(crate) fn quiet(mut self) -> Self {
        self.0.stdout(Stdio::null());
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(mut self) -> Result<()> {
        let args: Vec<_> = self.0.get_args().map(OsStr::to_string_lossy).collect();
        let name = std::path::Path::new(self.0.get_program()).file_name().unwrap_or_default().to_string_lossy();
        let line = format!("{name} {}", args.join(" "));
        println!("> {line}");
        let start = Instant::now();
        let status = self.0.status().with_context(|| format!("failed to start `{line}`"))?;
        if !status.success() {
            bail!("`{line}` ended with {status}");
        }
        println!("< {line}: {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }
}
