//! What a release page ships: the stripped binary, its licence and completions in an archive, and the
//! archive's checksum.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{Step, cargo};

/// Builds the release into `dist/`.
pub(crate) fn run(root: &Path) -> Result<()> {
    cargo(["build", "--profile", "dist", "--package", "dispense-cli"]).run()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    let name = format!("dispense-{}-{}-linux", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let folder = root.join("dist").join(&name);
    fs::create_dir_all(folder.join("completions"))?;
    let binary = folder.join("dispense");
    fs::copy(target.join("dist/dispense"), &binary).context("failed to copy the binary")?;
    for file in ["LICENSE", "README.md", "CHANGELOG.md"] {
        fs::copy(root.join(file), folder.join(file)).with_context(|| format!("failed to copy {file}"))?;
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(&binary).args(["completions", shell]).output()?;
        ensure!(output.status.success(), "`dispense completions {shell}` ended with {}", output.status);
        fs::write(folder.join("completions").join(shell), output.stdout)?;
    }
    let archive = format!("{name}.tar.gz");
    let dist = root.join("dist");
    Step::new("tar").args(["-C"]).args([&dist]).args(["-czf"]).args([dist.join(&archive)]).args([&name]).run()?;
    let sum = Command::new("sha256sum").arg(&archive).current_dir(&dist).output().context("failed to run sha256sum")?;
    ensure!(sum.status.success(), "sha256sum ended with {}", sum.status);
    fs::write(dist.join(format!("{archive}.sha256")), sum.stdout)?;
    Ok(())
}
