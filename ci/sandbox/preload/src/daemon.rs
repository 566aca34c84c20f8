//! The daemon: one request and one answer a connection.

use crate::settings;
use libc::{c_int, c_void};
use ploop_sandbox_wire::{Alias, Node, Reply, Request, call};
use std::io::{self, Read};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

/// While this lives, the thread is not cancelled: the functions here own memory and descriptors, and a cancelled thread
/// unwinds through C's frames too, which Rust's destructors do not survive.
pub(crate) struct NotCancelled(c_int);

impl NotCancelled {
    pub(crate) fn new() -> NotCancelled {
        const PTHREAD_CANCEL_DISABLE: c_int = 1;
        let mut old = 0;
        // SAFETY: the state is one of the two, and the place for the old one is valid.
        unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &mut old) };
        NotCancelled(old)
    }
}

impl Drop for NotCancelled {
    fn drop(&mut self) {
        let mut old = 0;
        // SAFETY: as above; the state is what was there before.
        unsafe { pthread_setcancelstate(self.0, &mut old) };
    }
}

/// What is sent beside a request.
pub(crate) enum Beside {
    Nothing,
    /// A descriptor of the program's, if it is one.
    Descriptor(c_int),
    /// A descriptor that this process has to have closed when the daemon gets to work.
    LastOf(OwnedFd),
}

/// What ends the waiting for an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Only the answer: as in the driver, most calls cannot be interrupted.
    Answer,
    /// Any signal that is handled: the daemon is told, and answers at once. It has then begun, as the driver has when a
    /// signal comes, however late it got to the request.
    Signal,
}

/// Asks; the error is an `errno`.
pub(crate) fn ask(request: &Request, beside: Beside, wait: Wait) -> Result<Reply, c_int> {
    let _whole = NotCancelled::new();
    let mut connection = connect()?;
    send(&connection, &request.to_bytes(), beside)?;
    if wait == Wait::Signal {
        connection.wait()?;
    }
    Reply::read(&mut connection).map_err(|_| libc::EIO)
}

/// Which numbers stand for which; asked each time, for partitions come and go. None: the daemon cannot be reached.
pub(crate) fn aliases() -> Option<Vec<Alias>> {
    let request = Request {
        call: call::ALIASES,
        node: Node::None,
        argument: 0,
        payload: Vec::new(),
    };
    let reply = ask(&request, Beside::Nothing, Wait::Answer).ok()?;
    (reply.result >= 0).then(|| Alias::parse(&reply.payload).collect())
}

struct Connection(OwnedFd);

fn connect() -> Result<Connection, c_int> {
    let path = settings::settings().ok_or(libc::EIO)?.socket.bytes();
    // SAFETY: a structure of numbers, for which zeros are valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // One byte stays 0.
    if path.len() >= address.sun_path.len() {
        return Err(libc::EIO);
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        // Too many descriptors: that is for the program to know.
        return Err(crate::errno::get());
    }
    // SAFETY: just made, and nobody else's.
    let connection = Connection(unsafe { OwnedFd::from_raw_fd(socket) });
    loop {
        // SAFETY: the address is valid and has that size.
        let result = unsafe {
            libc::connect(
                socket,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_un>() as libc::socklen_t,
            )
        };
        match crate::errno::get() {
            _ if result == 0 => return Ok(connection),
            libc::EINTR => {}
            _ => return Err(libc::EIO),
        }
    }
}

/// Sends the descriptor beside the first byte, and the rest after it: what this process had to close is closed before the
/// daemon has the whole request.
fn send(connection: &Connection, bytes: &[u8], beside: Beside) -> Result<(), c_int> {
    let Some((first, rest)) = bytes.split_at_checked(1) else {
        return Err(libc::EIO);
    };
    match beside {
        Beside::Nothing => connection.send(first, None)?,
        Beside::Descriptor(descriptor) => connection.send(first, valid(descriptor))?,
        Beside::LastOf(descriptor) => {
            connection.send(first, Some(descriptor.as_raw_fd()))?;
            drop(descriptor);
        }
    }
    connection.send(rest, None)
}

/// The kernel refuses to send what is no descriptor; the daemon answers EBADF where one is missing.
fn valid(descriptor: c_int) -> Option<c_int> {
    // SAFETY: no pointers; any number may be asked for.
    (unsafe { libc::fcntl(descriptor, libc::F_GETFD) } >= 0).then_some(descriptor)
}

impl Connection {
    fn send(&self, mut bytes: &[u8], mut descriptor: Option<c_int>) -> Result<(), c_int> {
        // Room for one descriptor, aligned as its header has to be.
        let mut control = [0u64; 8];
        while !bytes.is_empty() {
            let mut part = libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast::<c_void>(),
                iov_len: bytes.len(),
            };
            // SAFETY: a structure of numbers and pointers, for which zeros are valid.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            if let Some(descriptor) = descriptor {
                message.msg_control = control.as_mut_ptr().cast();
                // SAFETY: arithmetic.
                message.msg_controllen =
                    unsafe { libc::CMSG_SPACE(size_of::<c_int>() as u32) } as _;
                // SAFETY: the control buffer is larger than one header with one descriptor, and aligned; so the first
                // header lies in it, its data too.
                unsafe {
                    let header = libc::CMSG_FIRSTHDR(&raw const message);
                    (*header).cmsg_level = libc::SOL_SOCKET;
                    (*header).cmsg_type = libc::SCM_RIGHTS;
                    (*header).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as u32) as _;
                    libc::CMSG_DATA(header)
                        .cast::<c_int>()
                        .write_unaligned(descriptor);
                }
            }
            // SAFETY: the message points to what lives until the call returns.
            let sent = unsafe {
                libc::sendmsg(self.0.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
            };
            if sent >= 0 {
                bytes = bytes.get(sent as usize..).unwrap_or_default();
                descriptor = None;
            } else if crate::errno::get() != libc::EINTR {
                return Err(libc::EIO);
            }
        }
        Ok(())
    }

    /// Until there is something to read. A signal whose handler does not want calls restarted hangs up half-way.
    fn wait(&self) -> Result<(), c_int> {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the structure is valid, and one as said.
        match unsafe { libc::poll(&mut poll, 1, -1) } {
            -1 if crate::errno::get() == libc::EINTR => {
                // SAFETY: no pointers.
                unsafe { libc::shutdown(self.0.as_raw_fd(), libc::SHUT_WR) };
                Ok(())
            }
            -1 => Err(crate::errno::get()),
            _ => Ok(()),
        }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the buffer is valid for that many bytes.
        let read = unsafe {
            libc::recv(
                self.0.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        if read < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(read as usize)
    }
}
