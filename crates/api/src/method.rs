//! The methods that an agent answers, as they stand in `Call.method` and in gRPC paths (after the first `/`).

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident = $path:literal, $access:ident;)*) => {
        /// A method that an agent answers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Method {
            $($(#[$doc])* $name,)*
        }

        impl Method {
            /// Every method.
            pub const ALL: &[Method] = &[$(Method::$name,)*];

            /// The path, e.g. `dispense.v1.FileService/StatFile`.
            pub fn path(self) -> &'static str {
                match self { $(Self::$name => $path,)* }
            }

            /// The method of a path.
            pub fn parse(path: &str) -> Option<Self> {
                match path { $($path => Some(Self::$name),)* _ => None }
            }

            /// Who may call it.
            pub fn access(self) -> Access {
                match self { $(Self::$name => Access::$access,)* }
            }
        }
    };
}

/// What a method does to the sandbox, for the authorisation table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Changes nothing.
    Read,
    /// Changes the sandbox or runs code in it.
    Write,
    /// Only the sandbox's own runner.
    Runner,
}

methods! {
    /// Starts a process that nobody is attached to.
    StartProcess = "dispense.v1.ProcessService/StartProcess", Write;
    /// Starts a process and attaches to it.
    RunProcess = "dispense.v1.ProcessService/RunProcess", Write;
    /// Attaches to a process; its input may be written.
    AttachProcess = "dispense.v1.ProcessService/AttachProcess", Write;
    /// Sends a signal.
    SignalProcess = "dispense.v1.ProcessService/SignalProcess", Write;
    /// Changes the size of a terminal.
    ResizeProcess = "dispense.v1.ProcessService/ResizeProcess", Write;
    /// Lists processes.
    ListProcesses = "dispense.v1.ProcessService/ListProcesses", Read;
    /// Reads a file.
    ReadFile = "dispense.v1.FileService/ReadFile", Read;
    /// Writes a file.
    WriteFile = "dispense.v1.FileService/WriteFile", Write;
    /// Lists a directory.
    ListDirectory = "dispense.v1.FileService/ListDirectory", Read;
    /// Looks at a file.
    StatFile = "dispense.v1.FileService/StatFile", Read;
    /// Makes a directory.
    MakeDirectory = "dispense.v1.FileService/MakeDirectory", Write;
    /// Moves a file.
    MoveFile = "dispense.v1.FileService/MoveFile", Write;
    /// Removes a file or tree.
    RemoveFile = "dispense.v1.FileService/RemoveFile", Write;
    /// Watches a tree for changes.
    WatchFiles = "dispense.v1.FileService/WatchFiles", Read;
    /// Unpacks a tar stream.
    UploadArchive = "dispense.v1.FileService/UploadArchive", Write;
    /// Packs a tree as a tar stream.
    DownloadArchive = "dispense.v1.FileService/DownloadArchive", Read;
    /// Opens a byte stream to a port.
    OpenPort = "dispense.v1.PortService/OpenPort", Write;
    /// Listens in the sandbox, for whoever calls.
    ListenPort = "dispense.v1.PortService/ListenPort", Write;
    /// Lists listening ports.
    ListPorts = "dispense.v1.PortService/ListPorts", Read;
    /// Tells when ports open and close.
    WatchPorts = "dispense.v1.PortService/WatchPorts", Read;
    /// Reports of the agent to its runner.
    Watch = "dispense.agent.v1.AgentService/Watch", Runner;
    /// Ends the sandbox's processes and the agent.
    Shutdown = "dispense.agent.v1.AgentService/Shutdown", Runner;
    /// Tells what processes inherit from now on.
    SetEnvironment = "dispense.agent.v1.AgentService/SetEnvironment", Runner;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_parses_from_its_own_path() {
        for method in Method::ALL {
            assert_eq!(Method::parse(method.path()), Some(*method));
        }
    }
}
