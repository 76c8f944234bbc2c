//! A terminal that a test owns, with `dispense` on its other side.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::wait;

/// The controlling side of a terminal.
pub struct Terminal {
    control: File,
    user: OwnedFd,
    seen: Vec<u8>,
}

impl Terminal {
    /// Opens a terminal of this size.
    pub fn open(cols: u16, rows: u16) -> Self {
        let control = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a pty is free");
        grantpt(&control).expect("a fresh pty");
        unlockpt(&control).expect("a fresh pty");
        let name = ptsname(&control, Vec::new()).expect("a fresh pty");
        let user = rustix::fs::open(
            name.as_c_str(),
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .expect("the other side of our own pty");
        // Anybody may open it: the product may run as another user.
        rustix::fs::fchmod(&user, rustix::fs::Mode::from_raw_mode(0o666)).expect("our own pty");
        rustix::fs::fcntl_setfl(&control, rustix::fs::OFlags::NONBLOCK).expect("a descriptor of ours");
        let terminal = Self { control: File::from(control), user, seen: Vec::new() };
        terminal.resize(cols, rows);
        terminal
    }

    /// Changes its size, as a window manager does.
    pub fn resize(&self, cols: u16, rows: u16) {
        tcsetwinsize(&self.control, Winsize { ws_col: cols, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 })
            .expect("a terminal has a size");
    }

    /// Its present mode.
    pub fn mode(&self) -> Termios {
        tcgetattr(&self.user).expect("a terminal has a mode")
    }

    /// Starts a command with this terminal as stdin, stdout, stderr and controlling terminal.
    pub fn spawn(&self, inner: &Command) -> Child {
        let side = || Stdio::from(self.user.try_clone().expect("descriptors are free"));
        // `setsid --ctty` makes stdin the controlling terminal, which std cannot do without unsafe code.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(inner.get_program()).args(inner.get_args()).env_clear();
        command.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        if let Some(folder) = inner.get_current_dir() {
            command.current_dir(folder);
        }
        command.stdin(side()).stdout(side()).stderr(side()).process_group(0);
        command.spawn().expect("setsid is part of util-linux")
    }

    /// Types.
    pub fn write(&mut self, text: &str) {
        self.control.write_all(text.as_bytes()).expect("a terminal takes a line");
    }

    /// Waits until the screen has shown `text` since the last call; everything up to it is taken.
    pub fn expect(&mut self, text: &str) -> String {
        wait::until(
            &format!("the terminal shows {text:?}"),
            Duration::from_secs(20),
            || {
                self.read_available();
                String::from_utf8_lossy(&self.seen).into_owned()
            },
            |seen| seen.contains(text),
        );
        let seen = String::from_utf8_lossy(&self.seen).into_owned();
        let end = seen.find(text).expect("just seen") + text.len();
        self.seen = seen.as_bytes()[end..].to_vec();
        seen[..end].to_owned()
    }

    /// Reads this many bytes as they come, and drops them.
    pub fn skip(&mut self, mut count: usize) {
        const SILENCE_MAX: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };
        let mut buffer = vec![0; 64 << 10];
        while count > 0 {
            match self.control.read(&mut buffer) {
                Ok(read) => count = count.saturating_sub(read),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(&self.control, PollFlags::IN)];
                    let ready = poll(&mut fds, Some(&SILENCE_MAX)).expect("our own descriptor");
                    assert!(ready > 0, "{count} bytes more were to come");
                }
                Err(error) => panic!("{count} bytes more were to come: {error}"),
            }
        }
    }

    fn read_available(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.control.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => self.seen.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // WouldBlock, or EIO when nobody has the other side open.
                Err(_) => return,
            }
        }
    }
}
