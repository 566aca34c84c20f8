//! The daemon's socket: the preload library sends one request a connection, and a thread answers it.

use std::fs;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ploop_sandbox_wire::{Reply, Request, call};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::driver::Driver;
use crate::sandbox_directory::SandboxDirectory;
use crate::{file_system, virtual_disk};

/// The most descriptors that come with a request.
const MAX_DESCRIPTORS: usize = 32;
/// How long a caller may take to send its request or to take the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Answers on the socket from now on.
pub(crate) fn start(sandbox: &SandboxDirectory, driver: Arc<Driver>) -> io::Result<()> {
    let path = sandbox.socket();
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    thread::Builder::new()
        .name("server".to_owned())
        .spawn(move || {
            loop {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let driver = Arc::clone(&driver);
                        // A caller that cannot be served sees its connection end.
                        let _ = thread::Builder::new()
                            .name("call".to_owned())
                            .spawn(move || serve(stream, &driver));
                    }
                    // Too many open files, or the caller is gone already.
                    Err(_) => thread::sleep(Duration::from_millis(50)),
                }
            }
        })
        .map(drop)
}

/// Answers one request. An error ends the connection.
fn serve(mut stream: UnixStream, driver: &Driver) {
    let _ = stream
        .set_read_timeout(Some(TIMEOUT))
        .and_then(|()| stream.set_write_timeout(Some(TIMEOUT)))
        .and_then(|()| {
            let (request, descriptors) = receive(&stream)?;
            let (locks, descriptors) = descriptors.into_iter().partition(is_lock_file);
            let reply = answer(&stream, &request, descriptors, driver);
            // Before the caller, if it lives, gives back what it holds itself.
            drop::<Vec<OwnedFd>>(locks);
            reply.write(&mut stream)
        });
}

/// Whether this is a lock file of libploop's, which comes with a call that changes a device. As long as the call lasts, it is
/// locked, as below the driver, where a process that is killed in a call ends after it.
fn is_lock_file(descriptor: &OwnedFd) -> bool {
    let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    fs::read_link(path).is_ok_and(|path| path.extension() == Some("lck".as_ref()))
}

fn answer(
    stream: &UnixStream,
    request: &Request,
    descriptors: Vec<OwnedFd>,
    driver: &Driver,
) -> Reply {
    match request.call {
        // The result is the age of the oldest unanswered data request, in seconds.
        call::PING => Reply::of(
            virtual_disk::oldest_request()
                .as_secs()
                .try_into()
                .unwrap_or(i32::MAX),
        ),
        call::GROW_FILE_SYSTEM => file_system::grow(request, descriptors),
        // The caller was killed before its request was read: it counts as not made.
        _ if polled(stream).contains(PollFlags::HUP) => Reply::of(0),
        _ => driver.reply_to(request, descriptors, &|| has_hung_up(stream)),
    }
}

fn receive(stream: &UnixStream) -> io::Result<(Request, Vec<OwnedFd>)> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(stream, &mut slices, &mut ancillary, flags)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let request = Request::read(&mut bytes[..received.bytes].chain(stream))?;
    Ok((request, descriptors))
}

/// Whether the other end of a connection is gone, or has been interrupted by a signal and wants the answer at once.
pub(crate) fn has_hung_up(stream: &UnixStream) -> bool {
    let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
    polled(stream).intersects(gone)
}

fn polled(stream: &UnixStream) -> PollFlags {
    let mut descriptors = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut descriptors, Some(&now)) {
        Ok(_) => descriptors[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}
