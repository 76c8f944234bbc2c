//! `dispense cp` from outside: trees, links, odd names, and archives that attack.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use dispense_e2e::{Host, Mode};

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
