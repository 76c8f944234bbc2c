//! Files of the workspace. The agent keeps every path beneath it.

use std::fmt;
use std::time::UNIX_EPOCH;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use dispense_api::error::{Code, Error};
use dispense_api::limits;
use dispense_api::method::Method;
use dispense_api::v1;
use dispense_api::v1::{read_file_response, write_file_request};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use socketioxide::extract::SocketRef;

use super::path::{normal, normal_file};
use super::{Client, ROOT, START_TIMEOUT};
use crate::relay::Origin;
use crate::sandbox::spec::{clip, invalid};

/// A file that an event carries; in base64 it fits one.
const FILE_MAX_BYTES: usize = 16 << 20;
/// Entries of one directory that an event carries.
const ENTRIES_MAX: usize = 50_000;

/// Of `updateContent`.
#[derive(Debug, Deserialize)]
pub(super) struct Update {
    pub(super) path: String,
    content: Content,
    /// `utf8` or `base64`, of text.
    #[serde(default)]
    encoding: String,
}

/// What a file is to have: text, or the bytes of a Buffer.
#[derive(Debug)]
enum Content {
    Text(String),
    Bytes(Vec<u8>),
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Content;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("text or bytes")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Content, E> {
                Ok(Content::Bytes(bytes))
            }
        }
        // The library puts a Buffer in its place only where any type is asked for.
        deserializer.deserialize_any(Any)
    }
}

impl Update {
    fn bytes(content: Content, encoding: &str) -> Result<Vec<u8>, Error> {
        match (content, encoding) {
            (Content::Bytes(bytes), "") => Ok(bytes),
            (Content::Bytes(_), _) => Err(invalid("encoding", "leave it out where `content` is a Buffer")),
            (Content::Text(text), "" | "utf8") => Ok(text.into_bytes()),
            (Content::Text(text), "base64") => {
                STANDARD.decode(&text).map_err(|_| invalid("content", "it is not base64"))
            }
            (Content::Text(_), _) => Err(invalid("encoding", "use `utf8` or `base64`")),
        }
    }
}

/// As the agent takes it: relative, and the empty path is the workspace.
fn within(path: &str) -> String {
    if path.is_empty() { ".".to_owned() } else { path.to_owned() }
}

fn too_large(what: &str) -> Error {
    let message = format!("{what}: use `dispense cp`, scp or sftp for it");
    Error::new(Code::ResourceExhausted, "too_large", message)
}

impl Client {
    /// A directory, and from now on its changes.
    pub(super) async fn list(&self, socket: &SocketRef, path: &str) -> Result<Value, Error> {
        let path = normal(path)?;
        // What changes while it is read is told after it.
        let is_new = self.watch.expect(&path).await;
        let tree = self.tree(&path).await;
        match &tree {
            Ok(tree) => self.follow(socket, &path, tree).await,
            Err(_) if is_new => self.watch.forget(&path).await,
            Err(_) => {}
        }
        tree
    }

    /// `{path, tree}`: directories first, by name. The path is a normal one.
    pub(super) async fn tree(&self, path: &str) -> Result<Value, Error> {
        let route = self.route(Method::ListDirectory).await?;
        let request = v1::ListDirectoryRequest {
            sandbox: route.sandbox.to_string(),
            path: within(path),
            depth: 1,
            beneath: ROOT.to_owned(),
        };
        let mut answers =
            self.parts.relay.ask(&route, Method::ListDirectory, &Origin::default(), &request, START_TIMEOUT).await?;
        let mut files = Vec::new();
        while let Some(v1::ListDirectoryResponse { files: batch }) = answers.next().await? {
            files.extend(batch);
            if files.len() > ENTRIES_MAX {
                return Err(too_large(&format!("the directory has more than {ENTRIES_MAX} entries")));
            }
        }
        files.sort_by_cached_key(|file| (file.kind() != v1::FileKind::Directory, file.path.clone()));
        let tree: Vec<Value> = files.iter().map(|file| entry(path, file)).collect();
        Ok(json!({"path": path, "tree": tree}))
    }

    /// `{path, content, encoding}`.
    pub(super) async fn read(&self, path: &str) -> Result<Value, Error> {
        let path = normal_file(path)?;
        let bytes = self.bytes(&path, FILE_MAX_BYTES).await?;
        Ok(match String::from_utf8(bytes) {
            Ok(text) => json!({"path": path, "content": text, "encoding": "utf8"}),
            Err(error) => json!({"path": path, "content": STANDARD.encode(error.as_bytes()), "encoding": "base64"}),
        })
    }

    /// What a file has. The path is a normal one.
    pub(super) async fn bytes(&self, path: &str, max: usize) -> Result<Vec<u8>, Error> {
        let route = self.route(Method::ReadFile).await?;
        let request = v1::ReadFileRequest {
            sandbox: route.sandbox.to_string(),
            path: within(path),
            offset: 0,
            // One more tells that there is more.
            length: max as u64 + 1,
            beneath: ROOT.to_owned(),
        };
        let mut answers =
            self.parts.relay.ask(&route, Method::ReadFile, &Origin::default(), &request, START_TIMEOUT).await?;
        let mut bytes = Vec::new();
        while let Some(v1::ReadFileResponse { kind }) = answers.next().await? {
            match kind {
                Some(read_file_response::Kind::File(file)) if file.kind() == v1::FileKind::Other => {
                    let message = format!("`{}` is a pipe, a socket or a device: read it in the terminal", clip(path));
                    return Err(Error::new(Code::FailedPrecondition, "not_a_file", message));
                }
                Some(read_file_response::Kind::Data(data)) => bytes.extend_from_slice(&data),
                Some(read_file_response::Kind::File(_)) | None => {}
            }
            if bytes.len() > max {
                return Err(too_large(&format!("the file is larger than {} MiB", max >> 20)));
            }
        }
        Ok(bytes)
    }

    /// Writes a file whole or not at all.
    pub(super) async fn write(&self, update: Update) -> Result<(), Error> {
        let path = normal_file(&update.path)?;
        let content = Update::bytes(update.content, &update.encoding)?;
        if content.len() > FILE_MAX_BYTES {
            return Err(too_large(&format!("the content is larger than {} MiB", FILE_MAX_BYTES >> 20)));
        }
        let route = self.route(Method::WriteFile).await?;
        let open = v1::WriteFile { path, beneath: ROOT.to_owned(), ..Default::default() };
        let request = |kind| v1::WriteFileRequest { sandbox: String::new(), kind: Some(kind) };
        let first = request(write_file_request::Kind::Open(open));
        let data = |data| request(write_file_request::Kind::Data(data));
        // An empty one says that the content is whole.
        let whole = data(Bytes::new());
        let content = Bytes::from(content);
        let (relay, origin) = (&self.parts.relay, Origin::default());
        if content.len() <= limits::DATA_CHUNK_BYTES {
            let all = [first, data(content), whole];
            let answers = relay.ask_all(&route, Method::WriteFile, &origin, &all, START_TIMEOUT).await?;
            return answers.only::<v1::File>().await.map(drop);
        }
        let answers = relay.call(&route, Method::WriteFile, &origin, &first, START_TIMEOUT).await?;
        let requests = answers.requests();
        let chunks = (0..content.len()).step_by(limits::DATA_CHUNK_BYTES);
        let chunks = chunks.map(|at| data(content.slice(at..content.len().min(at + limits::DATA_CHUNK_BYTES))));
        for message in chunks.chain([whole]) {
            if !requests.send(&message).await {
                // The agent stopped taking it, and says why.
                break;
            }
        }
        answers.only::<v1::File>().await.map(drop)
    }
}

/// `{name, path, type, size, modified}`. A name that is not UTF-8 is shown with replacement characters, and its bytes
/// are in `rawName`, in base64: events carry no such path.
fn entry(folder: &str, file: &v1::File) -> Value {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
    let modified = file.modified_at.as_ref().and_then(|at| std::time::SystemTime::try_from(*at).ok());
    let modified = modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_millis());
    let kind = if file.kind() == v1::FileKind::Directory { "dir" } else { "file" };
    let mut entry = json!({
        "name": name, "path": path, "type": kind, "size": file.size, "modified": u64::try_from(modified).unwrap_or(0),
    });
    if !file.raw_name.is_empty() {
        entry["rawName"] = STANDARD.encode(&file.raw_name).into();
    }
    entry
}
