//! What an object's metadata keeps of a file: what it is, its mode and time, where a link leads. What is not there is
//! nobody's who wrote it: a file of the usual mode, of the time at which the object was written.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use object_store::{Attribute, Attributes};
use tar::{Builder, EntryType, Header};

use super::name;

/// Of a header.
const PREFIX: &str = "x-amz-meta-";
/// Octal, as `chmod` takes it.
const MODE: &str = "dispense-mode";
/// Seconds since 1970.
const TIME: &str = "dispense-mtime";
/// The target of a symbolic link, whose object is empty; as it is.
const LINK: &str = "dispense-link";
/// The same of a target that metadata cannot carry, with `%XX`.
const LINK_ESCAPED: &str = "dispense-link-escaped";
/// `directory`, whose object is empty.
const KIND: &str = "dispense-kind";
const DIRECTORY: &str = "directory";
/// `percent` where the key below the prefix is escaped.
const NAME: &str = "dispense-name";
const ESCAPED: &str = "percent";

const FILE_MODE: u32 = 0o644;
pub(super) const DIRECTORY_MODE: u32 = 0o755;
const LINK_MODE: u32 = 0o777;
const MODE_BITS: u32 = 0o777;

/// What an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    /// To where.
    Link(Vec<u8>),
}

/// What is kept of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) kind: Kind,
    pub(super) mode: Option<u32>,
    /// Seconds since 1970.
    pub(super) modified: Option<u64>,
    pub(super) is_escaped: bool,
}

/// A text of the metadata.
pub(super) fn metadata<'a>(attributes: &'a Attributes, name: &'static str) -> Option<&'a str> {
    attributes.get(&Attribute::Metadata(Cow::Borrowed(name))).map(AsRef::as_ref)
}

/// Metadata that is not ASCII, which the library refuses together with the object: where a link leads, as `save` once wrote
/// it, is escaped; what others wrote is nothing that is read here.
pub(super) fn make_readable(headers: &mut HeaderMap) {
    let is_odd = |name: &HeaderName, value: &HeaderValue| name.as_str().starts_with(PREFIX) && value.to_str().is_err();
    let odd: Vec<HeaderName> =
        headers.iter().filter(|(name, value)| is_odd(name, value)).map(|(name, _)| name.clone()).collect();
    for name in odd {
        let Some(value) = headers.remove(&name) else { continue };
        if name.as_str().strip_prefix(PREFIX) == Some(LINK)
            && let (Ok(name), Ok(value)) = (
                HeaderName::try_from(format!("{PREFIX}{LINK_ESCAPED}")),
                HeaderValue::try_from(name::ascii(value.as_bytes())),
            )
        {
            headers.insert(name, value);
        }
    }
}

impl Kept {
    pub(super) fn read(attributes: &Attributes) -> Self {
        let link = metadata(attributes, LINK_ESCAPED).map(name::unescape);
        let link = link.or_else(|| metadata(attributes, LINK).map(|target| target.as_bytes().to_vec()));
        let kind = match link {
            Some(target) => Kind::Link(target),
            None if metadata(attributes, KIND) == Some(DIRECTORY) => Kind::Directory,
            None => Kind::File,
        };
        Self {
            kind,
            mode: metadata(attributes, MODE).and_then(|text| u32::from_str_radix(text, 8).ok()),
            modified: metadata(attributes, TIME).and_then(|text| text.parse().ok()),
            is_escaped: metadata(attributes, NAME) == Some(ESCAPED),
        }
    }

    pub(super) fn write(&self) -> Attributes {
        let mut attributes = Attributes::new();
        let mut put = |name: &'static str, value: String| {
            attributes.insert(Attribute::Metadata(name.into()), value.into());
        };
        match &self.kind {
            Kind::File => {}
            Kind::Directory => put(KIND, DIRECTORY.to_owned()),
            Kind::Link(target) => match std::str::from_utf8(target) {
                Ok(plain) if plain.bytes().all(|byte| byte.is_ascii_graphic()) => put(LINK, plain.to_owned()),
                _ => put(LINK_ESCAPED, name::ascii(target)),
            },
        }
        if let (Some(mode), Kind::File | Kind::Directory) = (self.mode, &self.kind) {
            put(MODE, format!("{:o}", mode & MODE_BITS));
        }
        if let Some(modified) = self.modified {
            put(TIME, modified.to_string());
        }
        if self.is_escaped {
            put(NAME, ESCAPED.to_owned());
        }
        attributes
    }

    /// The bytes of the name that a key below the prefix stands for.
    pub(super) fn name<'a>(&self, key: &'a str) -> Cow<'a, [u8]> {
        let mut name = if self.is_escaped { name::unescape(key) } else { return key.as_bytes().into() };
        if self.kind == Kind::Directory && name.ends_with(name::INSIDE.as_bytes()) {
            name.truncate(name.len() - name::INSIDE.len());
        }
        name.into()
    }

    /// The blocks of an archive before a file's `size` bytes, which follow by themselves.
    pub(super) fn head(&self, name: &[u8], size: u64, written: u64) -> io::Result<Bytes> {
        let name = Path::new(OsStr::from_bytes(name));
        let mut header = Header::new_gnu();
        let mut builder = Builder::new(Vec::new());
        header.set_mtime(self.modified.unwrap_or(written));
        header.set_size(0);
        match &self.kind {
            Kind::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(LINK_MODE);
                builder.append_link(&mut header, name, Path::new(OsStr::from_bytes(target)))?;
            }
            Kind::Directory => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(self.mode.unwrap_or(DIRECTORY_MODE) & MODE_BITS);
                builder.append_data(&mut header, name, io::empty())?;
            }
            Kind::File => {
                header.set_entry_type(EntryType::Regular);
                header.set_mode(self.mode.unwrap_or(FILE_MODE) & MODE_BITS);
                header.set_size(size);
                builder.append_data(&mut header, name, io::empty())?;
            }
        }
        Ok(Bytes::from(std::mem::take(builder.get_mut())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_is_ascii() {
        let link = |target: &[u8]| Kind::Link(target.to_vec());
        for kind in
            [Kind::File, Kind::Directory, link(b"run"), link("é à".as_bytes()), link(b"\xff\n%41"), link(b" a ")]
        {
            let mode = (!matches!(kind, Kind::Link(_))).then_some(0o741);
            let kept = Kept { kind, mode, modified: Some(1_000_000_000), is_escaped: true };
            let attributes = kept.write();
            for (_, value) in &attributes {
                assert!(value.bytes().all(|byte| byte.is_ascii_graphic()), "{value:?}");
            }
            assert_eq!(Kept::read(&attributes), kept);
        }
    }

    #[test]
    fn the_older_form_of_a_link_is_read_as_it_stands() {
        let mut attributes = Attributes::new();
        attributes.insert(Attribute::Metadata(LINK.into()), "a%41 b".into());
        assert_eq!(Kept::read(&attributes).kind, Kind::Link(b"a%41 b".to_vec()));
    }

    #[test]
    fn metadata_that_is_not_ascii_hinders_nobody() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-amz-meta-dispense-link", "déjà"), ("x-amz-meta-author", "é"), ("x-amz-meta-a", "b")]
        {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).expect("valid"));
        }
        make_readable(&mut headers);
        assert!(headers.values().all(|value| value.to_str().is_ok()));
        assert_eq!(headers["x-amz-meta-dispense-link-escaped"], "d%C3%A9j%C3%A0");
        assert_eq!(headers.len(), 2, "{headers:?}");
    }

    #[test]
    fn an_object_of_others_is_a_file_of_the_time_it_was_written() {
        let kept = Kept::read(&Attributes::new());
        let head = kept.head(&kept.name("a%0Ab"), 3, 7).expect("in memory");
        let header = Header::from_byte_slice(&head);
        assert_eq!((header.mtime().ok(), header.mode().ok(), header.size().ok()), (Some(7), Some(0o644), Some(3)));
        assert_eq!(&*header.path_bytes(), b"a%0Ab");
    }
}
