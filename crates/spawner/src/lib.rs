//! The protocol of the spawner: what the backend asks, and what comes back, over a socket pair of whole packets
//! (`SOCK_SEQPACKET`) with descriptors beside them.
//!
//! The spawner itself is the program of this crate. It is tiny and single-threaded, so that the kernel's clone
//! costs little, and short enough to be reviewed line by line: it is the only part that needs privileges.

mod packet;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use packet::{PACKET_MAX_BYTES, PacketError, receive, send};

/// What the spawner is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Starts a box. Descriptors: the agent's program, its listening socket, the status pipe's writing end, then
    /// those of [`Cgroup`].
    Spawn(Box<Spawn>),
    /// Removes a tree whose files may belong to mapped users. Descriptor: the status pipe's writing end.
    Remove {
        /// What to remove.
        path: PathBuf,
        /// Whose mapping owns it.
        users: Users,
    },
    /// Makes the sockets of a box's network `nat` in the box's own namespaces, which only a single-threaded process
    /// can enter. Descriptors: its user namespace, its network namespace, the status pipe's writing end, and a socket
    /// of whole packets on which `()` comes back with a [`Network`]'s descriptors, in the order of its fields.
    Network,
}

/// Sockets that belong to a box's network namespace and are served outside it. None of them blocks.
#[derive(Debug)]
pub struct Network {
    /// Listens for TCP, and accepts for every address (`IP_TRANSPARENT`).
    pub tcp: OwnedFd,
    /// Receives UDP for every address, and tells which it was (`IP_RECVORIGDSTADDR`).
    pub udp: OwnedFd,
    /// Sends IPv4 packets with headers of the sender's own.
    pub raw: OwnedFd,
}

/// What the spawner answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The process was made; its descriptor is beside. What it does next is told on the status pipe: its end
    /// without a byte means that the program was executed.
    Spawned {
        /// As seen by the backend.
        pid: i32,
    },
    /// It was not made.
    Failed {
        /// A fragment: what could not be done and why.
        message: String,
    },
}

/// A box to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// The root directory's mount point, on which everything is put together.
    pub root: PathBuf,
    /// Overlays, in this order; the first is the root itself.
    pub layers: Vec<Layer>,
    /// A size-limited file system for the upper layers, mounted first.
    pub disk: Option<Disk>,
    /// Whose ids the box has.
    pub users: Users,
    /// The box's host name.
    pub hostname: String,
    /// Environment of the agent, as `KEY=VALUE`.
    pub env: Vec<String>,
    /// How it joins its cgroups.
    pub cgroup: Cgroup,
    /// The compiled system call filter.
    pub seccomp: Vec<Instruction>,
    /// Nothing set-user-id is offered.
    pub no_new_privs: bool,
    /// Files written into the root when they are missing there.
    pub files: Vec<(PathBuf, String)>,
}

/// One instruction of a system call filter, as the kernel takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction(pub u16, pub u8, pub u8, pub u32);

/// One overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Below the root; empty for the root itself.
    pub target: PathBuf,
    /// The read-only template.
    pub lower: PathBuf,
    /// Where an id-mapped view of `lower` is mounted; absent where the template's ids are not mapped.
    pub mapped: Option<PathBuf>,
    /// The private layer.
    pub upper: PathBuf,
    /// The kernel's scratch directory beside it.
    pub work: PathBuf,
}

/// A size-limited file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Where.
    pub target: PathBuf,
    /// What.
    pub kind: DiskKind,
}

/// What a size-limited file system is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskKind {
    /// A tmpfs.
    Memory {
        /// Its size.
        bytes: u64,
    },
    /// An ext4 on a block device.
    Device(PathBuf),
}

/// Ids of a box.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Users {
    /// The spawner is root: the box gets `count` ids from `first` on.
    Range {
        /// Outside id of uid 0 inside.
        first: u32,
        /// How many.
        count: u32,
    },
    /// An ordinary user with a range of subordinate ids, mapped by `newuidmap` and `newgidmap`.
    Subordinate {
        /// First subordinate uid.
        uid: u32,
        /// First subordinate gid.
        gid: u32,
        /// How many.
        count: u32,
    },
    /// An ordinary user: only uid 0 inside, which is that user.
    Single,
}

/// How a box joins its cgroups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cgroup {
    /// None: the limits are not enforced.
    None,
    /// Version 1: as many descriptors of `tasks` files; and what to show inside, as name and path.
    V1 {
        /// How many descriptors.
        tasks: usize,
        /// Controllers to show read-only below `/sys/fs/cgroup`.
        show: Vec<(String, PathBuf)>,
    },
    /// Version 2: one descriptor of the cgroup's directory, and its path to show at `/sys/fs/cgroup`.
    V2 {
        /// Its path.
        show: PathBuf,
    },
}
