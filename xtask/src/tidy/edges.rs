//! The edges between our crates, against the table in ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What a crate may import: these, or all.
#[derive(Debug, PartialEq, Eq)]
enum Allowed {
    All,
    Only(BTreeSet<String>),
}

/// Compares each manifest's dependencies on our own crates with the table.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let table = parse_table(&fs::read_to_string(root.join("ARCHITECTURE.md"))?);
    let mut findings = Vec::new();
    for entry in fs::read_dir(root.join("crates")).context("failed to list crates")? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let Some(allowed) = table.get(&name) else {
            findings.push(format!("crates/{name} has no row in the table of ARCHITECTURE.md"));
            continue;
        };
        let manifest = fs::read_to_string(path.join("Cargo.toml"))?;
        for import in imports(&manifest) {
            if matches!(allowed, Allowed::Only(names) if !names.contains(&import)) {
                findings.push(format!("crates/{name} imports `{import}`, which ARCHITECTURE.md does not allow"));
            }
        }
    }
    Ok(findings)
}

fn parse_table(text: &str) -> BTreeMap<String, Allowed> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `crates/"));
    rows.filter_map(|row| {
        let mut cells = row.split('|').map(str::trim);
        let name = cells.next()?.trim_end_matches('`').to_owned();
        let imports = cells.nth(1)?;
        let words = imports.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let allowed = if imports == "all" { Allowed::All } else { Allowed::Only(words.map(str::to_owned).collect()) };
        Some((name, allowed))
    })
    .collect()
}

/// Names of our crates under `[dependencies]`; tests may import more.
fn imports(manifest: &str) -> Vec<String> {
    let section = manifest.split("\n[").find(|part| part.starts_with("dependencies]")).unwrap_or_default();
    let lines = section.lines().filter_map(|line| line.strip_prefix("dispense-"));
    lines.map(|line| line.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_as_written() {
        let table =
            parse_table("| `crates/runner` | one a host | api, backend | x |\n| `crates/e2e` | tests | all | |\n");
        assert_eq!(table["runner"], Allowed::Only(["api".to_owned(), "backend".to_owned()].into()));
        assert_eq!(table["e2e"], Allowed::All);
    }

    #[test]
    fn only_normal_dependencies_count() {
        let manifest = "[package]\nname = \"x\"\n\n[dependencies]\ndispense-api.workspace = true\n\n[dev-dependencies]\ndispense-server = 1\n";
        assert_eq!(imports(manifest), ["api"]);
    }
}
