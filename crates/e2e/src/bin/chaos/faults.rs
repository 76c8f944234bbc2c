//! What is done to the processes.

use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;

use crate::system::System;

/// Between two faults.
const PAUSE_MIN_MS: u64 = 50;
const PAUSE_MAX_MS: u64 = 600;
/// How long a process is stopped.
const STOP_MAX_MS: u64 = 1500;
/// How long one stays dead.
const DEAD_MAX_MS: u64 = 400;

/// A generator that its seed determines.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or(0) % end.max(1)
    }

    fn ms(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(low + (self.next() >> 33) % (high - low))
    }

    pub(crate) fn pause(&mut self) -> Duration {
        self.ms(PAUSE_MIN_MS, PAUSE_MAX_MS)
    }
}

/// Which fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    KillServer,
    KillRunner,
    StopServer,
    StopRunner,
    StopAgent,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::KillServer, Self::KillRunner, Self::StopServer, Self::StopRunner, Self::StopAgent];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KillServer => "kill -9 of the server",
            Self::KillRunner => "kill -9 of a runner",
            Self::StopServer => "SIGSTOP of the server",
            Self::StopRunner => "SIGSTOP of a runner",
            Self::StopAgent => "SIGSTOP of an agent",
        }
    }
}

/// A fault with its details.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    runner: usize,
    agent: Option<u32>,
    lasts: Duration,
}

impl Fault {
    pub(crate) fn choose(dice: &mut Dice, system: &System) -> Self {
        let agents = system.agents();
        let agent = agents.get(dice.below(agents.len())).copied();
        let kind = match Kind::ALL[dice.below(Kind::ALL.len())] {
            Kind::StopAgent if agent.is_none() => Kind::StopRunner,
            kind => kind,
        };
        let lasts = match kind {
            Kind::KillServer | Kind::KillRunner => dice.ms(0, DEAD_MAX_MS),
            Kind::StopServer | Kind::StopRunner | Kind::StopAgent => dice.ms(20, STOP_MAX_MS),
        };
        Self { kind, runner: dice.below(system.runners.len()), agent, lasts }
    }

    /// Lets it happen, from its beginning to its end.
    pub(crate) async fn happen(&self, system: &mut System) -> Result<()> {
        let runner = &mut system.runners[self.runner];
        match self.kind {
            Kind::KillServer => {
                system.server.kill();
                tokio::time::sleep(self.lasts).await;
                system.server.restart();
            }
            Kind::KillRunner => {
                runner.kill();
                tokio::time::sleep(self.lasts).await;
                runner.restart();
            }
            Kind::StopServer => self.stop(Some(system.server.process().pid())).await,
            Kind::StopRunner => self.stop(runner.pid()).await,
            Kind::StopAgent => self.stop(self.agent).await,
        }
        Ok(())
    }

    /// Stops a process for a while; an agent's sandbox may have been deleted meanwhile.
    async fn stop(&self, pid: Option<u32>) {
        let pid = pid.and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
        let Some(pid) = pid else { return };
        let _ = rustix::process::kill_process(pid, Signal::STOP);
        tokio::time::sleep(self.lasts).await;
        let _ = rustix::process::kill_process(pid, Signal::CONT);
    }
}
