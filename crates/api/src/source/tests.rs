use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use super::*;

/// The names and contents of regular files in what was packed.
fn packed(source: &Source) -> Result<(BTreeMap<String, String>, Summary), SourceError> {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let mut stream = Vec::new();
    let packed = pack(source, scratch.path(), &mut stream, |_| {})?;
    assert_eq!(fs::read_dir(scratch.path()).expect("ours").count(), 0, "the clone is removed");
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(&stream[..]).entries().expect("an archive") {
        let mut entry = entry.expect("whole");
        let path = entry.path().expect("a path").to_string_lossy().into_owned();
        let mut text = Vec::new();
        io::Read::read_to_end(&mut entry, &mut text).expect("whole");
        if entry.header().entry_type().is_file() {
            files.insert(path.trim_start_matches("./").to_owned(), String::from_utf8_lossy(&text).into_owned());
        }
    }
    Ok((files, packed))
}

fn plain(directory: &Path) -> Source {
    Source { directory: directory.to_owned(), branch: "box".to_owned(), reset: false }
}

fn git(directory: &Path, arguments: &[&str]) {
    let status = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"])
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .status()
        .expect("git runs");
    assert!(status.success(), "git {arguments:?}");
}

fn repository(directory: &Path) {
    git(directory, &["init", "--quiet"]);
    fs::write(directory.join("file"), "one").expect("writable");
    git(directory, &["add", "."]);
    git(directory, &["commit", "--quiet", "-m", "one"]);
}

fn head(files: &BTreeMap<String, String>) -> &str {
    files[".git/HEAD"].trim()
}

#[test]
fn a_plain_directory_is_copied_without_what_it_ignores() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let root = folder.path();
    fs::create_dir_all(root.join("target/deep")).expect("fresh");
    fs::create_dir_all(root.join("src")).expect("fresh");
    for (name, text) in [
        (".gitignore", "target/\n*.log\n"),
        (".dispenseignore", "secret\n"),
        (".hidden", "kept"),
        ("target/deep/out", "no"),
        ("a.log", "no"),
        ("secret", "no"),
        ("src/main", "yes"),
    ] {
        fs::write(root.join(name), text).expect("writable");
    }
    std::os::unix::fs::symlink("/etc/shadow", root.join("link")).expect("fresh");
    let (files, packed) = packed(&plain(root)).expect("readable");
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(names, [".dispenseignore", ".gitignore", ".hidden", "src/main"]);
    assert_eq!(files["src/main"], "yes");
    assert_eq!(packed.skipped, 0);
}

#[test]
fn a_repository_becomes_a_clone_on_its_own_branch() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let root = folder.path();
    repository(root);
    git(root, &["remote", "add", "origin", "https://token@example.com/a.git"]);
    fs::write(root.join("file"), "not committed").expect("writable");
    let (files, _) = packed(&plain(root)).expect("a repository");
    assert_eq!((head(&files), files["file"].as_str()), ("ref: refs/heads/box", "one"));
    let config = &files[".git/config"];
    assert!(config.contains("https://example.com/a.git"), "{config}");
    assert!(!config.contains("token") && !config.contains(&root.display().to_string()), "{config}");
}

#[test]
fn a_branch_that_exists_is_taken_as_it_is_or_reset() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let root = folder.path();
    repository(root);
    git(root, &["checkout", "--quiet", "-b", "box"]);
    fs::write(root.join("file"), "of the branch").expect("writable");
    git(root, &["commit", "--quiet", "-am", "two"]);
    git(root, &["checkout", "--quiet", "main"]);
    let (files, _) = packed(&plain(root)).expect("a repository");
    assert_eq!((head(&files), files["file"].as_str()), ("ref: refs/heads/box", "of the branch"));
    let (files, _) = packed(&Source { reset: true, ..plain(root) }).expect("a repository");
    assert_eq!((head(&files), files["file"].as_str()), ("ref: refs/heads/box", "one"));
    // The repository itself is as it was.
    assert_eq!(fs::read_to_string(root.join("file")).expect("there"), "one");
}

#[test]
fn a_repository_runs_nothing_of_its_own() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let root = folder.path();
    repository(root);
    let mark = folder.path().join("ran");
    let hook = root.join(".git/hooks/post-checkout");
    fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", mark.display())).expect("writable");
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    git(root, &["config", "core.fsmonitor", &format!("touch {}", mark.display())]);
    packed(&plain(root)).expect("a repository");
    assert!(!mark.exists(), "a hook of the repository ran");
}

#[test]
fn what_cannot_be_packed_is_told() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let error = packed(&plain(&folder.path().join("none"))).expect_err("it is not there");
    assert!(error.to_string().contains("none"), "{error}");
    git(folder.path(), &["init", "--quiet"]);
    let error = packed(&plain(folder.path())).expect_err("nothing was ever committed");
    assert!(matches!(&error, SourceError::Git { action, .. } if action == "bundle"), "{error}");
    fs::remove_dir_all(folder.path().join(".git")).expect("ours");
    fs::create_dir(folder.path().join(".git")).expect("fresh");
    let error = packed(&plain(folder.path())).expect_err("an empty .git is no repository");
    assert!(matches!(&error, SourceError::Git { message, .. } if !message.is_empty()), "{error}");
}

/// As root only: git is somebody else then.
#[test]
fn git_reads_with_the_rights_of_the_directory_s_owner() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: it needs root, to be another user's git");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (theirs, secret) = (folder.path().join("theirs"), folder.path().join("secret"));
    for path in [&theirs, &secret] {
        fs::create_dir(path).expect("fresh");
        repository(path);
    }
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).expect("ours");
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("ours");
    let own = Command::new("chown").args(["-R", "65534:65534"]).arg(&theirs).status().expect("chown runs");
    assert!(own.success());
    packed(&plain(&theirs)).expect("their own repository");
    let alternates = theirs.join(".git/objects/info/alternates");
    fs::create_dir_all(alternates.parent().expect("it has one")).expect("there");
    fs::write(&alternates, format!("{}\n", secret.join(".git/objects").display())).expect("writable");
    fs::write(secret.join("file"), "hidden").expect("writable");
    git(&secret, &["commit", "--quiet", "-am", "hidden"]);
    let head = fs::read_to_string(secret.join(".git/refs/heads/main")).expect("a commit");
    fs::write(theirs.join(".git/refs/heads/stolen"), head).expect("writable");
    let source = Source { branch: "stolen".to_owned(), ..plain(&theirs) };
    match packed(&source) {
        Err(SourceError::Git { .. }) => {}
        Err(error) => panic!("{error}"),
        Ok((files, _)) => assert_ne!(files["file"], "hidden", "the objects of a private repository were read"),
    }
}
