//! `dispense port forward`, while a test needs it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::host::{Host, terminate};

/// A port of a sandbox, as a port of this machine.
#[derive(Debug)]
pub struct Forward {
    child: Child,
    address: String,
}

impl Forward {
    /// Returns when it listens.
    pub fn to(host: &Host, sandbox: &str, port: u16) -> Self {
        let remote = format!("0:{port}");
        let mut command = host.command(["port", "forward", sandbox, &remote]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("it says where");
        let address = line.split(' ').next().expect("an address").to_owned();
        Self { child, address }
    }

    /// Of this machine, with its port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Of this machine.
    pub fn port(&self) -> &str {
        self.address.rsplit(':').next().expect("a port")
    }

    /// Ends it as a user does, which succeeds.
    pub fn stop(mut self) {
        terminate(self.child.id());
        assert!(self.child.wait().expect("ours").success());
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            terminate(self.child.id());
            let _ = self.child.wait();
        }
    }
}
