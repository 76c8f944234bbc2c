//! Flags and arguments. Values are parsed by [`crate::units`], so that what gets through is valid.

mod content;
pub(crate) mod environment;
pub(crate) mod keys;
pub(crate) mod operations;
pub(crate) mod ports;
pub(crate) mod serve;
pub(crate) mod ssh;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use dispense_client::Pin;

use crate::settings::{Kind, Settings};
use crate::units::{self, Pair};

pub(crate) use content::{OfferArgs, SaveArgs, SourceArgs};

/// Dispense hands out sandboxes: isolated Linux environments for programs, people and agents.
#[derive(Parser)]
#[command(name = "dispense", version, disable_help_subcommand = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How results are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Args)]
pub(crate) struct Global {
    /// Show results as a table or as JSON
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    /// Server to use, e.g. http://127.0.0.1:8080
    #[arg(long, global = true, env = "DISPENSE_URL")]
    pub(crate) url: Option<String>,
    /// API key for that server
    #[arg(long, global = true, env = "DISPENSE_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    /// Fingerprint of the certificate of an https server, as the server prints it
    #[arg(long, global = true, env = "DISPENSE_TLS_PIN", value_name = "sha256:…")]
    pub(crate) tls_pin: Option<Pin>,
    /// Authorities that vouch for an https server, a PEM file [default: those of this machine]
    #[arg(long, global = true, env = "DISPENSE_CA_FILE", value_name = "FILE", conflicts_with = "tls_pin")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Where a local server keeps its data [default: $XDG_DATA_HOME/dispense]
    #[arg(long, global = true, env = "DISPENSE_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a command in a new sandbox, which is deleted afterwards
    Run(RunArgs),
    /// Create a sandbox and wait until it runs
    Create(CreateArgs),
    /// List sandboxes
    List(ListArgs),
    /// Show one sandbox
    Get(OneArgs),
    /// Start a stopped or failed sandbox
    Start(OneArgs),
    /// End all processes of sandboxes, keep their files
    Stop(SeveralArgs),
    /// Delete sandboxes with their files
    Delete(DeleteArgs),
    /// Run a command in a running sandbox
    Exec(ExecArgs),
    /// Attach to a process that runs in a sandbox
    Attach(AttachArgs),
    /// Show what processes of a sandbox wrote, also after its end
    Logs(LogsArgs),
    /// Show what a sandbox used over time
    Usage(UsageArgs),
    /// Show, set or remove the variables that a sandbox's processes start with
    Env(environment::EnvArgs),
    /// List processes of a sandbox
    Ps(PsArgs),
    /// Open a shell in a running sandbox
    Shell(ShellArgs),
    /// Copy files or directories: PATH SANDBOX:PATH, or SANDBOX:PATH PATH
    Cp(CpArgs),
    /// Save a sandbox's files to object storage, from where `--content` begins with them
    Save(SaveArgs),
    /// Print a link to what listens on a port of a sandbox
    Preview(ports::PreviewArgs),
    /// List ports of a sandbox that listen, or forward one to this machine
    Port(ports::PortArgs),
    /// Connect to a sandbox with ssh(1), or let other programs do so
    Ssh(ssh::SshArgs),
    /// Register public keys, for SSH clients without `dispense`
    SshKey(ssh::SshKeyArgs),
    /// List jobs: the record of each wanted change
    Jobs(JobsArgs),
    /// Keep a server and a runner running on this machine
    Up(serve::UpArgs),
    /// Run a server
    Server(serve::ServerArgs),
    /// Join a server as a runner, or list runners
    Runner(RunnerArgs),
    /// Make, list, replace and end API keys
    Key(keys::KeyArgs),
    /// Show what happens to sandboxes
    Events(operations::EventsArgs),
    /// Show who asked for what
    Audit(operations::AuditArgs),
    /// Print the description of the REST API, in OpenAPI 3.1
    Openapi,
    /// Show and change the configuration of this command
    Config(ConfigArgs),
    /// Check what this machine allows, and say what to change
    Doctor,
    /// Measure this installation through the whole API
    Bench(BenchArgs),
    /// Print the completions of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// The server behind `run`
    #[command(name = "__embedded", hide = true)]
    Embedded,
}

impl Command {
    /// Of a server.
    pub(crate) fn settings(&self) -> Result<Option<Settings>, dispense_client::Error> {
        match self {
            Self::Up(args) => args.listen.settings(Kind::Up).map(Some),
            Self::Server(args) => args.listen.settings(Kind::Server).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether it runs until it is told to end.
    pub(crate) fn is_service(&self) -> bool {
        match self {
            Self::Up(_) | Self::Server(_) | Self::Embedded => true,
            Self::Runner(args) => args.command.is_none(),
            _ => false,
        }
    }
}

/// What a new sandbox is like.
#[derive(Args, Clone)]
pub(crate) struct SpecArgs {
    /// Name of the sandbox [default: a new one]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Template to start from
    #[arg(long, default_value = "host")]
    pub(crate) template: String,
    /// Cores, e.g. 0.5 or 2
    #[arg(long, value_parser = units::cpu_millis)]
    pub(crate) cpu: Option<u32>,
    /// Memory, e.g. 512M or 2G
    #[arg(long, value_parser = units::bytes)]
    pub(crate) memory: Option<u64>,
    /// Disk space, e.g. 10G
    #[arg(long, value_parser = units::bytes)]
    pub(crate) disk: Option<u64>,
    /// Processes and threads at most
    #[arg(long)]
    pub(crate) pids: Option<u32>,
    /// Variable for every process; K alone takes the value from here
    #[arg(long, value_name = "K=V", value_parser = units::variable)]
    pub(crate) env: Vec<Pair>,
    /// File with one K=V a line
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working directory of every process
    #[arg(long)]
    pub(crate) workdir: Option<String>,
    /// User inside, by name or uid
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// What it can reach
    #[arg(long, value_enum, default_value_t = NetworkArg::None)]
    pub(crate) network: NetworkArg,
    /// Label, for filters
    #[arg(long, value_name = "K=V", value_parser = units::label)]
    pub(crate) label: Vec<Pair>,
    /// Group, for filters
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Delete it after this long, e.g. 30m or 2h
    #[arg(long, value_parser = units::duration)]
    pub(crate) ttl: Option<Duration>,
    /// Stop it when nobody has used it for this long, e.g. 30m; it starts again when it is used
    #[arg(long, value_parser = units::duration)]
    pub(crate) auto_stop: Option<Duration>,
    /// Runner by id or name, or a label K=V of runners
    #[arg(long)]
    pub(crate) target: Option<String>,
    /// Refuse where one of the limits cannot be enforced
    #[arg(long)]
    pub(crate) require_limits: bool,
    /// Neither SSH nor the workspace, and no listener of the agent inside
    #[arg(long)]
    pub(crate) skip_services: bool,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetworkArg {
    /// Loopback only
    None,
    /// Outbound connections to public addresses
    Nat,
}

#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    /// End the command after this long, e.g. 30s (exit code 124)
    #[arg(long, value_parser = units::duration)]
    pub(crate) timeout: Option<Duration>,
    /// Keep the sandbox afterwards
    #[arg(long)]
    pub(crate) keep: bool,
    /// Give the command a terminal [default: when stdin and stdout are one]
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    /// Wait this long until it runs
    #[arg(long, value_parser = units::duration, default_value = "60s")]
    pub(crate) timeout: Duration,
    /// Do not wait
    #[arg(long, conflicts_with = "source")]
    pub(crate) no_wait: bool,
    /// Taken for symmetry with `run`: a created sandbox is always kept
    #[arg(long, hide = true)]
    pub(crate) keep: bool,
}

#[derive(Args)]
pub(crate) struct ListArgs {
    /// Only this group
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Only with this label
    #[arg(long, value_name = "K=V", value_parser = units::label)]
    pub(crate) label: Vec<Pair>,
    /// Also deleted ones
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Args)]
pub(crate) struct OneArgs {
    /// Id or name
    pub(crate) sandbox: String,
}

#[derive(Args)]
pub(crate) struct SeveralArgs {
    /// Ids or names
    #[arg(required = true)]
    pub(crate) sandbox: Vec<String>,
}

#[derive(Args)]
pub(crate) struct DeleteArgs {
    /// Ids or names
    #[arg(required = true)]
    pub(crate) sandbox: Vec<String>,
    /// Also when its runner is gone; its box is removed when the runner is back
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Args)]
pub(crate) struct ExecArgs {
    /// Pass stdin on [default: unless it is a terminal]
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Start it, print its pid and leave it running
    #[arg(short, long, conflicts_with = "interactive")]
    pub(crate) detach: bool,
    /// Name of the process, for `attach` and `logs`
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Variable for the command; K alone takes the value from here
    #[arg(long, value_name = "K=V", value_parser = units::variable)]
    pub(crate) env: Vec<Pair>,
    /// Working directory
    #[arg(long)]
    pub(crate) workdir: Option<String>,
    /// User inside, by name or uid
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// End the command after this long, e.g. 30s (exit code 124)
    #[arg(long, value_parser = units::duration)]
    pub(crate) timeout: Option<Duration>,
    /// Id or name
    pub(crate) sandbox: String,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Args)]
pub(crate) struct AttachArgs {
    /// Show what it has written so far, too
    #[arg(long)]
    pub(crate) from_start: bool,
    /// Pass no stdin on
    #[arg(long)]
    pub(crate) no_stdin: bool,
    /// Id or name
    pub(crate) sandbox: String,
    /// Pid or name of the process, or PID@START of several with one pid [default: the one that started last]
    pub(crate) process: Option<String>,
}

#[derive(Args)]
pub(crate) struct UsageArgs {
    /// How far back, e.g. 30m or 7d; more than a day is told by the quarter of an hour
    #[arg(long, value_parser = units::duration, default_value = "1h")]
    pub(crate) since: Duration,
    /// Id or name
    pub(crate) sandbox: String,
}

#[derive(Args)]
pub(crate) struct LogsArgs {
    /// Go on until the process ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin at this byte of each stream
    #[arg(long, default_value_t = 0)]
    pub(crate) from: u64,
    /// Id or name
    pub(crate) sandbox: String,
    /// Pid or name of the process, or PID@START of several with one pid [default: the one that started last]
    pub(crate) process: Option<String>,
}

#[derive(Args)]
pub(crate) struct PsArgs {
    /// Also those that have ended
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Id or name
    pub(crate) sandbox: String,
}

#[derive(Args)]
pub(crate) struct ShellArgs {
    /// User inside, by name or uid
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Working directory
    #[arg(long)]
    pub(crate) workdir: Option<String>,
    /// Id or name
    pub(crate) sandbox: String,
}

#[derive(Args)]
pub(crate) struct CpArgs {
    /// PATH or SANDBOX:PATH; a path that ends in `/.` means what is in the directory
    pub(crate) from: String,
    /// PATH or SANDBOX:PATH, as cp(1) has it: into a directory, through a link, into a device such as /dev/stdout
    pub(crate) to: String,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Args)]
pub(crate) struct JobsArgs {
    /// Id or name of a sandbox, for only its jobs, or the id of one job
    #[arg(value_name = "SANDBOX|JOB")]
    pub(crate) of: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: u32,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct RunnerArgs {
    #[command(subcommand)]
    pub(crate) command: Option<RunnerCommand>,
    /// Server to join, e.g. http://server:50051
    #[arg(long, required = true, value_name = "URL")]
    pub(crate) join: Option<String>,
    /// Join token; not needed once the runner has joined
    #[arg(long, env = "DISPENSE_JOIN_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Where boxes and identity are kept [default: runner in the data directory]
    #[arg(long)]
    pub(crate) state_dir: Option<PathBuf>,
    /// Name of the runner [default: the host name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Label, for placement
    #[arg(long, value_name = "K=V", value_parser = units::label)]
    pub(crate) label: Vec<Pair>,
    #[command(flatten)]
    pub(crate) offer: OfferArgs,
}

#[derive(Subcommand)]
pub(crate) enum RunnerCommand {
    /// List runners
    List,
    /// Let a runner take nothing new; what runs there goes on
    Cordon(RunnerNameArgs),
    /// Let a runner take sandboxes again
    Uncordon(RunnerNameArgs),
    /// Let a runner take nothing new and stop its sandboxes; their files stay
    Drain(RunnerNameArgs),
}

#[derive(Args)]
pub(crate) struct RunnerNameArgs {
    /// Id or name
    pub(crate) runner: String,
}

#[derive(Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show which server is used, the settings that one here would have, and where each value comes from
    Show,
    /// Set a value
    Set {
        /// Which value
        key: ConfigKey,
        /// The value
        value: String,
    },
    /// Remove a value
    Unset {
        /// Which value
        key: ConfigKey,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConfigKey {
    /// The server
    Url,
    /// The API key for it
    ApiKey,
    /// The fingerprint of its certificate
    TlsPin,
}

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Rounds of each measurement
    #[arg(long, default_value_t = 50)]
    pub(crate) rounds: u32,
    /// Idle sandboxes for the measurement of memory
    #[arg(long, default_value_t = 50)]
    pub(crate) idle: u32,
    /// Template to measure with
    #[arg(long, default_value = "host")]
    pub(crate) template: String,
}
