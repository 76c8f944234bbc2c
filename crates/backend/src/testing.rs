//! For tests: the suite that every backend passes, and the checker of what is left on the host.

pub mod conformance;
pub mod leaks;
