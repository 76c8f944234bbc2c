//! Connections of a preview that speak another protocol than HTTP, such as WebSocket.

use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::door::pulse::Pulse;
use crate::relay::port::PortStream;

/// A program whose caller has hung up says nothing for this long: the connection ends.
const HUNG_UP_TIMEOUT: Duration = Duration::from_secs(60);

/// Joins two connections, until both directions have ended.
pub(super) async fn join(theirs: OnUpgrade, ours: OnUpgrade) {
    let (Ok(theirs), Ok(ours)) = tokio::join!(theirs, ours) else { return };
    let Ok(ours) = ours.downcast::<TokioIo<PortStream>>() else {
        tracing::error!("an upgraded connection of a preview leads to no port");
        return;
    };
    let mut port = ours.io.into_inner();
    port.give_back(ours.read_buf);
    // What the caller sent last arrives, also when it hung up.
    carry(TokioIo::new(theirs), port).await.finish().await;
}

/// Passes bytes on in both directions. Returns the program's end when that has ended, or should have.
async fn carry<T, P>(theirs: T, program: P) -> P
where
    T: AsyncRead + AsyncWrite,
    P: AsyncRead + AsyncWrite + Unpin,
{
    let (mut their_reader, mut their_writer) = tokio::io::split(theirs);
    let (reader, mut writer) = tokio::io::split(program);
    let (hung_up, pulse) = (CancellationToken::new(), Pulse::default());
    let mut reader = pulse.of(reader);
    let there = async {
        tokio::io::copy(&mut their_reader, &mut writer).await?;
        hung_up.cancel();
        writer.shutdown().await
    };
    let back = async {
        tokio::io::copy(&mut reader, &mut their_writer).await?;
        their_writer.shutdown().await
    };
    // The program may have more to say to a caller who says nothing more; else it forgot to hang up.
    let forgotten = async {
        hung_up.cancelled().await;
        pulse.stopped(HUNG_UP_TIMEOUT).await;
    };
    tokio::select! {
        ended = async { tokio::try_join!(there, back) } => {
            if let Err(error) = ended {
                tracing::debug!(%error, "an upgraded connection of a preview ended");
            }
        }
        () = forgotten => tracing::debug!("a program did not end an upgraded connection that its caller had left"),
    }
    reader.into_inner().unsplit(writer)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::time::{Instant, interval};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_hang_up_is_left_when_it_says_nothing_more() {
        let (mut caller, theirs) = tokio::io::duplex(64);
        let (mut program, ours) = tokio::io::duplex(64);
        let carried = tokio::spawn(carry(theirs, ours));
        caller.write_all(b"bye").await.expect("sent");
        caller.shutdown().await.expect("half closed");
        let mut said = [0; 3];
        program.read_exact(&mut said).await.expect("it arrives");
        // It goes on for three times as long as it may be silent.
        let begun = Instant::now();
        let mut clock = interval(HUNG_UP_TIMEOUT / 2);
        for _ in 0..6 {
            clock.tick().await;
            program.write_all(b".").await.expect("still there");
            caller.read_exact(&mut said[..1]).await.expect("and passed on");
        }
        let spoken = begun.elapsed();
        carried.await.expect("it ends");
        let silent = begun.elapsed() - spoken;
        assert!(silent <= HUNG_UP_TIMEOUT + Duration::from_secs(1), "{silent:?} after {spoken:?}");
        assert_eq!(caller.read(&mut said).await.expect("the end"), 0);
    }
}
