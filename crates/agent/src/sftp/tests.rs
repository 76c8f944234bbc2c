use std::os::unix::ffi::OsStrExt;

use proptest::prelude::*;

use super::*;

/// Sends raw requests; the answers, each without its length.
fn exchange(requests: &[Vec<u8>]) -> io::Result<Vec<Vec<u8>>> {
    let mut input = Vec::new();
    for request in requests {
        input.extend_from_slice(&u32::try_from(request.len()).expect("short").to_be_bytes());
        input.extend_from_slice(request);
    }
    let mut output = Vec::new();
    serve(&input[..], &mut output)?;
    let (mut answers, mut rest) = (Vec::new(), &output[..]);
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        let (answer, next) = tail.split_at(u32::from_be_bytes(*len) as usize);
        answers.push(answer.to_vec());
        rest = next;
    }
    Ok(answers)
}

fn request(kind: u8, fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.byte(kind).u32(7);
    fill(&mut writer);
    writer.into_bytes()
}

fn status(answer: &[u8]) -> u32 {
    assert_eq!(answer[0], 101, "{answer:?}");
    u32::from_be_bytes(answer[5..9].try_into().expect("a status"))
}

#[test]
fn a_file_is_written_at_offsets_read_back_and_listed() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let name = [folder.path().as_os_str().as_encoded_bytes(), b"/odd\xffname"].concat();
    let handle = [0u8; 4];
    let second = [0, 0, 0, 1];
    let answers = exchange(&[
        vec![1, 0, 0, 0, 3],
        request(3, |w| {
            w.string(&name).u32(2 | 8 | 16).u32(4).u32(0o640);
        }),
        request(6, |w| {
            w.string(&handle).u64(3).string(b"def");
        }),
        request(6, |w| {
            w.string(&handle).u64(0).string(b"abc");
        }),
        request(4, |w| {
            w.string(&handle);
        }),
        request(3, |w| {
            w.string(&name).u32(1).u32(0);
        }),
        request(5, |w| {
            w.string(&second).u64(1).u32(4);
        }),
        request(5, |w| {
            w.string(&second).u64(6).u32(4);
        }),
        request(17, |w| {
            w.string(&name);
        }),
        request(11, |w| {
            w.string(folder.path().as_os_str().as_encoded_bytes());
        }),
        request(12, |w| {
            w.string(&[0, 0, 0, 2]);
        }),
        request(12, |w| {
            w.string(&[0, 0, 0, 2]);
        }),
    ])
    .expect("an honest client");
    assert_eq!(&answers[0][..5], [2, 0, 0, 0, 3]);
    assert_eq!(answers[2..5].iter().map(|answer| status(answer)).collect::<Vec<_>>(), [0, 0, 0]);
    assert_eq!(&answers[6][5..], [&[0, 0, 0, 4][..], b"bcde"].concat());
    assert_eq!(status(&answers[7]), Status::EOF);
    let meta = std::fs::metadata(folder.path().join(std::ffi::OsStr::from_bytes(b"odd\xffname"))).expect("written");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777, 0o640);
    assert!(answers[8].len() > 9 && answers[8][0] == 105);
    assert!(answers[10].windows(8).any(|part| part == b"odd\xffname"), "the name's own bytes");
    assert_eq!(status(&answers[11]), Status::EOF);
}

#[test]
fn what_cannot_be_done_is_refused_and_the_next_request_is_answered() {
    let long = [3u8; 5000];
    let answers = exchange(&[
        request(3, |w| {
            w.string(b"/no/such/file").u32(1).u32(0);
        }),
        request(5, |w| {
            w.string(&[9, 9, 9, 9]).u64(0).u32(1);
        }),
        request(99, |_| {}),
        request(200, |w| {
            w.string(b"nothing@example.com");
        }),
        request(17, |w| {
            w.string(&long);
        }),
        request(17, |w| {
            w.string(b"a\0b");
        }),
        request(17, |w| {
            w.u32(u32::MAX);
        }),
        request(16, |w| {
            w.string(b"/");
        }),
    ])
    .expect("an honest client");
    assert_eq!(answers[..7].iter().map(|answer| status(answer)).collect::<Vec<_>>(), [2, 4, 8, 8, 4, 5, 5]);
    assert_eq!(answers[7][0], 104);
}

#[test]
fn a_packet_that_is_too_long_ends_the_session() {
    serve(&[0xff; 64][..], &mut Vec::new()).expect_err("no honest client sends it");
}

proptest! {
    #[test]
    fn garbage_never_panics(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..8)) {
        // Only kinds that change nothing: the garbage runs on this machine's own files.
        let harmless = |packet: &Vec<u8>| packet.first().is_none_or(|kind| [1, 4, 5, 7, 8, 12, 16, 17, 19, 255].contains(kind));
        let packets: Vec<Vec<u8>> = packets.into_iter().filter(harmless).collect();
        let _ = exchange(&packets);
    }
}
