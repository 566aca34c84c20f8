//! The socket through which the preload library asks: one request a connection.

use std::fs;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
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
use crate::{data, file_system};

/// No request comes with more.
const MAX_DESCRIPTORS: usize = 32;
/// How long a caller may take for its request, or for the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers on the socket from now on.
pub(crate) fn start(state: &SandboxDirectory, driver: Arc<Driver>) -> io::Result<()> {
    let path = state.socket();
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
                    // Out of descriptors, or the caller is gone already.
                    Err(_) => thread::sleep(Duration::from_millis(50)),
                }
            }
        })
        .map(drop)
}

/// An error ends the connection, which is all that can be done about it.
fn serve(mut stream: UnixStream, driver: &Driver) {
    let _ = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .and_then(|()| {
            let (request, descriptors) = receive(&stream)?;
            answer(&stream, &request, descriptors, driver).write(&mut stream)
        });
}

fn answer(
    stream: &UnixStream,
    request: &Request,
    descriptors: Vec<OwnedFd>,
    driver: &Driver,
) -> Reply {
    match request.call {
        // Says for how many seconds a device's data has kept somebody waiting.
        call::PING => Reply::of(
            data::oldest_request()
                .as_secs()
                .try_into()
                .unwrap_or(i32::MAX),
        ),
        call::GROW_FILE_SYSTEM => file_system::grow(request, descriptors),
        // Killed before anybody got to its request: it has not made it.
        _ if polled(stream).contains(PollFlags::HUP) => Reply::of(0),
        _ => driver.control(request, descriptors, &|| has_hung_up(stream)),
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

/// Whether the other end of a connection is gone, or wants no more than an answer at once.
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
