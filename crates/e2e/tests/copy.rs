//! `dispense cp` from outside: trees, links, odd names, and archives that attack.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use dispense_e2e::{Host, Mode, host, wait};

/// Files of the large tree; with its links and odd names it has over 10,000 entries.
const TREE_FILES: usize = 10_000;

fn make_tree(root: &Path) {
    let odd: [&[u8]; 7] = [
        b"two words",
        b"new\nline",
        "ümläut-漢字".as_bytes(),
        b"not-utf8-\xff\xfe",
        b"-dash",
        b"back\\slash",
        b"q'uo\"te",
    ];
    fs::create_dir(root).expect("fresh");
    for index in 0..TREE_FILES {
        let folder = root.join(format!("d{:02}/e{}", index % 50, index % 4));
        fs::create_dir_all(&folder).expect("writable");
        fs::write(folder.join(format!("f{index}")), vec![b'x'; index % 300]).expect("writable");
    }
    for name in odd {
        fs::write(root.join(OsStr::from_bytes(name)), name).expect("writable");
    }
    fs::write(root.join("script"), "#!/bin/sh\n").expect("writable");
    fs::set_permissions(root.join("script"), fs::Permissions::from_mode(0o751)).expect("ours");
    symlink("script", root.join("link")).expect("fresh");
    symlink("/nowhere/at all", root.join("dangling")).expect("fresh");
    fs::hard_link(root.join("script"), root.join("hard")).expect("fresh");
    fs::create_dir(root.join("empty")).expect("fresh");
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o700)).expect("ours");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::File::open(root.join("script")).and_then(|file| file.set_modified(old)).expect("ours");
}

/// Path, kind, mode, size, time, content or target of everything below `root`.
fn describe(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut seen = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("readable") {
            let path = entry.expect("readable").path();
            let meta = fs::symlink_metadata(&path).expect("just listed");
            let name = path.strip_prefix(root).expect("below").as_os_str().as_bytes().to_vec();
            let text = if meta.is_symlink() {
                format!("link {:?}", fs::read_link(&path).expect("a link"))
            } else if meta.is_dir() {
                folders.push(path);
                format!("dir {:o}", meta.mode())
            } else {
                let content = fs::read(&path).expect("readable");
                format!("file {:o} {} {} {:?}", meta.mode(), meta.mtime(), meta.nlink(), content)
            };
            seen.insert(name, text);
        }
    }
    seen
}

#[test]
fn a_tree_of_ten_thousand_files_survives_both_ways() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        let tree = host.work_dir().join("tree");
        make_tree(&tree);
        host.own_tree(&tree);
        host.ok(&["create", "--name", "box"]);
        host.ok(&["cp", "tree", "box:/workspace/tree"]);
        let count = host.ok(&["exec", "box", "--", "sh", "-c", "find /workspace/tree -type f | tr -d '\\n' | wc -c; test -L /workspace/tree/link && stat -c %a:%Y:%h /workspace/tree/script"]);
        assert!(count.contains("751:1000000000:2"), "mode, time and links arrived: {count}");
        host.ok(&["cp", "box:/workspace/tree", "back"]);
        let (sent, back) = (describe(&tree), describe(&host.work_dir().join("back")));
        assert_eq!(sent.len(), back.len());
        for (name, text) in &sent {
            assert_eq!(Some(text), back.get(name), "{}", String::from_utf8_lossy(name));
        }
        up.stop();
        host.finish();
    }
}

#[test]
fn single_files_copy_both_ways_and_errors_name_the_path() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        host.ok(&["create", "--name", "box"]);
        fs::write(host.work_dir().join("one"), "content").expect("writable");
        host.ok(&["cp", "one", "box:/tmp/two"]);
        host.ok(&["cp", "box:/tmp/two", "three"]);
        assert_eq!(fs::read(host.work_dir().join("three")).expect("copied"), b"content");
        for (from, to, named) in
            [("missing", "box:/tmp/x", "missing"), ("box:/no/such", "x", "/no/such"), ("one", "nobox:/x", "nobox")]
        {
            let output = host.dispense(&["cp", from, to]);
            assert_ne!(output.status.code(), Some(0));
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(message.contains(named), "{message}");
        }
        up.stop();
        host.finish();
    }
}

#[track_caller]
fn refused(host: &Host, from: &str, to: &str, why: &str) {
    let output = host.dispense(&["cp", from, to]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "cp {from} {to}: {text}");
    assert!(text.contains(why), "cp {from} {to}: {text}");
}

#[test]
fn links_are_written_through_and_devices_stay_what_they_are() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        let here = host.work_dir();
        host.ok(&["create", "--name", "box"]);
        let make = "echo inside > g; touch -d @1000000000 g; echo old > real; ln -s real link; ln -s nowhere dangling; \
                    mkdir folder; ln -s ../real folder/f; mkfifo pipe";
        host.ok(&["exec", "box", "--", "sh", "-c", make]);
        for (name, text) in [("f", "outside\n"), ("target", "old\n")] {
            fs::write(here.join(name), text).expect("writable");
        }
        symlink("target", here.join("way")).expect("fresh");
        symlink("nowhere", here.join("dangling")).expect("fresh");
        host.own_tree(&here);
        host.ok(&["cp", "box:g", "way"]);
        assert!(fs::symlink_metadata(here.join("way")).expect("there").is_symlink());
        let target = fs::metadata(here.join("target")).expect("there");
        assert_eq!(
            (fs::read(here.join("target")).expect("there"), target.mtime()),
            (b"inside\n".to_vec(), 1_000_000_000)
        );
        refused(&host, "box:g", "dangling", "is a link to nowhere");
        // A pipe, which stdout is here, and a device.
        assert_eq!(host.ok(&["cp", "box:g", "/dev/stdout"]), "inside\n");
        host.ok(&["cp", "box:g", "/dev/null"]);
        assert!(!fs::metadata("/dev/null").expect("there").is_file());
        // A file that stdout is appended to.
        let mut log = fs::File::options().append(true).create(true).open(here.join("log")).expect("writable");
        std::io::Write::write_all(&mut log, b"first\n").expect("writable");
        let status = host.command(["cp", "box:g", "/dev/stdout"]).stdout(log.try_clone().expect("free")).status();
        assert!(status.expect("it starts").success());
        assert_eq!(
            fs::read(here.join("log")).expect("there"),
            b"first\ninside\n",
            "the file that is open is written, and no other"
        );
        // Into the sandbox.
        for to in ["box:link", "box:folder/f", "box:folder"] {
            host.ok(&["exec", "box", "--", "sh", "-c", "echo old > real"]);
            host.ok(&["cp", "f", to]);
            assert_eq!(
                host.ok(&["exec", "box", "--", "sh", "-c", "cat real; readlink link"]),
                "outside\nreal\n",
                "{to}"
            );
        }
        refused(&host, "f", "box:dangling", "is a link to `nowhere`, which is not there");
        refused(&host, "f", "box:pipe", "does not replace");
        refused(&host, "f", "box:/dev/null", "does not replace");
        up.stop();
        host.finish();
    }
}

#[test]
fn what_is_not_copied_is_an_error_and_a_file_of_proc_is_read() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        let here = host.work_dir();
        host.ok(&["create", "--name", "box"]);
        host.ok(&["exec", "box", "--", "sh", "-c", "echo inside > g; mkdir folder; mkfifo folder/pipe"]);
        fs::write(here.join("f"), "outside\n").expect("writable");
        let pipe = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, here.join("pipe"), rustix::fs::FileType::Fifo, pipe, 0).expect("fresh");
        refused(&host, "box:/dev/zero", "z", "is a device");
        refused(&host, "pipe", "box:folder/", "is a device, a pipe or a socket");
        refused(&host, "f", "box:/nosuch/", "no such directory");
        refused(&host, "box:g", "nodir/", "no such directory");
        refused(&host, "box:g", "f/", "not a directory");
        refused(&host, "f", "box:g/", "not a directory");
        refused(&host, "box:g", "-", "/dev/stdout");
        refused(&host, "-", "box:g", "/dev/stdout");
        assert!(!here.join("z").exists() && !here.join("nodir").exists());
        // A directory makes one, as ever.
        host.ok(&["cp", "box:folder", "made/"]);
        assert!(here.join("made").is_dir());
        host.ok(&["cp", "box:/proc/version", "version"]);
        let inside = host.ok(&["exec", "box", "--", "cat", "/proc/version"]);
        assert_eq!(fs::read_to_string(here.join("version")).expect("copied"), inside);
        host.ok(&["cp", "/proc/version", "box:version"]);
        let copied = host.ok(&["exec", "box", "--", "cat", "version"]);
        assert_eq!(copied, fs::read_to_string("/proc/version").expect("readable"));
        for (from, to, files, bytes, skipped) in
            [("box:g", "h", 1, 7, 0), ("f", "box:h", 1, 8, 0), ("box:folder", "other", 1, 0, 1)]
        {
            let text = host.ok(&["--output", "json", "cp", from, to]);
            let told: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(told, serde_json::json!({"files": files, "bytes": bytes, "skipped": skipped}), "cp {from} {to}");
        }
        let output = host.dispense(&["cp", "box:folder", "again"]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("1 devices"), "{output:?}");
        up.stop();
        host.finish();
    }
}

#[test]
fn a_copy_that_is_interrupted_leaves_no_half_of_a_file() {
    let Some(mode) = Mode::available().into_iter().next() else { return };
    let host = Host::new(mode);
    let up = host.up();
    host.ok(&["create", "--name", "box"]);
    // Without end, for a test: nothing of it stands on a disk before it is read.
    host.ok(&["exec", "box", "--", "sh", "-c", "mkdir tree; truncate -s 500G tree/large"]);
    for (from, to) in [("box:tree/large", "into/large"), ("box:tree", "into/tree")] {
        let into = host.work_dir().join("into");
        fs::create_dir_all(&into).expect("writable");
        host.own(&into);
        fs::write(into.join("large"), "before").expect("writable");
        let mut child = host.command(["cp", from, to]).spawn().expect("the binary starts");
        let sizes = || describe_sizes(&into);
        wait::until("bytes arrive", Duration::from_secs(20), sizes, |sizes| sizes.iter().any(|size| *size > 1_000_000));
        assert_eq!(fs::read(into.join("large")).expect("there"), b"before", "nothing half has the name");
        host::send(child.id(), rustix::process::Signal::INT);
        let status = child.wait().expect("ours");
        assert!(!status.success());
        assert_eq!(describe_sizes(&into), [6], "what was half is removed, what was there stays");
    }
    up.stop();
    host.finish();
}

/// Of all files below a directory.
fn describe_sizes(root: &Path) -> Vec<u64> {
    let mut sizes = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) => sizes.push(meta.len()),
                // It was removed since.
                Err(_) => {}
            }
        }
    }
    sizes
}

#[test]
fn a_hostile_sandbox_cannot_write_outside_the_destination() {
    for mode in Mode::available() {
        let host = Host::new(mode);
        let up = host.up();
        host.ok(&["create", "--name", "box"]);
        let outside = host.work_dir().join("outside");
        fs::create_dir(&outside).expect("fresh");
        host.own(&outside);
        // A link that leads out, and below it, by a swap, a directory of the same name.
        let script = format!(
            "mkdir -p /workspace/t/sub && ln -s {} /workspace/t/escape && echo x > /workspace/t/sub/f",
            outside.display()
        );
        host.ok(&["exec", "box", "--", "sh", "-c", &script]);
        host.ok(&["cp", "box:/workspace/t", "copy"]);
        assert!(
            fs::symlink_metadata(host.work_dir().join("copy/escape")).expect("copied").is_symlink(),
            "a link stays a link"
        );
        // Now the destination has the link, and the sandbox a directory of that name with a file.
        host.ok(&[
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "rm /workspace/t/escape; mkdir /workspace/t/escape; echo evil > /workspace/t/escape/evil",
        ]);
        let output = host.dispense(&["cp", "box:/workspace/t/.", "copy"]);
        assert_eq!(
            fs::read_dir(&outside).expect("ours").count(),
            0,
            "nothing left the destination ({})",
            output.status
        );
        // The same the other way: the sandbox has a link where the tree has a directory.
        fs::create_dir_all(host.work_dir().join("tree/etc")).expect("fresh");
        fs::write(host.work_dir().join("tree/etc/mark"), "mark").expect("writable");
        host.ok(&[
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "mkdir -p /workspace/into/tree && ln -s /etc /workspace/into/tree/etc",
        ]);
        host.dispense(&["cp", "tree", "box:/workspace/into"]);
        host.ok(&["exec", "box", "--", "test", "!", "-e", "/etc/mark"]);
        up.stop();
        host.finish();
    }
}
