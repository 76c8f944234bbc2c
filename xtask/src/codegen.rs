//! Generates the wire types from `proto/` without protoc. The result is committed, so that neither a user's
//! build nor the nested build of the agent compiles a protobuf compiler; `--check` keeps it honest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use prost::Message;

const FILES: &[&str] = &[
    "common.proto",
    "dispense.proto",
    "dispense/v1/sandbox.proto",
    "dispense/v1/process.proto",
    "dispense/v1/file.proto",
    "dispense/v1/port.proto",
    "dispense/v1/runner.proto",
    "dispense/v1/job.proto",
    "dispense/v1/log.proto",
    "dispense/v1/usage.proto",
    "dispense/v1/key.proto",
    "dispense/v1/audit.proto",
    "dispense/v1/event.proto",
    "dispense/v1/batch.proto",
    "dispense/v1/preview.proto",
    "dispense/v1/ssh.proto",
    "dispense/runner/v1/runner.proto",
    "dispense/agent/v1/agent.proto",
];

/// Writes the generated files, or with `check` compares them with those in the tree.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let fresh = tempfile::tempdir()?;
    generate(&root.join("proto"), fresh.path())?;
    let committed = root.join("crates/api/src/generated");
    if !check {
        fs::create_dir_all(&committed)?;
        for (name, content) in read_all(fresh.path())? {
            fs::write(committed.join(name), content)?;
        }
        return Ok(());
    }
    if read_all(fresh.path())? != read_all(&committed)? {
        bail!("crates/api/src/generated differs from proto/: run `cargo xtask codegen`");
    }
    Ok(())
}

fn generate(proto: &Path, out: &Path) -> Result<()> {
    let mut compiler = protox::Compiler::new([proto]).context("failed to read proto/")?;
    // The comments are what reflection and the API's page tell.
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(FILES).context("failed to compile proto/")?;
    let descriptors = compiler.file_descriptor_set();
    fs::write(out.join("descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .out_dir(out)
        .btree_map(".")
        .bytes(".")
        .client_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .compile_fds(descriptors)
        .context("failed to generate Rust")?;
    // An empty service of google.protobuf is of no use.
    for (name, _) in read_all(out)? {
        if name.starts_with("google") {
            fs::remove_file(out.join(name))?;
        }
    }
    Ok(())
}

fn read_all(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let entries = fs::read_dir(folder).with_context(|| format!("failed to list {}", folder.display()))?;
    let mut files = BTreeMap::new();
    for entry in entries {
        let path: PathBuf = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("odd file name")?;
        files.insert(name.to_owned(), fs::read(&path)?);
    }
    Ok(files)
}
