//! For tests: the checker of what is left on the host.

pub mod leaks;
