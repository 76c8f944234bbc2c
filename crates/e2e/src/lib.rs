//! The whole system under test: the real `dispense` binary on the native backend, driven from outside.
//!
//! Each test makes a [`Host`]: a data directory of its own, as root or as an ordinary user. [`Host::finish`]
//! fails the test when anything of it is left on the machine.

pub mod app;
pub mod balancer;
pub mod clients;
pub mod curl;
pub mod forward;
pub mod host;
pub mod net;
pub mod pair;
pub mod postgres;
pub mod server;
pub mod site;
pub mod system;
pub mod terminal;
pub mod wait;

pub use balancer::Balancer;
pub use host::{Host, Mode, Up};
pub use pair::Pair;
pub use server::ServerProcess;
pub use system::System;
