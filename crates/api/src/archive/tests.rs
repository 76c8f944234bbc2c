use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::*;

fn destination(path: &Path) -> fs::File {
    fs::create_dir_all(path).expect("writable");
    fs::File::open(path).expect("a directory")
}

/// An archive of one entry, whose name and link are written as raw bytes, as no honest program does.
fn raw(kind: EntryType, name: &[u8], link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_mode(0o4755);
    header.set_size(content.len() as u64);
    header.set_mtime(1);
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, content).expect("in memory");
    builder.into_inner().expect("in memory")
}

/// Several archives behind each other, without the end marks between them.
fn chain(archives: &[Vec<u8>]) -> Vec<u8> {
    archives.iter().flat_map(|archive| archive[..archive.len() - 1024].to_vec()).chain(vec![0; 1024]).collect()
}

#[test]
fn a_tree_survives_with_modes_links_times_and_odd_names() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("sub/empty")).expect("fresh");
    let long = "x".repeat(200);
    for name in [&b"plain"[..], b"not-utf8-\xff", b"new\nline", long.as_bytes()] {
        fs::write(tree.join(OsStr::from_bytes(name)), name).expect("writable");
    }
    fs::set_permissions(tree.join("plain"), fs::Permissions::from_mode(0o741)).expect("ours");
    fs::hard_link(tree.join("plain"), tree.join("sub/hard")).expect("fresh");
    symlink("../outside", tree.join("sub/link")).expect("fresh");
    let mut stream = Vec::new();
    let packed = pack(&tree, Path::new("copy"), &mut stream, |_| {}).expect("readable");
    let out = folder.path().join("out");
    let unpacked = unpack(&stream[..], destination(&out), None, |_| {}).expect("honest");
    assert_eq!(packed, unpacked);
    let meta = fs::metadata(out.join("copy/plain")).expect("unpacked");
    let source = fs::metadata(tree.join("plain")).expect("there");
    assert_eq!((meta.mode() & 0o777, meta.mtime(), meta.nlink()), (0o741, source.mtime(), 2));
    assert_eq!(
        fs::read(out.join("copy").join(OsStr::from_bytes(b"not-utf8-\xff"))).expect("unpacked"),
        b"not-utf8-\xff"
    );
    assert_eq!(fs::read(out.join("copy").join(&long)).expect("unpacked"), long.as_bytes());
    assert_eq!(fs::read_link(out.join("copy/sub/link")).expect("a link"), Path::new("../outside"));
    assert!(out.join("copy/sub/empty").is_dir());
}

#[test]
fn no_entry_leaves_the_destination() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).expect("fresh");
    fs::write(outside.join("secret"), "secret").expect("fresh");
    let outside_bytes = outside.as_os_str().as_bytes();
    let absolute = [outside_bytes, b"/evil"].concat();
    let secret = [outside_bytes, b"/secret"].concat();
    let regular = |name: &[u8]| raw(EntryType::Regular, name, b"", b"evil");
    let attacks = [
        regular(b"../outside/evil"),
        regular(b"a/../../outside/evil"),
        regular(&absolute),
        raw(EntryType::Link, b"hard", &secret, b""),
        raw(EntryType::Link, b"hard", b"../outside/secret", b""),
        chain(&[raw(EntryType::Symlink, b"link", outside_bytes, b""), regular(b"link/evil")]),
        chain(&[
            raw(EntryType::Symlink, b"link", outside_bytes, b""),
            raw(EntryType::Directory, b"link/evil", b"", b""),
        ]),
        chain(&[
            raw(EntryType::Symlink, b"link", outside_bytes, b""),
            raw(EntryType::Link, b"hard", b"link/secret", b""),
        ]),
        chain(&[raw(EntryType::Symlink, b"link", outside_bytes, b""), raw(EntryType::Directory, b"link", b"", b"")]),
    ];
    for (index, attack) in attacks.iter().enumerate() {
        let out = folder.path().join(format!("out{index}"));
        unpack(&attack[..], destination(&out), None, |_| {}).expect_err("an attack is refused");
        assert_eq!(fs::read_dir(&outside).expect("ours").count(), 1, "attack {index} wrote outside");
    }
    let out = folder.path().join("control");
    unpack(&regular(b"good")[..], destination(&out), None, |_| {}).expect("the allowed neighbour works");
    assert_eq!(fs::metadata(out.join("good")).expect("unpacked").mode() & 0o7777, 0o755, "set-user-id is dropped");
}

#[test]
fn a_file_replaces_a_link_and_not_its_target() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (out, victim) = (folder.path().join("out"), folder.path().join("victim"));
    fs::create_dir(&out).expect("fresh");
    fs::write(&victim, "safe").expect("fresh");
    symlink(&victim, out.join("name")).expect("fresh");
    let archive = raw(EntryType::Regular, b"name", b"", b"new");
    unpack(&archive[..], destination(&out), None, |_| {}).expect("honest");
    assert_eq!(fs::read(&victim).expect("there"), b"safe");
    assert_eq!(fs::read(out.join("name")).expect("there"), b"new");
}

#[test]
fn devices_are_skipped_and_garbage_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let out = folder.path().join("out");
    let summary =
        unpack(&raw(EntryType::Char, b"null", b"", b"")[..], destination(&out), None, |_| {}).expect("skipped");
    assert_eq!((summary.entries, summary.skipped), (0, 1));
    unpack(&[b'x'; 2048][..], destination(&out), None, |_| {}).expect_err("no archive");
}

#[test]
fn a_pipe_is_counted_at_both_ends_and_a_file_of_proc_has_its_content() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (tree, out) = (folder.path().join("tree"), folder.path().join("out"));
    fs::create_dir(&tree).expect("fresh");
    std::os::unix::net::UnixListener::bind(tree.join("socket")).expect("fresh");
    fs::write(tree.join("file"), "content").expect("writable");
    let mut stream = Vec::new();
    let packed = pack(&tree, Path::new("."), &mut stream, |_| {}).expect("readable");
    let unpacked = unpack(&stream[..], destination(&out), None, |_| {}).expect("honest");
    assert_eq!((packed.entries, packed.skipped), (2, 1));
    assert_eq!(unpacked, packed);
    assert_eq!(fs::read_dir(&out).expect("unpacked").count(), 1);
    let mut stream = Vec::new();
    pack(Path::new("/proc/version"), Path::new("version"), &mut stream, |_| {}).expect("readable");
    unpack(&stream[..], destination(&out), None, |_| {}).expect("honest");
    assert_eq!(fs::read(out.join("version")).expect("unpacked"), fs::read("/proc/version").expect("readable"));
}

#[test]
fn a_file_that_is_cut_leaves_nothing_and_what_was_there_stays() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let out = folder.path().join("out");
    let destination = destination(&out);
    fs::write(out.join("name"), "before").expect("writable");
    let archive = raw(EntryType::Regular, b"name", b"", &[b'x'; 5000]);
    unpack(&archive[..3000], &destination, None, |_| {}).expect_err("it is cut");
    assert_eq!(fs::metadata(out.join("name")).expect("there").len(), 6);
    assert_eq!(fs::read_dir(&out).expect("ours").count(), 1, "nothing half is left");
    unpack(&archive[..], &destination, None, |_| {}).expect("whole");
    assert_eq!(fs::metadata(out.join("name")).expect("there").len(), 5000);
    assert_eq!(fs::read_dir(&out).expect("ours").count(), 1);
    fs::create_dir(out.join("folder")).expect("fresh");
    let archive = raw(EntryType::Regular, b"folder", b"", b"x");
    unpack(&archive[..], &destination, None, |_| {}).expect_err("a directory is not replaced");
    assert_eq!(fs::read_dir(&out).expect("ours").count(), 2);
}
