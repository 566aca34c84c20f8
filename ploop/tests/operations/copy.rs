//! Receiving a copy, by libploop where it has that, and by this crate alone. The stream is made by hand: only a driver
//! can send one.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use ploop::{Code, ErrorKind, copy};

use crate::pipe::pipe;
use crate::refused::refused;

type Receive = fn(&Path, BorrowedFd<'_>, Option<BorrowedFd<'_>>) -> ploop::Result<()>;

const RECEIVERS: [Receive; 2] = [
    |file, input, feedback| copy::receive(file, input, feedback),
    |file, input, feedback| copy::receive_in_rust(file, input, feedback),
];

const MARKER: u32 = 0x4cc0_ac3d;
/// Of the stream of `ploop copy` of libploop 7.
const PACKET_MARKER: u32 = 0x4cc0_ac3e;

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

fn receive(receive: Receive, stream: Vec<u8>) -> Received {
    let dir = tempfile::tempdir().unwrap();
    let (mut sender, receiver) = UnixStream::pair().unwrap();
    let sending = thread::spawn(move || {
        // A receiver that has given up does not read on.
        let _ = sender.write_all(&stream);
    });
    let result = receive(&dir.path().join("received"), receiver.as_fd(), None);
    drop(receiver);
    sending.join().unwrap();
    Received { dir, result }
}

#[test]
fn blocks_go_where_they_belong() {
    let (a, b) = (vec![0xaa; 4096], vec![0xbb; 3 << 20]);
    let stream = [
        block(8192, &a),
        block(2 << 20, &b),
        block(8192 + 512, &[0xcc; 512]),
        end(),
    ];
    for way in RECEIVERS {
        let received = receive(way, stream.concat());
        received.result.as_ref().unwrap();
        let mut expected = vec![0; 5 << 20];
        expected[8192..8192 + 4096].copy_from_slice(&a);
        expected[8192 + 512..8192 + 1024].fill(0xcc);
        expected[2 << 20..].copy_from_slice(&b);
        assert!(std::fs::read(received.file()).unwrap() == expected);
        let mode = std::fs::metadata(received.file()).unwrap().permissions();
        assert_eq!(mode.mode() & 0o7777, 0o600);
    }
}

#[test]
fn a_sync_is_answered() {
    for receive in RECEIVERS {
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
        receive(&file, receiver.as_fd(), Some(feedback.as_fd())).unwrap();
        sending.join().unwrap();
        let bytes = std::fs::read(&file).unwrap();
        assert_eq!(bytes.len(), 3 * 4096);
        for (at, page) in bytes.chunks(4096).enumerate() {
            assert!(page.iter().all(|byte| usize::from(*byte) == at + 1));
        }
    }
}

#[test]
fn a_broken_stream_leaves_no_file() {
    let mut lying = header(MARKER, 4096, 0);
    lying.extend([1; 100]);
    let wrong_marker = [block(0, &[1; 512]), header(0x1234_5678, 512, 0)].concat();
    let other_kind_later = [block(0, &[1; 512]), header(PACKET_MARKER, 512, 0)].concat();
    let streams = [
        (wrong_marker, ErrorKind::Corrupt, Code::PROTOCOL),
        (other_kind_later, ErrorKind::Corrupt, Code::PROTOCOL),
        (header(0, 512, 0), ErrorKind::Corrupt, Code::PROTOCOL),
        (
            header(MARKER, 512, 0)[..7].to_vec(),
            ErrorKind::Io,
            Code::READ,
        ),
        (Vec::new(), ErrorKind::Io, Code::READ),
        (lying, ErrorKind::Io, Code::READ),
        (block(0, &[1; 4096]), ErrorKind::Io, Code::READ),
    ];
    for (way, (stream, kind, code)) in RECEIVERS
        .into_iter()
        .flat_map(|way| streams.iter().map(move |stream| (way, stream)))
    {
        let received = receive(way, stream.clone());
        let error = received.result.as_ref().unwrap_err();
        assert_eq!(error.kind(), *kind, "{error}");
        assert_eq!(error.libploop_code(), Some(*code), "{error}");
        assert_eq!(error.operation(), "receive copy");
        assert_eq!(error.path(), Some(&*received.file()));
        assert!(!received.file().exists());
    }
}

/// The handshake with which `ploop copy` of libploop 7.0.280 begins: marker, type, length, padding, flags; a command.
fn packets() -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in [PACKET_MARKER, 1, 4, 0, 1, 0, 0] {
        bytes.extend(number.to_ne_bytes());
    }
    bytes
}

#[test]
fn a_stream_of_another_kind_is_called_by_its_name() {
    let swapped = MARKER.swap_bytes().to_ne_bytes();
    let other_byte_order = [&swapped[..], &[0; 12]].concat();
    for way in RECEIVERS {
        for (stream, name) in [
            (packets(), "`ploop copy` of libploop 7"),
            (other_byte_order.clone(), "byte order"),
        ] {
            let received = receive(way, stream.clone());
            let error = received.result.as_ref().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.message().contains(name), "{error}");
            assert!(!received.file().exists());
            // By a pipe, of which nobody can look at the first bytes without reading them.
            let (input, mut output) = pipe();
            output.write_all(&stream).unwrap();
            let error = way(&received.file(), input.as_fd(), None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        }
    }
}

/// A stream of the right kind is whole after its first bytes were looked at.
#[test]
fn a_pipe_is_read_from_its_begin() {
    for way in RECEIVERS {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("received");
        let (input, mut output) = pipe();
        output.write_all(&block(0, &[9; 8192])).unwrap();
        output.write_all(&end()).unwrap();
        way(&file, input.as_fd(), None).unwrap();
        assert!(std::fs::read(&file).unwrap() == [9; 8192]);
    }
}

#[test]
fn a_socket_need_not_block() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("received");
    let (mut sender, receiver) = UnixStream::pair().unwrap();
    receiver.set_nonblocking(true).unwrap();
    let sending = thread::spawn(move || {
        for part in [block(0, &[1; 1000]), block(1000, &[2; 1000]), end()] {
            thread::sleep(std::time::Duration::from_millis(50));
            sender.write_all(&part).unwrap();
        }
    });
    copy::receive_in_rust(&file, &receiver, None).unwrap();
    sending.join().unwrap();
    assert!(std::fs::read(&file).unwrap() == [[1; 1000], [2; 1000]].concat());
}

/// No file has such a position. (libploop asks the system.)
#[test]
fn positions_end_somewhere() {
    for (len, position) in [(512, u64::MAX), (512, i64::MAX as u64), (u32::MAX, 1 << 63)] {
        let received = receive(RECEIVERS[1], header(MARKER, len, position));
        assert!(!received.file().exists());
        let error = refused(received.result, ErrorKind::Corrupt);
        assert_eq!(error.libploop_code(), Some(Code::PROTOCOL), "{error}");
    }
}

#[test]
fn what_is_there_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("received");
    std::fs::write(&file, "precious").unwrap();
    let dangling = dir.path().join("dangling");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &dangling).unwrap();
    let (_sender, receiver) = UnixStream::pair().unwrap();
    for way in RECEIVERS {
        for path in [&file, &dangling] {
            refused(way(path, receiver.as_fd(), None), ErrorKind::AlreadyExists);
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        assert!(!dir.path().join("elsewhere").exists());
    }
}

#[test]
fn a_regular_file_is_no_stream() {
    let dir = tempfile::tempdir().unwrap();
    let input = tempfile::tempfile().unwrap();
    let (receiver, _sender) = UnixStream::pair().unwrap();
    for way in RECEIVERS {
        let file = dir.path().join("received");
        refused(way(&file, input.as_fd(), None), ErrorKind::InvalidInput);
        refused(
            way(&file, receiver.as_fd(), Some(input.as_fd())),
            ErrorKind::InvalidInput,
        );
        assert!(!file.exists());
    }
}
