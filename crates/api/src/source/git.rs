//! A clone of a repository, by the `git` program, on a branch.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Source, SourceError};

/// For all of git's steps. A clone on one machine is a copy of its objects.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Between two looks whether git has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Of what git says when it fails, this much of the end is told.
const MESSAGE_MAX_BYTES: usize = 1000;
/// The subcommands that are run, for errors.
const ACTIONS: &[&str] = &["bundle", "clone", "for-each-ref", "checkout", "config", "remote"];
/// Of git's output.
const OUTPUT_MAX_BYTES: u64 = 1 << 20;

/// A clone; removed when it is dropped.
pub(super) struct Clone {
    folder: PathBuf,
}

impl Drop for Clone {
    fn drop(&mut self) {
        // What cannot be removed is the scratch directory's, which its owner empties.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Clone {
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join("clone")
    }

    /// Clones `source` below `scratch`. The repository is read as `owner` (uid, gid), into a bundle; the clone is made
    /// of that.
    pub(super) fn make(source: &Source, owner: (u32, u32), scratch: &Path) -> Result<Self, SourceError> {
        let mut unique = [0; 8];
        getrandom::fill(&mut unique).map_err(|error| SourceError::NoGit(io::Error::other(error)))?;
        let folder = scratch.join(format!("dispense-clone-{:016x}", u64::from_ne_bytes(unique)));
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| SourceError::Directory { action, path, source }
        };
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(failed("make", &folder))?;
        let repository = fs::canonicalize(&source.directory).map_err(failed("look at", &source.directory))?;
        let clone = Self { folder: folder.clone() };
        let git = Git { folder, repository, owner, until: Instant::now() + TIMEOUT };
        let bundle = git.folder.join("bundle");
        git.run(git.theirs(&["bundle", "create", "--quiet", "-", "HEAD", "--branches", "--tags"]), &bundle)?;
        let mut command = git.ours(&["clone", "--quiet", "--"]);
        command.arg(&bundle).arg(clone.path());
        git.read(command)?;
        // The disk need not hold the history three times.
        let _ = fs::remove_file(&bundle);
        git.check_out(source, &clone.path())?;
        git.point_origin(&clone.path())?;
        Ok(clone)
    }
}

/// Runs git, with a time to end.
struct Git {
    folder: PathBuf,
    repository: PathBuf,
    owner: (u32, u32),
    until: Instant,
}

impl Git {
    /// A command in the repository, with the rights of its owner and no more.
    fn theirs(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.arg("-C").arg(&self.repository).args(arguments);
        if rustix::process::geteuid().is_root() && self.owner.0 != 0 {
            command.uid(self.owner.0).gid(self.owner.1).env("HOME", "/").env("GIT_CONFIG_GLOBAL", "/dev/null");
        }
        // A partial clone would fetch what it lacks, by a program that its configuration names.
        command.env("GIT_NO_LAZY_FETCH", "1").current_dir("/");
        command
    }

    /// A command that works in the scratch directory, without anybody's configuration.
    fn ours(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.args(["-c", "init.defaultBranch=main", "-c", "advice.detachedHead=false"]).args(arguments);
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").current_dir(&self.folder);
        command
    }

    /// Enters the branch: takes it as it is, or begins it.
    fn check_out(&self, source: &Source, clone: &Path) -> Result<(), SourceError> {
        let branch = source.branch.as_str();
        let inside = |arguments: &[&str]| {
            let mut command = self.ours(&["-C"]);
            command.arg(clone).args(arguments);
            command
        };
        let name = format!("refs/remotes/origin/{branch}");
        let known = self.read(inside(&["for-each-ref", "--format=%(refname)", &name]))?;
        let known = known.lines().any(|line| line == name);
        let command = match (source.reset, known) {
            (true, _) => inside(&["checkout", "--quiet", "--no-track", "-B", branch, "HEAD", "--"]),
            (false, true) => inside(&["checkout", "--quiet", branch, "--"]),
            (false, false) => inside(&["checkout", "--quiet", "--no-track", "-b", branch]),
        };
        self.read(command).map(drop)
    }

    /// The clone's origin is that of the repository, which is somewhere else for the sandbox; without it there is none.
    fn point_origin(&self, clone: &Path) -> Result<(), SourceError> {
        let url = self.read(self.theirs(&["config", "--default", "", "--get", "remote.origin.url"]))?;
        let url = without_secret(url.trim());
        let mut set = self.ours(&["-C"]);
        set.arg(clone).arg("remote");
        match url.as_str() {
            "" => set.args(["remove", "origin"]),
            url => set.args(["set-url", "--", "origin", url]),
        };
        self.read(set).map(drop)
    }

    /// Runs a command; what it wrote.
    fn read(&self, command: Command) -> Result<String, SourceError> {
        let wrote = self.folder.join("stdout");
        self.run(command, &wrote)?;
        read(&wrote).map_err(|source| SourceError::Directory { action: "read", path: wrote, source })
    }

    /// Runs a command to its end; what it writes goes into a file.
    fn run(&self, mut command: Command, wrote: &Path) -> Result<(), SourceError> {
        let action = command.get_args().filter_map(|argument| argument.to_str()).find(|word| ACTIONS.contains(word));
        let action = action.unwrap_or_default().to_owned();
        let said = self.folder.join("stderr");
        let io = |source| SourceError::Directory { action: "use", path: self.folder.clone(), source };
        let (err, out) = (fs::File::create(&said).map_err(io)?, fs::File::create(wrote).map_err(io)?);
        command.env("LC_ALL", "C").env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
        let mut child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().map_err(SourceError::NoGit)?;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(SourceError::NoGit)? {
                break status;
            }
            if Instant::now() > self.until {
                // It may have ended meanwhile.
                let _ = child.kill();
                let _ = child.wait();
                let message = format!("it did not end within {} s", TIMEOUT.as_secs());
                return Err(SourceError::Git { action, message });
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        if status.success() { Ok(()) } else { Err(SourceError::Git { action, message: tail(&said) }) }
    }
}

/// A URL without the password or token that may stand in it: a sandbox gets no credentials by accident.
fn without_secret(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find('/').unwrap_or(rest.len());
            match rest[..end].rfind('@') {
                Some(at) if scheme != "ssh" => format!("{scheme}://{}", &rest[at + 1..]),
                _ => url.to_owned(),
            }
        }
        None => url.to_owned(),
    }
}

fn tail(path: &Path) -> String {
    let text = read(path).unwrap_or_default();
    let text = text.trim();
    let start = text.len().saturating_sub(MESSAGE_MAX_BYTES);
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text[start..].to_owned()
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(OUTPUT_MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_in_a_url_stays_behind() {
        for (url, clean) in [
            ("https://token@example.com/a.git", "https://example.com/a.git"),
            ("https://user:secret@example.com/a@b.git", "https://example.com/a@b.git"),
            ("https://example.com/a@b.git", "https://example.com/a@b.git"),
            ("ssh://git@example.com/a.git", "ssh://git@example.com/a.git"),
            ("git@example.com:a.git", "git@example.com:a.git"),
            ("", ""),
        ] {
            assert_eq!(without_secret(url), clean);
        }
    }
}
