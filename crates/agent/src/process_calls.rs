//! The methods of `ProcessService`, and what the runner says of processes to come.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use dispense_api::agent::{SetEnvironmentRequest, SetEnvironmentResponse};
use dispense_api::error::{Code, Error};
use dispense_api::limits;
use dispense_api::trace::{TRACEPARENT, TraceParent};
use dispense_api::v1::{
    AttachProcessRequest, InputTaken, ListProcessesRequest, ListProcessesResponse, OutputGap, OutputStream,
    ProcessEvent, ProcessInput, ResizeProcessRequest, RunProcessRequest, SignalProcessRequest, StartProcess,
    StartProcessRequest, attach_process_request, process_event, process_input, run_process_request,
};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, watch};

use crate::call::{Requests, Responses, gone};
use crate::process::{Event, Events, Input, InputError, Process};
use crate::serve::Agent;

fn invalid(message: &str) -> Error {
    Error::new(Code::InvalidArgument, "process_invalid", message)
}

/// A program that traces goes on with its caller's trace, unless the caller says something else.
fn pass_trace(trace: &str, start: &mut StartProcess) {
    if let Ok(parent) = trace.parse::<TraceParent>()
        && start.env.len() < limits::MAP_MAX_ENTRIES
    {
        start.env.entry(TRACEPARENT.to_ascii_uppercase()).or_insert_with(|| parent.to_string());
    }
}

pub(crate) async fn start<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: StartProcessRequest = requests.only().await?;
    let mut start = request.start.ok_or_else(|| invalid("`start` is missing"))?;
    pass_trace(&requests.trace, &mut start);
    let process = agent.processes.start(start)?;
    responses.gather(&process.describe());
    Ok(())
}

pub(crate) async fn set_environment<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: SetEnvironmentRequest = requests.only().await?;
    agent.processes.set_environment(request.variables.into_iter().collect());
    responses.gather(&SetEnvironmentResponse {});
    Ok(())
}

pub(crate) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: RunProcessRequest = requests.only().await?;
    let Some(run_process_request::Kind::Start(mut start)) = request.kind else {
        return Err(invalid("the first message must have `start`"));
    };
    pass_trace(&requests.trace, &mut start);
    let writer = start.key.clone();
    let process = agent.processes.start(start)?;
    let input = agent.processes.input(&process).map(|input| (input, writer));
    let events = Events::open(process.clone(), |_| Some(0), true, true);
    let next = |request: RunProcessRequest| match request.kind {
        Some(run_process_request::Kind::Input(input)) => Some(input),
        _ => None,
    };
    carry(&process, events, input, requests, responses, next).await
}

pub(crate) async fn attach<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: AttachProcessRequest = requests.only().await?;
    let Some(attach_process_request::Kind::Open(open)) = request.kind else {
        return Err(invalid("the first message must have `open`"));
    };
    let (process, input) = agent.processes.find(open.process.clone())?;
    let offset = |kind| match kind {
        _ if open.from_end => None,
        OutputStream::Stdout => Some(open.stdout_offset),
        OutputStream::Stderr => Some(open.stderr_offset),
        OutputStream::Pty | OutputStream::Unspecified => Some(open.pty_offset),
    };
    let events = Events::open(process.clone(), offset, open.lossless, !open.no_follow);
    let next = |request: AttachProcessRequest| match request.kind {
        Some(attach_process_request::Kind::Input(input)) => Some(input),
        _ => None,
    };
    if open.writer.len() > WRITER_MAX_BYTES {
        return Err(invalid("`open.writer` is longer than 64 bytes"));
    }
    carry(&process, events, Some((input, open.writer)), requests, responses, next).await
}

/// Bytes of the name of a writer.
const WRITER_MAX_BYTES: usize = 64;

/// Carries output to the caller and input to the process until the process has ended or the caller has gone.
async fn carry<S, M>(
    process: &Arc<Process>,
    mut events: Events,
    input: Option<(Arc<Mutex<Input>>, String)>,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
    next: impl Fn(M) -> Option<ProcessInput>,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
    M: prost::Message + Default,
{
    let started = ProcessEvent { kind: Some(process_event::Kind::Started(process.describe())) };
    responses.send(&started).await.map_err(gone)?;
    let already = match &input {
        Some((input, writer)) if !writer.is_empty() => Input::taken(input, writer).await,
        _ => 0,
    };
    let (taken, mut taken_changed) = watch::channel(already);
    if already > 0 {
        taken_changed.mark_changed();
    }
    let output = async {
        loop {
            let event = tokio::select! {
                biased;
                event = events.next() => event,
                // The sender lives as long as this call.
                Ok(()) = taken_changed.changed() => {
                    let offset = *taken_changed.borrow_and_update();
                    let event = ProcessEvent { kind: Some(process_event::Kind::InputTaken(InputTaken { offset })) };
                    responses.gather(&event);
                    continue;
                }
                // Nothing is there to go with it.
                sent = responses.flush(), if responses.has_gathered() => {
                    sent.map_err(gone)?;
                    continue;
                }
            };
            match event {
                Event::Output { stream, offset, data } => {
                    responses.gather_with_payload(&output_head(stream, offset, &data), data).await.map_err(gone)?;
                    events.passed_on();
                }
                Event::Gap { stream, from, to } => {
                    let gap = OutputGap { stream: stream.into(), from, to };
                    responses.gather(&ProcessEvent { kind: Some(process_event::Kind::Gap(gap)) });
                }
                Event::Exited(exited) => {
                    responses.gather(&ProcessEvent { kind: Some(process_event::Kind::Exited(exited)) });
                    return Ok(());
                }
                Event::End => return Ok(()),
            }
        }
    };
    let pump = async {
        let Some((input, writer)) = input else { return std::future::pending().await };
        take_input(process, &input, &Writer { name: writer, taken: &taken }, requests, next).await?;
        // The output goes on; nothing more comes from this caller but its going.
        watch_for_going(requests).await
    };
    tokio::select! {
        result = output => result,
        error = pump => error,
    }
}

/// Who writes, and whom to tell how much of it was taken.
struct Writer<'a> {
    name: String,
    taken: &'a watch::Sender<u64>,
}

async fn take_input<S, M>(
    process: &Process,
    input: &Mutex<Input>,
    writer: &Writer<'_>,
    requests: &mut Requests<S>,
    next: impl Fn(M) -> Option<ProcessInput>,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
    M: prost::Message + Default,
{
    while let Some(message) = requests.next::<M>().await? {
        let Some(message) = next(message) else {
            return Err(invalid("a message after the first must have `input`"));
        };
        match message.kind {
            Some(process_input::Kind::Data(data)) => {
                // A process that does not read must not keep the call of a caller who has gone.
                tokio::select! {
                    written = write(input, writer, message.offset, &data) => written?,
                    gone = watch_for_going(requests) => return gone,
                }
            }
            Some(process_input::Kind::Eof(_)) => Input::close(input).await.map_err(input_failed)?,
            Some(process_input::Kind::Resize(size)) => process.resize(size.cols, size.rows)?,
            None => return Err(invalid("`input` is empty")),
        }
    }
    // A half-close ends the input; a cut connection does not, since its caller may come back.
    if requests.gone() { Ok(()) } else { Input::close(input).await.map_err(input_failed) }
}

async fn write(input: &Mutex<Input>, writer: &Writer<'_>, offset: u64, data: &[u8]) -> Result<(), Error> {
    if writer.name.is_empty() {
        return Input::write(input, data).await.map_err(input_failed);
    }
    let taken = Input::resume(input, &writer.name, offset, data).await.map_err(input_failed)?;
    writer.taken.send_replace(taken);
    Ok(())
}

fn input_failed(error: InputError) -> Error {
    let code = match error {
        InputError::Jump { .. } => Code::InvalidArgument,
        InputError::Write(_) => Code::Internal,
    };
    Error::new(code, "input_failed", error.to_string())
}

/// Between looks whether a silent caller has gone.
const GONE_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// Returns when the caller has gone.
pub(crate) async fn watch_for_going<S: AsyncRead + AsyncWrite + Unpin>(requests: &Requests<S>) -> Result<(), Error> {
    while !requests.gone() {
        tokio::time::sleep(GONE_INTERVAL).await;
    }
    Err(Error::new(Code::Cancelled, "gone", "the caller has gone"))
}

/// The encoding of `ProcessEvent { output: ProcessOutput { stream, offset, data } }` up to the bytes of `data`,
/// so that they are written from where they lie. A test holds it against the generated encoding.
fn output_head(stream: OutputStream, offset: u64, data: &Bytes) -> BytesMut {
    let stream_number = i32::from(stream) as u64;
    let len = data.len() as u64;
    let inner = 1
        + encoded_len_varint(stream_number)
        + if offset == 0 { 0 } else { 1 + encoded_len_varint(offset) }
        + 1
        + encoded_len_varint(len)
        + data.len();
    let mut head = BytesMut::with_capacity(32);
    encode_key(2, WireType::LengthDelimited, &mut head);
    encode_varint(inner as u64, &mut head);
    head.put_u8(0x08);
    encode_varint(stream_number, &mut head);
    if offset != 0 {
        head.put_u8(0x10);
        encode_varint(offset, &mut head);
    }
    head.put_u8(0x1a);
    encode_varint(len, &mut head);
    head
}

pub(crate) async fn signal<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: SignalProcessRequest = requests.only().await?;
    let (process, _) = agent.processes.find(request.process)?;
    let signal = i32::try_from(request.signal).ok().filter(|signal| (1..=64).contains(signal));
    let signal = signal.ok_or_else(|| invalid("`signal` is not one of 1 to 64"))?;
    process.signal(signal).map_err(|error| invalid(&format!("signal {signal} cannot be sent: {error}")))?;
    responses.gather(&process.describe());
    Ok(())
}

pub(crate) async fn resize<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: ResizeProcessRequest = requests.only().await?;
    let (process, _) = agent.processes.find(request.process)?;
    process.resize(request.cols, request.rows)?;
    responses.gather(&process.describe());
    Ok(())
}

pub(crate) async fn list<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Agent,
    requests: &mut Requests<S>,
    responses: &mut Responses<S>,
) -> Result<(), Error> {
    let request: ListProcessesRequest = requests.only().await?;
    responses.gather(&ListProcessesResponse { processes: agent.processes.list(request.all) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use dispense_api::v1::ProcessOutput;
    use prost::Message;

    use super::*;

    #[test]
    fn the_hand_made_head_is_the_generated_encoding() {
        for (offset, len) in [(0, 1), (1, 127), (300, 128), (1 << 40, 262_144)] {
            let data = Bytes::from(vec![7; len]);
            let stream = OutputStream::Stderr;
            let mut made = output_head(stream, offset, &data);
            made.extend_from_slice(&data);
            let output = ProcessOutput { stream: stream.into(), offset, data };
            let event = ProcessEvent { kind: Some(process_event::Kind::Output(output)) };
            assert_eq!(made, event.encode_to_vec());
        }
    }
}
