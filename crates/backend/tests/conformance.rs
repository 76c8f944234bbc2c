//! Every backend passes the same suite: the fake one, and the native one as root and as an ordinary user.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use dispense_backend::Backend;
use dispense_backend::fake::{Fake, FakeMachine};
use dispense_backend::native::{Native, NativeConfig};
use dispense_backend::testing::{conformance, leaks};

/// The ordinary user that `.ci/run` makes.
const TEST_USER: &str = "dispense-test";
/// Tells a copy of this program where its boxes go.
const STATE_VARIABLE: &str = "DISPENSE_TEST_STATE_DIR";

#[tokio::test]
async fn the_fake_backend_conforms() {
    let machine = Arc::new(FakeMachine::default());
    conformance::check(|| async { Arc::new(Fake::on(machine.clone())) as Arc<dyn Backend> }).await;
}

#[tokio::test]
async fn the_native_backend_conforms_as_whoever_runs_this() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let state_dir = std::env::var_os(STATE_VARIABLE).map_or_else(|| folder.path().to_owned(), Into::into);
    conformance::check(|| async {
        let config = NativeConfig { state_dir: state_dir.clone(), templates: Default::default() };
        Arc::new(Native::open(config).await.expect("this machine makes sandboxes: `dispense doctor`"))
            as Arc<dyn Backend>
    })
    .await;
    assert_eq!(leaks::find(&state_dir), Vec::<String>::new());
}

#[test]
fn the_native_backend_conforms_as_an_ordinary_user() {
    if !rustix::process::geteuid().is_root() {
        return skipped("this is an ordinary user already, so the other test is this one");
    }
    let Some(uid) = uid_of(TEST_USER) else {
        return skipped(&format!("there is no user `{TEST_USER}` (`useradd --create-home {TEST_USER}`)"));
    };
    let folder = tempfile::tempdir().expect("a temporary directory");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let program = folder.path().join("conformance");
    fs::copy(std::env::current_exe().expect("known"), &program).expect("room for a copy");
    let state_dir = folder.path().join("state");
    fs::create_dir(&state_dir).expect("fresh");
    chown(&state_dir, Some(uid), Some(uid)).expect("root may");
    let uid = uid.to_string();
    let status = Command::new("setpriv")
        .args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "--inh-caps=-all"])
        .arg(&program)
        .args(["--exact", "the_native_backend_conforms_as_whoever_runs_this", "--nocapture"])
        .env(STATE_VARIABLE, &state_dir)
        .current_dir(Path::new("/"))
        .status();
    assert!(status.expect("setpriv is part of util-linux").success(), "as {TEST_USER}");
}

fn uid_of(user: &str) -> Option<u32> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
    line.split(':').nth(2)?.parse().ok()
}

fn skipped(why: &str) {
    assert!(std::env::var_os("DISPENSE_TEST_NO_SKIP").is_none(), "this would be skipped: {why}");
    eprintln!("skipped: {why}");
}
