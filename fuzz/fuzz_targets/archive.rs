//! A tar stream from a stranger: whatever its entries say, nothing outside the directory is touched.

#![no_main]

use std::fs::{self, File};

use dispense_api::archive::unpack;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use tar::{Builder, EntryType, Header};

const ENTRIES_MAX: usize = 6;
const TEXT_MAX_BYTES: usize = 99;

/// One entry, with a header that is whole: the rest would be refused at its checksum.
#[derive(Debug, Arbitrary)]
struct Entry {
    path: Path,
    link: Path,
    kind: u8,
    mode: u32,
    data: Vec<u8>,
}

/// Made of parts that meet each other, or anything.
#[derive(Debug, Arbitrary)]
enum Path {
    Parts(Vec<Part>),
    Absolute(Vec<Part>),
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Part {
    A,
    B,
    Up,
    Here,
    Nothing,
    Witness,
}

impl Path {
    fn bytes(&self) -> Vec<u8> {
        let join = |parts: &[Part]| {
            let names = parts.iter().map(|part| match part {
                Part::A => "a",
                Part::B => "b",
                Part::Up => "..",
                Part::Here => ".",
                Part::Nothing => "",
                Part::Witness => "witness",
            });
            names.collect::<Vec<_>>().join("/")
        };
        let mut bytes = match self {
            Self::Parts(parts) => join(parts).into_bytes(),
            Self::Absolute(parts) => format!("/{}", join(parts)).into_bytes(),
            Self::Bytes(bytes) => bytes.clone(),
        };
        bytes.truncate(TEXT_MAX_BYTES);
        bytes
    }
}

fuzz_target!(|entries: Vec<Entry>| {
    let outside = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let inside = outside.path().join("inside");
    fs::create_dir(&inside).expect("ours");
    fs::write(outside.path().join("witness"), "untouched").expect("ours");
    let directory = File::open(&inside).expect("just made");
    // Entries that lead out are refused; what matters is what is left.
    let _ = unpack(archive(&entries).as_slice(), &directory, None, |_| {});
    assert_eq!(fs::read_to_string(outside.path().join("witness")).expect("there"), "untouched");
    assert_eq!(fs::read_dir(outside.path()).expect("there").count(), 2);
});

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries.iter().take(ENTRIES_MAX) {
        let mut header = Header::new_gnu();
        let (path, link) = (entry.path.bytes(), entry.link.bytes());
        header.as_old_mut().name[..path.len()].copy_from_slice(&path);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(&link);
        // Mostly files, directories and links.
        let kinds = [EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Link];
        header.set_entry_type(match kinds.get(usize::from(entry.kind)) {
            Some(kind) => *kind,
            None => EntryType::new(entry.kind),
        });
        header.set_mode(entry.mode & 0o7777);
        header.set_size(entry.data.len() as u64);
        header.set_cksum();
        builder.append(&header, entry.data.as_slice()).expect("memory takes it");
    }
    builder.into_inner().expect("memory takes it")
}
