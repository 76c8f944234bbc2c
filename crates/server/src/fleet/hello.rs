//! What a runner says when it connects, parsed and bounded.

use dispense_api::error::Error;
use dispense_api::id::{Generation, RunnerId, SandboxId};
use dispense_api::limits;
use dispense_api::runner::{Box as BoxMessage, BoxState, Hello};
use dispense_api::v1;

use super::Facts;
use crate::placement::Room;
use crate::sandbox::lifecycle::BoxFact;
use crate::sandbox::spec::{Network, clip, invalid};

/// Boxes of one runner: a machine holds a few thousand.
const BOXES_MAX: usize = 100_000;
/// Templates, backends.
const NAMES_MAX: usize = 1024;
/// A host name has at most 253 bytes.
const NAME_MAX_BYTES: usize = 253;
/// Of a failure's sentence.
const MESSAGE_MAX_BYTES: usize = 4096;

/// A parsed hello.
pub(crate) struct Introduction {
    pub(crate) runner: Option<RunnerId>,
    pub(crate) facts: Facts,
    pub(crate) boxes: Vec<BoxReport>,
}

/// What a runner says of one box.
#[derive(Debug, Clone)]
pub(crate) struct BoxReport {
    pub(crate) sandbox: SandboxId,
    pub(crate) generation: Generation,
    pub(crate) fact: BoxFact,
    /// Of a failure.
    pub(crate) message: String,
    pub(crate) unenforced: std::collections::BTreeMap<String, String>,
}

pub(crate) fn parse(hello: Hello) -> Result<Introduction, Error> {
    let runner = match hello.runner_id.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|error| invalid("hello.runner_id", error))?),
    };
    if hello.name.is_empty() || hello.name.len() > NAME_MAX_BYTES || hello.name.chars().any(char::is_control) {
        return Err(invalid("hello.name", format_args!("`{}` is not a host name", clip(&hello.name))));
    }
    if hello.boxes.len() > BOXES_MAX || hello.templates.len() > NAMES_MAX || hello.backends.len() > NAMES_MAX {
        return Err(invalid("hello", "it lists more than a runner has"));
    }
    let too_long = |root: &String| root.len() > limits::PATH_MAX_BYTES;
    if hello.source_roots.len() > NAMES_MAX || hello.source_roots.iter().any(too_long) {
        return Err(invalid("hello.source_roots", "too many, or too long"));
    }
    if hello.labels.len() > limits::MAP_MAX_ENTRIES || hello.unenforced_limits.len() > limits::MAP_MAX_ENTRIES {
        return Err(invalid("hello.labels", "too many entries"));
    }
    let capacity = hello.capacity.unwrap_or_default();
    let networks = hello.networks.iter().filter_map(|network| match v1::Network::try_from(*network) {
        Ok(v1::Network::None) => Some(Network::None),
        Ok(v1::Network::Nat) => Some(Network::Nat),
        // Of a newer runner.
        Ok(v1::Network::Unspecified) | Err(_) => None,
    });
    let facts = Facts {
        name: hello.name,
        address: clip(&hello.address),
        capacity: Room {
            cpu_millis: capacity.cpu_millis.into(),
            memory_bytes: capacity.memory_bytes,
            disk_bytes: capacity.disk_bytes,
            sandboxes: capacity.sandboxes.into(),
        },
        labels: hello.labels.into_iter().collect(),
        backends: hello.backends,
        templates: hello.templates,
        networks: networks.collect(),
        source_roots: hello.source_roots,
        unenforced: hello.unenforced_limits.into_iter().collect(),
        disk_in_memory: clip(&hello.disk_in_memory),
        version: clip(&hello.version),
        embedded: hello.embedded,
    };
    let boxes = hello.boxes.into_iter().map(box_report).collect::<Result<_, _>>()?;
    Ok(Introduction { runner, facts, boxes })
}

/// Parses what a runner says of one box.
pub(crate) fn box_report(message: BoxMessage) -> Result<BoxReport, Error> {
    let sandbox = message.sandbox_id.parse().map_err(|error| invalid("box.sandbox_id", error))?;
    let fact = match message.state() {
        BoxState::Starting => BoxFact::Starting,
        BoxState::Running => BoxFact::Running,
        BoxState::Stopping => BoxFact::Stopping,
        BoxState::Stopped => BoxFact::Stopped,
        BoxState::Failed => BoxFact::Failed,
        BoxState::Gone => BoxFact::Gone,
        BoxState::Unspecified => return Err(invalid("box.state", "it is not set")),
    };
    let mut text = message.message;
    if text.len() > MESSAGE_MAX_BYTES {
        text = text.chars().take(MESSAGE_MAX_BYTES / 4).collect();
    }
    let unenforced = message.unenforced_limits.into_iter().take(limits::MAP_MAX_ENTRIES).collect();
    Ok(BoxReport { sandbox, generation: Generation(message.generation), fact, message: text, unenforced })
}
