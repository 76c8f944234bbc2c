//! `cargo xtask bench peers`: Dispense beside its peers and the kernel's own floor, interleaved in one run,
//! with the same root file system and command. Ours goes through the whole API: client, server, runner,
//! agent, with the server already up.

mod floor;
mod measure;
mod ours;
mod peers;
mod rootfs;

use std::path::PathBuf;

use anyhow::{Context, Result};

use measure::Contestant;

/// Rounds that count; each takes about a second when docker is there.
const ROUNDS: usize = 50;
/// Rounds before, for caches.
const WARM_UP_ROUNDS: usize = 3;

fn main() -> Result<()> {
    let rounds =
        std::env::args().nth(1).map_or(Ok(ROUNDS), |text| text.parse()).context("usage: bench-peers [ROUNDS]")?;
    let folder = tempfile::Builder::new().prefix("dispense-bench-").tempdir()?;
    let root = folder.path().join("rootfs");
    rootfs::make(&root)?;
    let system = ours::System::start(&binary()?, &root, folder.path())?;
    let mut peers = peers::Peers::find(&root, folder.path())?;
    let floor = floor::Floor::new(&root, &folder.path().join("floor"))?;

    let mut create = floor_contestants(floor);
    create.extend(system.create_contestants()?);
    create.append(&mut peers.create);
    measure::run(&mut create, WARM_UP_ROUNDS, rounds);
    measure::print("Create to first output", &create);

    let mut exec = system.exec_contestants()?;
    exec.append(&mut peers.exec);
    measure::run(&mut exec, WARM_UP_ROUNDS, rounds);
    measure::print("Exec in a running sandbox", &exec);
    drop(exec);
    drop(create);
    drop(peers);
    system.stop()
}

fn floor_contestants(floor: floor::Floor) -> Vec<Contestant> {
    let floor = std::rc::Rc::new(std::cell::RefCell::new(floor));
    let bare = floor.clone();
    vec![
        Contestant::new("floor: namespaces and overlay by hand", move || {
            floor.borrow_mut().sandbox(&["/bin/echo", "ready"])
        }),
        Contestant::new("floor: bare fork and exec", move || bare.borrow().bare(&["/bin/echo", "ready"])),
    ]
}

/// The `dispense` beside this program.
fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.parent().context("a program stands in a directory")?.join("dispense");
    anyhow::ensure!(path.exists(), "{} is missing: `cargo xtask bench peers` builds it", path.display());
    Ok(path)
}
