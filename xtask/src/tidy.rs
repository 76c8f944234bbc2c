//! The rules of the house that a program can check: see CONTRIBUTING.md. Each finding names the file, the
//! line and the rule.

mod edges;
mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Checks the whole tree.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut findings = Vec::new();
    for file in rust_files(root)? {
        let text =
            fs::read_to_string(root.join(&file)).with_context(|| format!("failed to read {}", file.display()))?;
        findings.extend(source::check(&file, &text));
    }
    findings.extend(edges::check(root)?);
    findings.extend(paths_of_architecture(root)?);
    findings.extend(duplicate_majors(root)?);
    if findings.is_empty() {
        return Ok(());
    }
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    bail!("{} findings", findings.len())
}

/// Our own Rust files, as git knows them, generated ones left out.
fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let args = ["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"];
    let output = Command::new("git").args(args).current_dir(root).output().context("failed to run git")?;
    let text = String::from_utf8(output.stdout)?;
    let ours = text.lines().filter(|line| !line.contains("/generated/")).map(PathBuf::from);
    Ok(ours.filter(|file| root.join(file).exists()).collect())
}

/// Every path in backticks that ARCHITECTURE.md names must exist.
fn paths_of_architecture(root: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(root.join("ARCHITECTURE.md"))?;
    let quoted = text.split('`').skip(1).step_by(2);
    let paths =
        quoted.filter(|word| ["crates/", "proto/", "docs/", "xtask"].iter().any(|start| word.starts_with(start)));
    Ok(paths
        .filter(|path| !path.contains(' ') && !root.join(path).exists())
        .map(|path| format!("ARCHITECTURE.md names `{path}`, which does not exist"))
        .collect())
}

/// Dependencies that are there twice, each with the reason.
const DUPLICATES: &[(&str, &str)] = &[
    ("syn", "thiserror and tonic are between 2 and 3"),
    ("base64", "tonic, sqlx and prost-reflect are behind rcgen"),
    ("foldhash", "pulled by the two hashbrowns"),
    ("hashbrown", "pulled by indexmap and sqlx"),
    ("generic-array", "sqlx is on digest 0.10"),
    ("getrandom", "pulled by ring's and rand's users"),
    ("block-buffer", "sqlx is on digest 0.10"),
    ("cpufeatures", "sqlx is on digest 0.10"),
    ("crypto-common", "sqlx is on digest 0.10"),
    ("digest", "sqlx is on digest 0.10"),
    ("sha2", "sqlx is on digest 0.10"),
    ("matchit", "axum is behind socketioxide"),
    ("rand", "proptest is behind"),
    ("rand_core", "proptest is behind"),
    ("rand_chacha", "proptest is behind"),
    ("itertools", "prost-build is behind"),
    ("spin", "sqlx's and object_store's own"),
    ("tower-http", "reqwest is behind"),
    ("unicode-width", "comfy-table and console differ"),
    ("bitflags", "inotify is on 1"),
    ("windows-sys", "not built on Linux"),
];

fn duplicate_majors(root: &Path) -> Result<Vec<String>> {
    let args = ["tree", "--workspace", "--duplicates", "--depth", "0", "--prefix", "none", "--format", "{p}"];
    let output =
        Command::new(env!("CARGO")).args(args).current_dir(root).output().context("failed to run cargo tree")?;
    let text = String::from_utf8(output.stdout)?;
    let mut seen: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.split_once(" v"))
        .map(|(name, rest)| (name, major(rest.split(' ').next().unwrap_or(rest))))
        .collect();
    seen.sort_unstable();
    seen.dedup();
    let twice = seen.windows(2).filter(|pair| pair[0].0 == pair[1].0).map(|pair| pair[0].0);
    Ok(twice
        .filter(|name| !DUPLICATES.iter().any(|(known, _)| known == name))
        .map(|name| {
            format!(
                "`{name}` is there in two major versions: align them, or list it in xtask/src/tidy.rs with the reason"
            )
        })
        .collect())
}

/// What semver takes for the major version: `1` of 1.2.3, `0.4` of 0.4.5.
fn major(version: &str) -> &str {
    let mut dots = version.match_indices('.').map(|(index, _)| index);
    let first = dots.next().unwrap_or(version.len());
    if &version[..first] == "0" { &version[..dots.next().unwrap_or(version.len())] } else { &version[..first] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors_follow_semver() {
        assert_eq!(major("1.2.3"), "1");
        assert_eq!(major("0.4.5"), "0.4");
        assert_eq!(major("12"), "12");
    }

    #[test]
    fn a_path_that_does_not_exist_is_found() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(folder.path().join("crates/api")).expect("fresh");
        fs::write(folder.path().join("ARCHITECTURE.md"), "`crates/api` and `crates/none` and `x`").expect("fresh");
        assert_eq!(paths_of_architecture(folder.path()).expect("readable").len(), 1);
    }
}
