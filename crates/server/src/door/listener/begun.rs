//! Requests of one HTTP/2 connection, on their way to tasks of their own.
//!
//! Most are answered without waiting for anything, and a task for each costs more than many an answer: its allocation, its
//! place in the runtime's list, and another thread that is woken to steal it. So the connection's task begins each request
//! itself, and only what has to wait becomes a task. It begins those that came together before it writes any answer, so
//! that one system call carries them all. Of 59,000 calls a second that made 98,000 (ADR 0026).

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use hyper::rt::Executor;

/// BOUND: of those that came together, so many are begun here, some milliseconds of work; other connections of the thread
/// wait meanwhile. The others are tasks at once, which every thread can take.
const AT_ONCE_MAX: usize = 128;

type Handler = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The requests that come while the connection is polled; `None` between.
#[derive(Clone, Default)]
pub(super) struct Begun(Arc<Mutex<Option<Vec<Handler>>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Begun {
    fn execute(&self, handler: F) {
        match &mut *self.0.lock().expect("no holder panics") {
            Some(handlers) => handlers.push(Box::pin(handler)),
            // Nobody would begin it.
            None => drop(tokio::spawn(handler)),
        }
    }
}

impl Begun {
    /// Polls the connection, and begins what came by it. Whoever answers wakes the connection, which then writes.
    pub(super) fn after<T>(&self, poll: impl FnOnce() -> T) -> T {
        *self.0.lock().expect("no holder panics") = Some(vec![]);
        let polled = catch_unwind(AssertUnwindSafe(poll));
        // Also behind a panic: each of them holds this, and would for ever.
        let handlers = mem::take(&mut *self.0.lock().expect("no holder panics"));
        begin(handlers.unwrap_or_default());
        polled.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

fn begin(handlers: Vec<Handler>) {
    for (count, mut handler) in handlers.into_iter().enumerate() {
        if count >= AT_ONCE_MAX {
            tokio::spawn(handler);
            continue;
        }
        // What it waits for need not wake it from here: its task looks again.
        let mut nobody = Context::from_waker(Waker::noop());
        let polled = catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(&mut nobody)));
        // One that panicked is over, as its task would be; it was told by the panic.
        if polled.is_ok_and(|polled| polled.is_pending()) {
            tokio::spawn(handler);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_waits_goes_on_by_itself_and_a_panic_is_its_own() {
        let begun = Begun::default();
        let (first, mut answered) = oneshot::channel();
        let (question, asked) = oneshot::channel();
        let (second, waited) = oneshot::channel();
        begun.after(|| {
            begun.execute(async { panic!("on purpose") });
            begun.execute(async move { first.send(()).expect("somebody waits") });
            begun.execute(async move { second.send(asked.await).expect("somebody waits") });
        });
        assert_eq!(answered.try_recv(), Ok(()), "answered without a task");
        question.send(7).expect("it waits");
        assert_eq!(waited.await, Ok(Ok(7)));
    }

    #[tokio::test]
    async fn of_many_those_behind_the_bound_are_tasks() {
        let begun = Begun::default();
        let ask = |_| {
            let (answer, answered) = oneshot::channel();
            begun.execute(async move { answer.send(()).expect("somebody waits") });
            answered
        };
        let mut answers: Vec<_> = begun.after(|| (0..=AT_ONCE_MAX).map(ask).collect());
        let last = answers.pop().expect("the one behind the bound");
        assert!(answers.iter_mut().all(|answered| answered.try_recv() == Ok(())));
        assert_eq!(last.await, Ok(()));
        assert_eq!(ask(0).await, Ok(()), "also what comes while nobody polls");
    }
}
