//! The bound of everything that comes from outside. A constant's name ends in its unit and its comment says
//! where the value comes from.

/// Largest message a client may send in one frame: a tar or file chunk is at most 1 MiB, the rest is room
/// for long argument lists (the kernel's own bound is 2 MiB).
pub const REQUEST_MESSAGE_MAX_BYTES: usize = 4 << 20;
/// Largest message an agent may answer with in one frame: listings are sent in batches far below this.
pub const RESPONSE_MESSAGE_MAX_BYTES: usize = 4 << 20;
/// What one frame of file or process data carries. Larger gains nothing measurable and costs memory a stream.
pub const DATA_CHUNK_BYTES: usize = 256 << 10;
/// HTTP/2 window of one stream: keeps a stream busy over 20 ms of round trip at 100 MB/s.
pub const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// HTTP/2 window of a connection: a runner's sessions share one. 512 streams whose readers have stopped do not
/// fill it, so they hold up nobody else; what is buffered is bounded by the windows of the streams.
pub const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;
/// HTTP/2 frame: fewer, larger frames make bulk output cheaper.
pub const HTTP2_FRAME_BYTES: u32 = 256 << 10;
/// What one process keeps of each output stream for readers that come or come back later.
pub const JOURNAL_BYTES: usize = 4 << 20;

/// Least and most cores a sandbox may ask for, in thousandths.
pub const CPU_MILLIS: std::ops::RangeInclusive<u32> = 10..=512_000;
/// Least and most memory of a sandbox: the agent and a shell need 16 MiB.
pub const MEMORY_BYTES: std::ops::RangeInclusive<u64> = (16 << 20)..=(16 << 40);
/// Least and most disk of a sandbox.
pub const DISK_BYTES: std::ops::RangeInclusive<u64> = (1 << 20)..=(64 << 40);
/// Least and most processes and threads of a sandbox: the agent itself needs a handful.
pub const PIDS: std::ops::RangeInclusive<u32> = 16..=4_194_304;

/// Environment variables, labels: entries of one map.
pub const MAP_MAX_ENTRIES: usize = 256;
/// Bytes of one map key or label value.
pub const MAP_KEY_MAX_BYTES: usize = 256;
/// Bytes of one environment value: the kernel takes at most 128 KiB.
pub const ENV_VALUE_MAX_BYTES: usize = 128 << 10;
/// Bytes of a path, as in the kernel.
pub const PATH_MAX_BYTES: usize = 4096;
/// Sandboxes or jobs on one page at most, and by default.
pub const PAGE_MAX: u32 = 1000;
/// Sandboxes or jobs on one page when the caller does not say.
pub const PAGE_DEFAULT: u32 = 100;
/// Longest wait that a call may ask for: one hour.
pub const WAIT_MAX_SECS: u32 = 3600;
/// Wait when the caller does not say.
pub const WAIT_DEFAULT_SECS: u32 = 60;
/// Longest TTL: ten years.
pub const TTL_MAX_SECS: u32 = 315_360_000;

/// Ports inside a sandbox that mean something.
pub mod ports {
    /// Socket.IO: the workspace.
    pub const WORKSPACE: u16 = 3001;
    /// SSH, where the sandbox's creator says nothing else (`AGENT_SSH_PORT`).
    pub const SSH: u16 = 2222;
    /// The variable that chooses another one.
    pub const SSH_VARIABLE: &str = "AGENT_SSH_PORT";

    /// The port that a variable chooses, or the default where it says nothing that can be; none with 0.
    pub fn chosen(value: Option<&str>, default: u16) -> Option<u16> {
        let port = value.and_then(|text| text.parse().ok()).unwrap_or(default);
        (port > 0).then_some(port)
    }
}

/// Default of each limit of a sandbox whose caller does not say: what a small build needs.
pub mod default {
    /// Cores in thousandths.
    pub const CPU_MILLIS: u32 = 2000;
    /// Memory.
    pub const MEMORY_BYTES: u64 = 2 << 30;
    /// Processes and threads.
    pub const PIDS: u32 = 1024;
}

/// Reports of agents.
pub mod reports {
    use std::ops::RangeInclusive;
    use std::time::Duration;

    /// Sets the time between two, as Go writes times.
    pub const VARIABLE: &str = "AGENT_REPORT_INTERVAL";
    /// When nothing is said.
    pub const INTERVAL: Duration = Duration::from_secs(30);
    /// Of a sandbox: more often is load, and less often than this nobody would notice its loss.
    pub const INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

    /// The value of the variable of a sandbox; `None` where it cannot be.
    pub fn chosen(text: &str) -> Option<Duration> {
        crate::duration::parse_duration(text).filter(|interval| INTERVALS.contains(interval))
    }
}
