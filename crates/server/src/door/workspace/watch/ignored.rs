//! What git would not show of a workspace: the rules of the `.gitignore` of each directory, as far as they were asked
//! for. It reads no file itself.
//!
//! A rule is for what is below its own directory, a deeper one wins, and what stands in an ignored directory is ignored
//! whatever other rules say of it.

use std::collections::{BTreeSet, HashMap};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

/// The list of one directory.
const IGNORE_FILE: &str = ".gitignore";
/// Trees of tools, which change by the thousand.
const NEVER_TOLD: [&str; 2] = [".git", "node_modules"];
/// BOUND: directories whose rules are kept, for one client. Beyond, all are asked for again.
const FOLDERS_MAX: usize = 2000;

/// Rules by directory, relative to the workspace, which is the empty path. A directory without a list has none.
#[derive(Default)]
pub(super) struct Ignored(HashMap<String, Gitignore>);

/// Every directory on the way to a path, the workspace first.
fn folders(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    std::iter::once("").chain(path.match_indices('/').map(|(at, _)| &path[..at]))
}

/// Where the list of a directory is.
pub(super) fn list_of(folder: &str) -> String {
    if folder.is_empty() { IGNORE_FILE.to_owned() } else { format!("{folder}/{IGNORE_FILE}") }
}

/// Whether a path is below a tree that no list need name.
pub(super) fn is_of_tools(path: &str) -> bool {
    path.split('/').any(|part| NEVER_TOLD.contains(&part))
}

impl Ignored {
    /// The directories on the way to a path whose rules are not known.
    pub(super) fn unknown(&self, path: &str) -> Vec<String> {
        folders(path).filter(|folder| !self.0.contains_key(*folder)).map(str::to_owned).collect()
    }

    /// Takes the list of a directory; an empty one where there is none.
    pub(super) fn learn(&mut self, folder: String, list: &str) {
        let mut builder = GitignoreBuilder::new("");
        for line in list.lines() {
            // A line that is no pattern ignores nothing.
            let _ = builder.add_line(None, line);
        }
        if self.0.len() >= FOLDERS_MAX {
            self.0.clear();
        }
        self.0.insert(folder, builder.build().unwrap_or_else(|_| Gitignore::empty()));
    }

    /// Forgets the lists that changed, and those of directories that came, went or have another name.
    pub(super) fn forget(&mut self, changed: &BTreeSet<String>) {
        self.0.retain(|folder, _| {
            let moved = changed.contains(folder) || folders(folder).any(|above| changed.contains(above));
            !moved && !changed.contains(&list_of(folder))
        });
    }

    /// Whether a change of a path is told. One of a directory itself is, as `git status` would show it.
    pub(super) fn is_told(&self, path: &str) -> bool {
        let mut above = folders(path).skip(1);
        !above.any(|folder| self.names(folder, true)) && !self.names(path, false)
    }

    /// What the nearest rule says that speaks of a path.
    fn names(&self, path: &str, is_folder: bool) -> bool {
        let rules = folders(path).rev().filter_map(|folder| {
            let below = path.strip_prefix(folder)?.trim_start_matches('/');
            Some(self.0.get(folder)?.matched(below, is_folder))
        });
        let mut speaking = rules.filter(|said| !said.is_none());
        speaking.next().is_some_and(|said| said.is_ignore())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    const LISTS: [(&str, &str); 5] = [
        ("", "*.log\n/dist\nbuild/\n!keep.log\n[\nsub/only.txt\n"),
        ("a", "!*.log\n/local\n*.tmp\n"),
        ("a/b", "important.log\n!x.tmp\n!keep/\n"),
        ("dist", "!*\n"),
        ("c", "*\n!.gitignore\n!kept\n"),
    ];

    fn learned() -> Ignored {
        let mut ignored = Ignored::default();
        for (folder, list) in LISTS {
            ignored.learn(folder.to_owned(), list);
        }
        ignored
    }

    fn git(folder: &Path, words: &[&str]) -> bool {
        let output = Command::new("git").current_dir(folder).args(words).output();
        output.expect("git is installed").status.success()
    }

    #[test]
    fn lists_of_all_directories_are_read_as_git_reads_them() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        assert!(git(folder.path(), &["init", "--quiet"]));
        for (path, list) in LISTS {
            std::fs::create_dir_all(folder.path().join(path)).expect("ours");
            std::fs::write(folder.path().join(path).join(IGNORE_FILE), list).expect("ours");
        }
        let ignored = learned();
        for (path, told) in [
            ("src/main.rs", true),
            (".gitignore", true),
            ("x.log", false),
            ("keep.log", true),
            ("deep/er/x.log", false),
            // A deeper list takes a rule back, and one below it takes that back.
            ("a/x.log", true),
            ("a/b/x.log", true),
            ("a/b/important.log", false),
            ("a/x.tmp", false),
            ("a/b/x.tmp", true),
            ("a/b/y.tmp", false),
            // With a slash a rule is for its own directory alone.
            ("a/local", false),
            ("a/b/local", true),
            ("local", true),
            ("a/dist/app.js", true),
            ("sub/only.txt", false),
            ("a/sub/only.txt", true),
            // Below what is ignored nothing is taken back.
            ("dist/app.js", false),
            ("build/app.js", false),
            ("a/build/keep.log", false),
            ("c/kept", true),
            ("c/other", false),
            ("c/d/kept", false),
        ] {
            assert_eq!(ignored.is_told(path), told, "{path}");
            assert_eq!(git(folder.path(), &["check-ignore", "--no-index", "--quiet", path]), !told, "git: {path}");
        }
    }

    #[test]
    fn a_directory_whose_list_may_have_changed_is_asked_for_again() {
        let forgotten = |changed: &str| {
            let mut ignored = learned();
            ignored.forget(&BTreeSet::from([changed.to_owned()]));
            ignored.unknown("a/b/x")
        };
        assert_eq!(forgotten("a/x"), [""; 0]);
        assert_eq!(forgotten(".gitignore"), [""]);
        assert_eq!(forgotten("a/.gitignore"), ["a"]);
        assert_eq!(forgotten("a/b"), ["a/b"]);
        assert_eq!(forgotten("a"), ["a", "a/b"]);
        assert_eq!(learned().unknown("new/x"), ["new"]);
    }

    #[test]
    fn what_is_known_is_bounded() {
        let mut ignored = Ignored::default();
        for number in 0..3 * FOLDERS_MAX {
            ignored.learn(number.to_string(), "*.log");
        }
        assert!(ignored.0.len() <= FOLDERS_MAX);
    }

    #[test]
    fn trees_of_tools_are_never_told() {
        for path in [".git/index", "a/node_modules/b/c.js", "node_modules"] {
            assert!(is_of_tools(path), "{path}");
        }
        assert!(!is_of_tools("src/node_modules.rs") && !is_of_tools(".gitignore"));
    }
}
