//! Peers that send garbage, huge frames or nothing at all, on each listener: they are told or cut off, and
//! everybody else is served.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use dispense_e2e::System;

/// Longer than any bound that the listeners have.
const PATIENCE: Duration = Duration::from_secs(45);

/// What a peer gets until it is cut off, or `None` when it is not within the bound.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).expect("it accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    // It may be cut off while it still sends.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => Some(answer),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
        // Reset: cut off too.
        Err(_) => Some(answer),
    }
}

fn healthy(address: SocketAddr) {
    let answer =
        exchange(address, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

/// A gRPC call as HTTP/1.1 with the administrator's key and this body.
fn grpc(system: &System, path: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nte: trailers\r\ncontent-type: application/grpc\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
        system.key(),
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

fn attack(each: impl Fn(&System, SocketAddr) + Send + Sync + 'static) {
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let system = runtime.block_on(System::start());
    for address in [system.address(), system.runner_address()] {
        each(&system, address);
        healthy(system.address());
    }
    let runners = runtime.block_on(system.client.runners()).expect("clients are served");
    assert_eq!(runners.len(), 1, "the runner is still there");
    assert_eq!(runners[0].status(), dispense_client::v1::RunnerStatus::Available);
    runtime.block_on(system.stop());
}

#[test]
fn garbage_is_cut_off() {
    attack(|_, address| {
        let mut noise = vec![0u8; 256 << 10];
        let mut state = 0x1234_5678_9abc_def1_u64;
        for byte in &mut noise {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state.to_le_bytes()[0];
        }
        exchange(address, &noise).expect("cut off");
        exchange(address, b"\r\n\r\n\r\n\r\n\0\0\0\0").expect("cut off");
        // A greeting of HTTP/2 with a frame that announces 16 MiB.
        let mut preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        preface.extend_from_slice(&[0xff, 0xff, 0xff, 0x00, 0x00, 0, 0, 0, 1]);
        exchange(address, &preface).expect("cut off");
    });
}

#[test]
fn silence_is_cut_off() {
    attack(|_, address| {
        let starts = [&b""[..], b"G", b"GET / HTTP/1.1\r\nx: ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"];
        let peers = starts.map(|start| (start, std::thread::spawn(move || exchange(address, start))));
        for (start, peer) in peers {
            let ended = peer.join().expect("no panic");
            assert!(ended.is_some(), "{:?} must be cut off", String::from_utf8_lossy(start));
        }
    });
}

#[test]
fn headers_without_end_are_refused() {
    attack(|_, address| {
        let mut request = b"GET /healthz HTTP/1.1\r\n".to_vec();
        for index in 0..20_000 {
            request.extend_from_slice(format!("x-{index}: {}\r\n", "y".repeat(100)).as_bytes());
        }
        let answer = exchange(address, &request).expect("cut off");
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    });
}

#[test]
fn frames_of_a_gibibyte_are_refused_at_their_header() {
    attack(|system, address| {
        let huge = [0, 0x40, 0, 0, 0, 1, 2, 3];
        let paths: &[&str] = if address == system.address() {
            &[
                "/dispense.v1.SandboxService/CreateSandbox",
                "/dispense.v1.ProcessService/RunProcess",
                "/dispense.v1.FileService/WriteFile",
            ]
        } else {
            &["/dispense.runner.v1.RunnerLinkService/Attach", "/dispense.runner.v1.RunnerLinkService/Session"]
        };
        for path in paths {
            let answer = exchange(address, &grpc(system, path, &huge)).expect("an answer");
            let text = String::from_utf8_lossy(&answer).to_lowercase();
            assert!(text.contains("grpc-status:") && !text.contains("grpc-status: 0\r\n"), "{path}: {text}");
        }
    });
}

#[test]
fn a_body_over_the_bound_is_refused() {
    attack(|system, address| {
        if address != system.address() {
            return;
        }
        let body = format!("{{\"name\":\"{}\"}}", "x".repeat(8 << 20));
        let request = format!(
            "POST /api/v1/sandboxes HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
            system.key(),
            body.len()
        );
        let answer = exchange(address, request.as_bytes()).expect("an answer");
        let text = String::from_utf8_lossy(&answer);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 413"), "{text}");
    });
}

#[test]
fn messages_that_do_not_decode_are_refused_by_name() {
    attack(|system, address| {
        if address != system.address() {
            return;
        }
        for path in ["/dispense.v1.SandboxService/GetSandbox", "/dispense.v1.ProcessService/RunProcess"] {
            // A length-delimited field that ends beyond the message.
            let answer = exchange(address, &grpc(system, path, &[0, 0, 0, 0, 2, 0x0a, 0x7f])).expect("an answer");
            let text = String::from_utf8_lossy(&answer).to_lowercase();
            assert!(text.contains("grpc-status:") && !text.contains("grpc-status: 0\r\n"), "{path}: {text}");
        }
        let compressed = [1, 0, 0, 0, 2, 0x0a, 0x00];
        let path = "/dispense.v1.ProcessService/RunProcess";
        let answer = exchange(address, &grpc(system, path, &compressed)).expect("an answer");
        assert!(String::from_utf8_lossy(&answer).to_lowercase().contains("grpc-status: 12"), "unimplemented");
    });
}

#[test]
fn many_idle_connections_do_not_keep_others_out() {
    attack(|system, address| {
        let idle: Vec<TcpStream> = (0..500).map(|_| TcpStream::connect(address).expect("it accepts")).collect();
        healthy(system.address());
        drop(idle);
    });
}
