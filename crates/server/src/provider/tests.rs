use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const SECRET: &str = "sk-test-0123456789abcdef";

/// One that answers every connection with the same bytes, and tells what it was asked.
struct Fake {
    address: SocketAddr,
    asked: tokio::sync::mpsc::UnboundedReceiver<String>,
}

impl Fake {
    async fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (tell, asked) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = tell.send(head(&mut stream).await);
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { address, asked }
    }

    fn provider(&self) -> Provider {
        provider(&format!("http://{}/gateway/", self.address))
    }
}

async fn head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => text.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(text).expect("text")
}

fn provider(url: &str) -> Provider {
    Provider::new(Some(&url.parse().expect("a URL")))
}

#[tokio::test]
async fn the_status_of_the_providers_answer_decides() {
    for (answer, verdict) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", Verdict::Accepted),
        ("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n", Verdict::Refused),
        ("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", Verdict::Refused),
        ("HTTP/1.1 429 Too Many Requests\r\n\r\n", Verdict::Unknown("it answered 429".into())),
        ("HTTP/1.1 500 Oh\r\n\r\n", Verdict::Unknown("it answered 500".into())),
        ("SSH-2.0-OpenSSH\r\n", Verdict::Unknown("the connection to it failed".into())),
        // Its body never ends, and nobody waits for it.
        ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n{", Verdict::Accepted),
    ] {
        let mut fake = Fake::start(answer).await;
        assert_eq!(fake.provider().ask(SECRET).await, verdict, "{answer}");
        let asked = fake.asked.recv().await.expect("it was asked");
        assert!(asked.starts_with("GET /gateway/v1/models HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("x-api-key: {SECRET}\r\n")), "{asked}");
        assert!(asked.contains("anthropic-version: 2023-06-01\r\n"), "{asked}");
    }
}

#[tokio::test]
async fn a_redirection_does_not_take_the_key_elsewhere() {
    let mut elsewhere = Fake::start("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let answer = format!("HTTP/1.1 307 There\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n", elsewhere.address);
    let fake = Fake::start(answer.leak()).await;
    assert_eq!(fake.provider().ask(SECRET).await, Verdict::Unknown("it answered 307".into()));
    assert!(elsewhere.asked.try_recv().is_err(), "nobody asked there");
}

#[tokio::test]
async fn one_that_hangs_or_is_away_or_is_not_set_says_nothing_of_the_key() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let hanging = Provider { deadline: Duration::from_millis(100), ..provider(&format!("http://{address}")) };
    assert_eq!(hanging.ask(SECRET).await, Verdict::Unknown("it did not answer within 0 s".into()));
    drop(listener);
    let away = provider(&format!("http://{address}"));
    assert_eq!(away.ask(SECRET).await, Verdict::Unknown("the connection to it failed".into()));
    let unset = Provider::new(None);
    assert_eq!(unset.ask(SECRET).await, Verdict::Unknown("this server is set to ask nobody".into()));
}
