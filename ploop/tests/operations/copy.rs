//! Receiving a copy. The stream is made by hand: only a driver can send one.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;

use ploop::{ErrorKind, copy};
use std::os::fd::AsFd;

use crate::refused::refused;

const MARKER: u32 = 0x4cc0_ac3d;

fn block(position: u64, data: &[u8]) -> Vec<u8> {
    let mut block = header(MARKER, data.len() as u32, position);
    block.extend(data);
    block
}

/// A length of 4 asks for a sync and an answer; 0 is the end.
fn header(marker: u32, size: u32, position: u64) -> Vec<u8> {
    let mut header = marker.to_ne_bytes().to_vec();
    header.extend(size.to_ne_bytes());
    header.extend(position.to_ne_bytes());
    header
}

fn sync() -> Vec<u8> {
    let mut block = header(MARKER, 4, 0);
    block.extend(0u32.to_ne_bytes());
    block
}

fn end() -> Vec<u8> {
    header(MARKER, 0, 0)
}

struct Received {
    dir: tempfile::TempDir,
    result: ploop::Result<()>,
}

impl Received {
    fn file(&self) -> PathBuf {
        self.dir.path().join("received")
    }
}

fn receive(stream: Vec<u8>) -> Received {
    let dir = tempfile::tempdir().unwrap();
    let (mut sender, receiver) = UnixStream::pair().unwrap();
    let sending = thread::spawn(move || {
        // A receiver that has given up does not read on.
        let _ = sender.write_all(&stream);
    });
    let result = copy::receive(dir.path().join("received"), &receiver, None);
    drop(receiver);
    sending.join().unwrap();
    Received { dir, result }
}

#[test]
fn blocks_go_where_they_belong() {
    let (a, b) = (vec![0xaa; 4096], vec![0xbb; 1 << 20]);
    let stream = [
        block(8192, &a),
        block(2 << 20, &b),
        block(8192 + 512, &[0xcc; 512]),
        end(),
    ];
    let received = receive(stream.concat());
    received.result.as_ref().unwrap();
    let mut expected = vec![0; 3 << 20];
    expected[8192..8192 + 4096].copy_from_slice(&a);
    expected[8192 + 512..8192 + 1024].fill(0xcc);
    expected[2 << 20..].copy_from_slice(&b);
    assert!(std::fs::read(received.file()).unwrap() == expected);
    let mode = std::fs::metadata(received.file()).unwrap().permissions();
    assert_eq!(mode.mode() & 0o7777, 0o600);
}

#[test]
fn a_sync_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("received");
    let (mut sender, receiver) = UnixStream::pair().unwrap();
    let (mut answers, feedback) = UnixStream::pair().unwrap();
    let sending = thread::spawn(move || {
        let mut answer = [0; 8];
        for at in 0..3 {
            sender
                .write_all(&block(at * 4096, &[at as u8 + 1; 4096]))
                .unwrap();
            sender.write_all(&sync()).unwrap();
            answers.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"SUCCESS\n");
        }
        sender.write_all(&end()).unwrap();
    });
    copy::receive(&file, &receiver, Some(feedback.as_fd())).unwrap();
    sending.join().unwrap();
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(bytes.len(), 3 * 4096);
    for (at, page) in bytes.chunks(4096).enumerate() {
        assert!(page.iter().all(|byte| usize::from(*byte) == at + 1));
    }
}

#[test]
fn a_broken_stream_leaves_no_file() {
    let mut lying = header(MARKER, 4096, 0);
    lying.extend([1; 100]);
    let wrong_marker = [block(0, &[1; 512]), header(0x1234_5678, 512, 0)].concat();
    for (stream, kind) in [
        (wrong_marker, ErrorKind::Corrupt),
        (header(MARKER, 512, 0)[..7].to_vec(), ErrorKind::Io),
        (Vec::new(), ErrorKind::Io),
        (lying, ErrorKind::Io),
        (block(0, &[1; 4096]), ErrorKind::Io),
    ] {
        let received = receive(stream);
        let error = received.result.as_ref().unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(error.operation(), "receive copy");
        assert!(!received.file().exists());
    }
}

#[test]
fn what_is_there_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("received");
    std::fs::write(&file, "precious").unwrap();
    let (_sender, receiver) = UnixStream::pair().unwrap();
    refused(
        copy::receive(&file, &receiver, None),
        ErrorKind::AlreadyExists,
    );
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[test]
fn a_regular_file_is_no_stream() {
    let dir = tempfile::tempdir().unwrap();
    let input = tempfile::tempfile().unwrap();
    refused(
        copy::receive(dir.path().join("received"), &input, None),
        ErrorKind::InvalidInput,
    );
    assert!(!dir.path().join("received").exists());
}
