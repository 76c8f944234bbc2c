//! Paths of events, so that one file has one name. It looks at no file: what links lead out of the workspace is the
//! agent's to refuse, which opens the path that comes of this.

use dispense_api::error::{Code, Error};

use super::ROOT;
use crate::sandbox::spec::{clip, invalid};

/// A path as it is asked for and told: without `.`, `..` and doubled slashes. The empty one is the workspace.
pub(super) fn normal(path: &str) -> Result<String, Error> {
    if path.starts_with('/') {
        return Err(absolute(path));
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if parts.pop().is_none() {
                    return Err(denied(format!("`{}` leads out of the workspace", clip(path))));
                }
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// The same of a file, which a path that ends like a directory's cannot be.
pub(super) fn normal_file(path: &str) -> Result<String, Error> {
    let normal = normal(path)?;
    match path.rsplit('/').next().unwrap_or_default() {
        "" | "." | ".." => {
            let why = format!("`{}` is the path of a directory: end it with the name of a file", clip(path));
            Err(invalid("path", why))
        }
        _ => Ok(normal),
    }
}

fn absolute(path: &str) -> Error {
    let next = match path.strip_prefix(ROOT) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            format!("write `{}`", clip(rest.trim_start_matches('/')))
        }
        _ => format!("they begin below `{ROOT}`, without a slash"),
    };
    denied(format!("`{}` is absolute, and paths are relative to the workspace: {next}", clip(path)))
}

fn denied(message: String) -> Error {
    Error::new(Code::PermissionDenied, "outside", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_has_one_name() {
        for path in ["", ".", "./", "src/..", "src/../."] {
            assert_eq!(normal(path).expect(path), "", "{path}");
        }
        for path in ["src/a.js", "./src/a.js", "src//a.js", "src/../src/a.js", "src/b/.././a.js", "a/../src/a.js"] {
            assert_eq!(normal_file(path).expect(path), "src/a.js", "{path}");
        }
        assert_eq!(normal("./src/").expect("a directory"), "src");
        assert_eq!(normal("..a/.b.").expect("names with dots"), "..a/.b.");
    }

    #[test]
    fn what_leads_out_is_refused_and_told_why() {
        for (path, why) in [
            ("..", "leads out of the workspace"),
            ("src/../../etc/passwd", "leads out of the workspace"),
            ("../workspace/a", "leads out of the workspace"),
            ("/", "relative to the workspace"),
            ("/etc/passwd", "relative to the workspace: they begin below `/workspace`"),
            ("/workspaces/a", "they begin below `/workspace`"),
            ("/workspace/src/a.js", "relative to the workspace: write `src/a.js`"),
            ("/workspace", "relative to the workspace: write ``"),
        ] {
            let error = normal(path).expect_err(path);
            assert_eq!(error.code, Code::PermissionDenied, "{path}");
            assert!(error.message.contains(why), "{path}: {error}");
        }
    }

    #[test]
    fn a_file_has_a_name() {
        for path in ["", ".", "src/", "src/.", "src/a/.."] {
            let error = normal_file(path).expect_err(path);
            assert_eq!(error.code, Code::InvalidArgument, "{path}");
            assert!(error.message.starts_with("path: "), "{error}");
        }
        assert_eq!(normal_file("../").expect_err("it leaves").code, Code::PermissionDenied);
    }
}
