//! Files of a sandbox: the agent's own calls, one route each. What a file holds passes in chunks, so that its size does
//! not matter here.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use dispense_api::error::{Code, Error};
use dispense_api::limits;
use dispense_api::method::Method;
use dispense_api::v1::{self, read_file_response, write_file_request};
use futures_util::{Stream, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use prost::Message;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::range::{Wanted, Window};
use super::{Answer, Parts, Refusal, bad_query, json};
use crate::auth::Principal;
use crate::clock::micros;
use crate::door::openapi::BYTES;
use crate::door::{range_outside, read_away};
use crate::relay::Route;
use crate::relay::call::{Answers, Requests, broken};
use crate::sandbox::spec::invalid;

/// For a sandbox that waits for a runner, and again for one that starts.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A caller who sends nothing for this long is gone.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Of a listing: its entries are held until the last one is known. Some hundred thousand of them.
const LISTING_MAX_BYTES: usize = 16 << 20;
/// The bits of a mode.
const MODE_MAX: u32 = 0o7777;

/// Absolute, or relative to the sandbox's working directory.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadQuery {
    path: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WriteQuery {
    path: String,
    /// Permission bits in octal; without them those of the replaced file, or 644.
    #[serde(default)]
    mode: String,
    /// A user name or uid; without one that of the replaced file, or the sandbox's user.
    #[serde(default)]
    owner: String,
    /// Makes missing parent directories.
    #[serde(default)]
    parents: bool,
    /// Refuses when there is a file.
    #[serde(default)]
    exclusive: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StatQuery {
    path: String,
    /// Looks at the target of a symlink instead of the link.
    #[serde(default)]
    follow: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DirectoryListQuery {
    path: String,
    /// Levels below `path`, at most 64; 0 means 1.
    #[serde(default)]
    depth: u32,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DirectoryQuery {
    path: String,
    /// Makes missing parents, and succeeds when it exists.
    #[serde(default)]
    parents: bool,
    /// Permission bits in octal; without them 755.
    #[serde(default)]
    mode: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MoveQuery {
    path: String,
    to: String,
    /// Replaces what is at `to`.
    #[serde(default)]
    overwrite: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveQuery {
    path: String,
    /// A directory with all that is in it.
    #[serde(default)]
    recursive: bool,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct FileJson {
    path: String,
    /// The name's bytes in base64, when it is not UTF-8; `path` then has replacement characters.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(default)]
    raw_name: String,
    /// `file`, `directory`, `symlink` or `other`.
    kind: &'static str,
    size: u64,
    /// Permission bits in octal.
    mode: String,
    uid: u32,
    gid: u32,
    modified_at: String,
    /// Of a symlink.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(default)]
    target: String,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct FilesJson {
    files: Vec<FileJson>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct RemovedJson {
    /// Files and directories.
    removed: u64,
}

impl From<v1::File> for FileJson {
    fn from(file: v1::File) -> Self {
        let kind = match file.kind() {
            v1::FileKind::Regular => "file",
            v1::FileKind::Directory => "directory",
            v1::FileKind::Symlink => "symlink",
            v1::FileKind::Other | v1::FileKind::Unspecified => "other",
        };
        Self {
            kind,
            size: file.size,
            mode: format!("{:04o}", file.mode & MODE_MAX),
            uid: file.uid,
            gid: file.gid,
            modified_at: json::time(modified(&file)),
            raw_name: STANDARD.encode(&file.raw_name),
            path: file.path,
            target: file.target,
        }
    }
}

/// In microseconds; 0 where the agent names no time.
fn modified(file: &v1::File) -> i64 {
    let time = file.modified_at.as_ref().and_then(|at| std::time::SystemTime::try_from(*at).ok());
    time.map_or(0, micros)
}

/// The bits of an octal text; 0 where there is none.
fn mode(text: &str) -> Result<u32, Error> {
    match text {
        "" => Ok(0),
        text => u32::from_str_radix(text, 8)
            .ok()
            .filter(|mode| (1..=MODE_MAX).contains(mode))
            .ok_or_else(|| invalid("mode", "write permission bits in octal, as in 644")),
    }
}

/// One caller and one sandbox.
struct Files<'a> {
    parts: &'a Parts,
    caller: &'a Principal,
    sandbox: &'a str,
}

impl Files<'_> {
    async fn route(&self, method: Method) -> Result<Route, Error> {
        self.parts.sandboxes.seen_by(self.caller).route(self.sandbox, method, START_TIMEOUT).await
    }

    /// Calls a method of the agent with a request that names the sandbox.
    async fn ask<M: Message>(&self, method: Method, request: impl FnOnce(String) -> M) -> Result<Answers, Error> {
        let route = self.route(method).await?;
        let request = request(route.sandbox.to_string());
        self.parts.relay.ask(&route, method, &self.caller.origin, &request, START_TIMEOUT).await
    }

    /// The one answer of a method.
    async fn one<M: Message, A: Message + Default>(
        &self,
        method: Method,
        request: impl FnOnce(String) -> M,
    ) -> Result<A, Error> {
        self.ask(method, request).await?.only().await
    }

    async fn look(&self, path: &str, follow: bool) -> Result<v1::File, Error> {
        let path = path.to_owned();
        self.one(Method::StatFile, |sandbox| v1::StatFileRequest { sandbox, path, follow }).await
    }

    /// The range that a request asks for, of the file as it is now; `None` for the whole file.
    async fn window(&self, path: &str, headers: &HeaderMap) -> Result<Option<Window>, Error> {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let Some(wanted) = text(header::RANGE).and_then(Wanted::parse) else { return Ok(None) };
        let file = self.look(path, true).await?;
        // A range of another file than the caller has the rest of helps nobody.
        let is_other = text(header::IF_RANGE).is_some_and(|tag| tag != etag(&file));
        if is_other || file.kind() != v1::FileKind::Regular {
            return Ok(None);
        }
        wanted.within(file.size).map(Some).ok_or_else(|| range_outside(file.size))
    }
}

/// Changes with the content, as far as the file system tells.
fn etag(file: &v1::File) -> String {
    format!("\"{:x}-{:x}\"", file.size, modified(file))
}

/// `GET …/files`: what a file holds.
pub(super) async fn read(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
    query: Result<Query<ReadQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Answer<Response> {
    let Query(ReadQuery { path }) = query.map_err(|error| bad_query(&error))?;
    let files = Files { parts: &parts, caller: &caller, sandbox: &id };
    let window = files.window(&path, &headers).await?;
    let request = |sandbox| v1::ReadFileRequest {
        sandbox,
        path,
        offset: window.map_or(0, |window| window.offset),
        length: window.map_or(0, |window| window.length),
        beneath: String::new(),
    };
    let mut answers = files.ask(Method::ReadFile, request).await?;
    let first: v1::ReadFileResponse = answers.next().await?.ok_or_else(broken)?;
    let Some(read_file_response::Kind::File(file)) = first.kind else { return Err(broken().into()) };
    // It may have shrunk since it was looked at.
    let window = match window {
        Some(Window { offset, length }) => {
            let rest = file.size.checked_sub(offset).filter(|rest| *rest > 0);
            Some(Window { offset, length: length.min(rest.ok_or_else(|| range_outside(file.size))?) })
        }
        None => None,
    };
    // What the kernel makes up as it is read has the size 0, and a device has none.
    let sized = file.kind() == v1::FileKind::Regular && file.size > 0;
    let length = window.map(|window| window.length).or(sized.then_some(file.size));
    let mut response = Body::from_stream(content(answers, length)).into_response();
    let head = response.headers_mut();
    head.insert(header::CONTENT_TYPE, HeaderValue::from_static(BYTES));
    // A browser makes no page of it.
    head.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    head.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    head.extend(etag(&file).parse().ok().map(|value| (header::ETAG, value)));
    head.extend(length.map(|length| (header::CONTENT_LENGTH, HeaderValue::from(length))));
    if let Some(window) = window {
        head.extend(window.of(file.size).parse().ok().map(|value| (header::CONTENT_RANGE, value)));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// The data of a read, so many bytes where that is known: a file that grows meanwhile is cut there, one that shrinks is
/// an error, so that nobody takes half of it for the whole.
fn content(answers: Answers, length: Option<u64>) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((answers, length), |(mut answers, left)| async move {
        if left == Some(0) {
            return Ok(None);
        }
        let answer: Option<v1::ReadFileResponse> = answers.next().await.map_err(io::Error::other)?;
        let mut data = match (answer, left) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            (Some(v1::ReadFileResponse { kind: Some(read_file_response::Kind::Data(data)) }), _) => data,
            (Some(_), _) => return Err(io::Error::other(broken())),
        };
        let left = left.map(|left| {
            data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left - data.len() as u64
        });
        if left == Some(0) {
            answers.settle();
        }
        Ok(Some((data, (answers, left))))
    })
}

/// `PUT …/files`: a file, whole or not at all.
pub(super) async fn write(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
    query: Result<Query<WriteQuery>, QueryRejection>,
    mut request: Request,
) -> Answer<Json<FileJson>> {
    let files = Files { parts: &parts, caller: &caller, sandbox: &id };
    let written = match query {
        Ok(Query(query)) => files.write(query, &mut request).await.map_err(Refusal::from),
        Err(error) => Err(bad_query(&error)),
    };
    if written.is_err() {
        // Else a client that still sends would not see why.
        read_away(&mut request).await;
    }
    Ok(Json(written?.into()))
}

impl Files<'_> {
    async fn write(&self, query: WriteQuery, request: &mut Request) -> Result<v1::File, Error> {
        if request.headers().contains_key(header::CONTENT_RANGE) {
            return Err(invalid("content-range", "a file is written whole"));
        }
        let mode = mode(&query.mode)?;
        let WriteQuery { path, owner, parents, exclusive, .. } = query;
        let open = v1::WriteFile { path, mode, owner, parents, exclusive, beneath: String::new() };
        let open = Some(write_file_request::Kind::Open(open));
        let route = self.route(Method::WriteFile).await?;
        let first = v1::WriteFileRequest { sandbox: route.sandbox.to_string(), kind: open };
        let call = self.parts.relay.call(&route, Method::WriteFile, &self.caller.origin, &first, START_TIMEOUT);
        let answers = call.await?;
        let (requests, answer) = (answers.requests(), answers.only());
        tokio::pin!(answer);
        // An agent that refuses says so before the content has come.
        let answer = tokio::select! {
            answer = &mut answer => answer,
            sent = send(request.body_mut(), &requests) => {
                sent?;
                answer.await
            }
        };
        answer
    }
}

/// Passes a body on, and says at its end that it is whole; a body that is cut is never said to be.
async fn send(body: &mut Body, requests: &Requests) -> Result<(), Error> {
    let message =
        |data| v1::WriteFileRequest { sandbox: String::new(), kind: Some(write_file_request::Kind::Data(data)) };
    let cut = || Error::new(Code::Cancelled, "body_cut", "the body ended early: nothing was written");
    loop {
        let next = tokio::time::timeout(BODY_IDLE_TIMEOUT, body.frame()).await.map_err(|_| cut())?;
        let Some(frame) = next else { break };
        let Ok(mut data) = frame.map_err(|_| cut())?.into_data() else { continue };
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(limits::DATA_CHUNK_BYTES));
            if !requests.send(&message(chunk)).await {
                // The agent takes no more, and its answer says why.
                return Ok(());
            }
        }
    }
    requests.send(&message(Bytes::new())).await;
    Ok(())
}

/// `GET …/files/stat`.
pub(super) async fn stat(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
    query: Result<Query<StatQuery>, QueryRejection>,
) -> Answer<Json<FileJson>> {
    let Query(StatQuery { path, follow }) = query.map_err(|error| bad_query(&error))?;
    let files = Files { parts: &parts, caller: &caller, sandbox: &id };
    Ok(Json(files.look(&path, follow).await?.into()))
}

/// `GET …/files/list`.
pub(super) async fn list(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
    query: Result<Query<DirectoryListQuery>, QueryRejection>,
) -> Answer<Json<FilesJson>> {
    let Query(DirectoryListQuery { path, depth }) = query.map_err(|error| bad_query(&error))?;
    let files = Files { parts: &parts, caller: &caller, sandbox: &id };
    let request = |sandbox| v1::ListDirectoryRequest { sandbox, path, depth, beneath: String::new() };
    let mut answers = files.ask(Method::ListDirectory, request).await?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = answers.next::<v1::ListDirectoryResponse>().await? {
        bytes += batch.encoded_len();
        if bytes > LISTING_MAX_BYTES {
            let message = "the directory has more entries than one answer may hold: list fewer levels, or use gRPC";
            return Err(Refusal(Error::new(Code::ResourceExhausted, "too_large", message)));
        }
        found.extend(batch.files.into_iter().map(FileJson::from));
    }
    Ok(Json(FilesJson { files: found }))
}

/// `POST …/files/directory`.
pub(super) async fn make_directory(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
    query: Result<Query<DirectoryQuery>, QueryRejection>,
) -> Answer<(StatusCode, Json<FileJson>)> {
    let Query(DirectoryQuery { path, parents, mode: text }) = query.map_err(|error| bad_query(&error))?;
    let mode = mode(&text)?;
    let files = Files { parts: &parts, caller: &caller, sandbox: &id };
    let request = |sandbox| v1::MakeDirectoryRequest { sandbox, path, parents, mode };
    let made: v1::File = files.one(Method::MakeDirectory, request).await?;
    Ok((StatusCode::CREATED, Json(made.into())))
}

/// `POST …/files/move`.
pub(super) async fn rename(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
    query: Result<Query<MoveQuery>, QueryRejection>,
) -> Answer<Json<FileJson>> {
    let Query(MoveQuery { path: from, to, overwrite }) = query.map_err(|error| bad_query(&error))?;
    let files = Files { parts: &parts, caller: &caller, sandbox: &id };
    let request = |sandbox| v1::MoveFileRequest { sandbox, from, to, overwrite };
    let moved: v1::File = files.one(Method::MoveFile, request).await?;
    Ok(Json(moved.into()))
}

/// `DELETE …/files`.
pub(super) async fn remove(
    State(parts): State<Arc<Parts>>,
    Extension(caller): Extension<Principal>,
    Path(id): Path<String>,
    query: Result<Query<RemoveQuery>, QueryRejection>,
) -> Answer<Json<RemovedJson>> {
    let Query(RemoveQuery { path, recursive }) = query.map_err(|error| bad_query(&error))?;
    let files = Files { parts: &parts, caller: &caller, sandbox: &id };
    let request = |sandbox| v1::RemoveFileRequest { sandbox, path, recursive };
    let answer: v1::RemoveFileResponse = files.one(Method::RemoveFile, request).await?;
    Ok(Json(RemovedJson { removed: answer.removed }))
}
