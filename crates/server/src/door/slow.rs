//! Bodies of requests that do not come: a caller who begins one and goes silent, or drips it, holds its handler only
//! for a while.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use dispense_api::error::{Code, Error};
use http::Method;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::body::Body as GrpcBody;

/// For a body that is read as a whole, and for each part of a file.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Its caller asks as long as it likes.
const REFLECTION: &str = "/grpc.reflection.";

/// The request, whose body has an end in time.
pub(super) fn in_time(request: Request) -> Request {
    if request.body().is_end_stream() {
        return request;
    }
    // A file is as long as it is.
    let each_part = request.method() == Method::PUT;
    let late = |why: String| axum::Error::new(std::io::Error::new(std::io::ErrorKind::TimedOut, why));
    request.map(|body| Body::new(InTime { body, each_part, left: None, late }))
}

/// A call whose one message has an end in time.
pub(super) fn message_in_time(request: http::Request<GrpcBody>) -> http::Request<GrpcBody> {
    if request.body().is_end_stream() || request.uri().path().starts_with(REFLECTION) {
        return request;
    }
    let late = |why| tonic::Status::from(Error::new(Code::DeadlineExceeded, "message_late", why));
    request.map(|body| GrpcBody::new(InTime { body, each_part: false, left: None, late }))
}

struct InTime<B, L> {
    body: B,
    /// The time counts anew for each part.
    each_part: bool,
    /// Since something was waited for.
    left: Option<Pin<Box<Sleep>>>,
    /// The error for a body that did not come.
    late: L,
}

impl<B, L> http_body::Body for InTime<B, L>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    L: Fn(String) -> B::Error + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            if this.each_part {
                this.left = None;
            }
            return Poll::Ready(frame);
        }
        let left = this.left.get_or_insert_with(|| Box::pin(tokio::time::sleep(TIMEOUT)));
        left.as_mut().poll(cx).map(|()| {
            let why = format!("the rest of it did not come within {} s", TIMEOUT.as_secs());
            Some(Err((this.late)(why)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    /// Reads a body that brings a byte every so often, so many times.
    async fn read(method: Method, parts: u32, every: Duration) -> Result<usize, String> {
        let clock = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        let drip = futures_util::stream::unfold((0, clock), move |(count, mut clock)| async move {
            clock.tick().await;
            let part = Ok::<_, std::io::Error>(Bytes::from_static(b"."));
            (count < parts).then_some((part, (count + 1, clock)))
        });
        let request = http::Request::builder().method(method).body(Body::from_stream(drip)).expect("a request");
        let read = in_time(request).into_body().collect().await;
        read.map(|whole| whole.to_bytes().len()).map_err(|error| error.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_ends_and_a_long_file_goes_on() {
        let second = Duration::from_secs(1);
        assert_eq!(read(Method::POST, 40, second).await, Ok(40));
        let dripping = read(Method::POST, 80, second).await.expect_err("too slow");
        assert!(dripping.contains("did not come within 60 s"), "{dripping}");
        assert_eq!(read(Method::PUT, 400, second).await, Ok(400));
        assert!(read(Method::PUT, 2, 2 * TIMEOUT).await.is_err(), "a silence");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_come_ends_its_call_and_reflection_waits() {
        let silent = |path: &str| {
            let body = GrpcBody::new(Body::from_stream(futures_util::stream::pending::<Result<Bytes, axum::Error>>()));
            message_in_time(http::Request::builder().uri(path).body(body).expect("a request")).into_body().collect()
        };
        let late = silent("/dispense.DispenseService/GetSandbox").await.expect_err("nothing comes");
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
        let asked = silent("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
        assert!(tokio::time::timeout(10 * TIMEOUT, asked).await.is_err(), "it goes on");
    }
}
