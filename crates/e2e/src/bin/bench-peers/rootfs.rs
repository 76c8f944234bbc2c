//! The root file system that every contestant gets: this machine's shell and a few programs with the
//! libraries they need, so that no image registry is involved.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

const PROGRAMS: [&str; 4] = ["sh", "echo", "sleep", "cat"];

/// Makes the root file system in `root`.
pub(crate) fn make(root: &Path) -> Result<()> {
    for folder in ["bin", "dev", "proc", "sys", "tmp", "etc", "root", "workspace"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    for program in PROGRAMS {
        let source = fs::canonicalize(Path::new("/bin").join(program))?;
        fs::copy(&source, root.join("bin").join(program))?;
        for library in libraries(&source)? {
            let target = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(target.parent().context("a library has a directory")?)?;
            fs::copy(&library, target)?;
        }
    }
    Ok(())
}

fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().context("failed to run ldd")?;
    if !output.status.success() {
        bail!("ldd does not read {}", program.display());
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect())
}
