//! Clients of other makes for the tests: Python packages and npm packages, below the target directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::Step;

/// Installs them, unless these versions are there.
pub(crate) fn install(root: &Path) -> Result<()> {
    let lists = root.join("crates/e2e/clients");
    let (python, node, site) =
        (lists.join("requirements.txt"), lists.join("package.json"), lists.join("site/package.json"));
    let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()));
    let wanted = read(&python)? + &read(&node)? + &read(&site)?;
    let target = std::env::current_exe()?;
    let target = target.parent().and_then(Path::parent).context("xtask stands in no target directory")?;
    let folder = target.join("clients");
    let stamp = folder.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|there| there == wanted) {
        println!("clients: {} has them", folder.display());
        return Ok(());
    }
    fs::create_dir_all(&folder)?;
    let words =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore", "--upgrade"];
    Step::new("python3").args(words).arg("--target", &folder.join("python")).arg("--requirement", &python).run()?;
    fs::create_dir_all(folder.join("site"))?;
    for (list, folder) in [(node, folder.clone()), (site, folder.join("site"))] {
        fs::copy(&list, folder.join("package.json"))?;
        let words = ["install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"];
        Step::new("npm").args(words).arg("--prefix", &folder).run()?;
    }
    fs::write(&stamp, wanted)?;
    Ok(())
}
