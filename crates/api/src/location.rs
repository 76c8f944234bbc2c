//! Where a tree is.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// As object stores have it.
const BUCKET_MAX_BYTES: usize = 63;
const URL_MAX_BYTES: usize = 2048;
const SHA256_DIGITS: usize = 64;
const SHA256_FRAGMENT: &str = "sha256=";

/// A tree outside of every sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `s3://BUCKET/PREFIX`: each object below the prefix is a file.
    S3 {
        /// Its name.
        bucket: String,
        /// Without a slash at either end; empty for the whole bucket.
        prefix: String,
    },
    /// `https://HOST/PATH.tar.gz`, or `.tar`; with `#sha256=DIGITS` it must have that checksum.
    Archive {
        /// Without the fragment.
        url: String,
        /// In lower-case hex.
        sha256: Option<String>,
    },
    /// `https://HOST/PATH.git`, with `#BRANCH` a branch or tag of it: a clone.
    Git {
        /// Without the fragment.
        url: String,
        /// The repository's own choice when it is absent.
        branch: Option<String>,
    },
}

/// Whether a path or a URL is, or is below, what a runner shares. Neither a checksum nor a branch makes a URL another.
pub fn is_within(place: &str, root: &str) -> bool {
    let place = if place.starts_with('/') { place } else { place.split('#').next().unwrap_or_default() };
    Path::new(place).starts_with(root)
}

/// A text that is no location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidLocation(&'static str);

impl FromStr for Location {
    type Err = InvalidLocation;

    fn from_str(text: &str) -> Result<Self, InvalidLocation> {
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.len() > URL_MAX_BYTES || !printable {
            return Err(InvalidLocation("it is too long for a URL, or has characters that no URL has"));
        }
        let (scheme, rest) = text
            .split_once("://")
            .ok_or(InvalidLocation("use s3://BUCKET/PREFIX, https://HOST/PATH.tar.gz or https://HOST/PATH.git"))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() || host.contains('@') {
            return Err(InvalidLocation("it names no host, or has a password in it, which would be stored and shown"));
        }
        if path.split('/').any(|part| part == "..") {
            return Err(InvalidLocation("it has `..` in it"));
        }
        match scheme {
            "s3" => s3(host, path),
            "https" | "http" => over_http(text, path),
            _ => Err(InvalidLocation("use s3://BUCKET/PREFIX, https://HOST/PATH.tar.gz or https://HOST/PATH.git")),
        }
    }
}

fn s3(bucket: &str, prefix: &str) -> Result<Location, InvalidLocation> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.' | b'_');
    if bucket.len() > BUCKET_MAX_BYTES || !bucket.bytes().all(plain) {
        return Err(InvalidLocation("it names no bucket: use s3://BUCKET/PREFIX"));
    }
    Ok(Location::S3 { bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned() })
}

fn over_http(text: &str, path: &str) -> Result<Location, InvalidLocation> {
    let (url, fragment) = text.split_once('#').map_or((text, None), |(url, fragment)| (url, Some(fragment)));
    if !url.ends_with(".git") {
        return archive(url, fragment, path);
    }
    // It goes to git as an argument; git itself refuses what is no name.
    if fragment.is_some_and(|branch| branch.is_empty() || branch.starts_with('-')) {
        return Err(InvalidLocation("what stands behind `#` is not the name of a branch"));
    }
    Ok(Location::Git { url: url.to_owned(), branch: fragment.map(str::to_owned) })
}

fn archive(url: &str, fragment: Option<&str>, path: &str) -> Result<Location, InvalidLocation> {
    let sha256 = fragment.map(|fragment| {
        let digits = fragment.strip_prefix(SHA256_FRAGMENT).map(str::to_ascii_lowercase);
        let digits = digits
            .filter(|digits| digits.len() == SHA256_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        digits.ok_or(InvalidLocation("what stands behind `#` is not `sha256=` and 64 hex digits"))
    });
    let file = path.split(['?', '#']).next().unwrap_or_default();
    if ![".tar", ".tar.gz", ".tgz"].iter().any(|end| file.ends_with(end)) {
        return Err(InvalidLocation("an archive's name ends in .tar, .tar.gz or .tgz, a repository's in .git"));
    }
    Ok(Location::Archive { url: url.to_owned(), sha256: sha256.transpose()? })
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Archive { url, sha256: None } | Self::Git { url, branch: None } => write!(f, "{url}"),
            Self::Git { url, branch: Some(branch) } => write!(f, "{url}#{branch}"),
            Self::Archive { url, sha256: Some(sha256) } => write!(f, "{url}#{SHA256_FRAGMENT}{sha256}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_whole_components() {
        for (place, root, within) in [
            ("s3://code/app", "s3://code", true),
            ("s3://codes/app", "s3://code", false),
            ("https://a.org/b.git#main", "https://a.org/b.git", true),
            ("https://a.org/b.gitx#main", "https://a.org/b.git", false),
            ("/srv/code/#1", "/srv/code", true),
            ("/srv/code#1", "/srv/code", false),
        ] {
            assert_eq!(is_within(place, root), within, "{place}");
        }
    }

    #[test]
    fn locations_are_read_and_what_is_none_is_refused() {
        let s3 = |bucket: &str, prefix: &str| Location::S3 { bucket: bucket.into(), prefix: prefix.into() };
        assert_eq!("s3://code/a/b/".parse(), Ok(s3("code", "a/b")));
        assert_eq!("s3://code".parse(), Ok(s3("code", "")));
        let digits = "0A".repeat(32);
        let pinned = format!("https://example.org/a.tar.gz#sha256={digits}");
        let archive = pinned.parse::<Location>().expect("valid");
        assert_eq!(archive.to_string(), pinned.to_ascii_lowercase());
        "http://127.0.0.1:8000/a.tgz?x=1".parse::<Location>().expect("valid");
        let cloned = "https://example.org/team/code.git#feature/one".parse::<Location>().expect("valid");
        let (url, branch) = ("https://example.org/team/code.git".to_owned(), Some("feature/one".to_owned()));
        assert_eq!(cloned, Location::Git { url, branch });
        assert_eq!(cloned.to_string(), "https://example.org/team/code.git#feature/one");
        for wrong in [
            "https://example.org/code.git#--upload-pack=x",
            "https://example.org/code.git#",
            "ssh://example.org/code.git",
            "",
            "/etc",
            "s3://",
            "s3://Bucket/a",
            "s3://a/../b",
            "https://me:secret@example.org/a.tar",
            "https://example.org/a.zip",
            "https://example.org/a.tar#sha256=1",
            "https://example.org/a.tar#md5=1",
            "ftp://example.org/a.tar",
            "https://example.org/a b.tar",
            "file:///etc/a.tar",
        ] {
            assert!(wrong.parse::<Location>().is_err(), "{wrong}");
        }
    }
}
