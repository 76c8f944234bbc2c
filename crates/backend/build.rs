//! Builds the agent and the spawner as static programs, for embedding into the native backend.
//!
//! They have a target directory of their own, since the outer cargo holds the lock of the other one. Flags of
//! the outer build (coverage, sanitizers) are not theirs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: [&str; 2] = ["dispense-agent", "dispense-spawner"];

fn main() {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("../..");
    for path in [
        "crates/agent/src",
        "crates/agent/Cargo.toml",
        "crates/spawner/src",
        "crates/spawner/Cargo.toml",
        "crates/api/src",
        "crates/api/Cargo.toml",
        "Cargo.lock",
        "Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    let out = PathBuf::from(variable("OUT_DIR"));
    // <target>/<profile>/build/<package>/out
    let target_dir =
        out.ancestors().nth(4).expect("OUT_DIR lies four levels below the target directory").join("static");
    let target = variable("TARGET");
    let status = Command::new(variable("CARGO"))
        .current_dir(&root)
        .args(["build", "--quiet", "--profile", "static", "--package", PROGRAMS[0], "--package", PROGRAMS[1], "--bins"])
        .args(["--target", &target, "--target-dir"])
        .arg(&target_dir)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        // A static program finds getrandom(2) only when it is told; elsewhere it would need /dev.
        .env("RUSTFLAGS", "-C target-feature=+crt-static --cfg getrandom_backend=\"linux_getrandom\"")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .expect("cargo runs the build script, so it can be started");
    assert!(status.success(), "the static programs of the native backend do not build: {status}");
    for program in PROGRAMS {
        let built: PathBuf =
            [target_dir.as_path(), Path::new(&target), Path::new("static"), Path::new(program)].iter().collect();
        std::fs::copy(&built, out.join(program)).expect("the program was just built");
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
