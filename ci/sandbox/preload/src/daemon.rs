//! Requests to the daemon: one request and one reply a connection.

use crate::{kernel, settings};
use libc::{c_int, c_void};
use ploop_sandbox_wire::{Alias, Node, Reply, Request, call};
use std::io::{self, Read};
use std::os::fd::{AsRawFd as _, OwnedFd};

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

/// The thread cannot be cancelled while this lives (`pthread_setcancelstate`). Cancellation unwinds the stack, and
/// Rust's destructors must not be run by that.
pub(crate) struct CancellationDisabled(c_int);

impl CancellationDisabled {
    pub(crate) fn new() -> CancellationDisabled {
        const PTHREAD_CANCEL_DISABLE: c_int = 1;
        let mut old = 0;
        // SAFETY: the state is a valid one, and so is the pointer for the old one.
        unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &mut old) };
        CancellationDisabled(old)
    }
}

impl Drop for CancellationDisabled {
    fn drop(&mut self) {
        let mut old = 0;
        // SAFETY: as above; the state is what was there before.
        unsafe { pthread_setcancelstate(self.0, &mut old) };
    }
}

/// The descriptor that is sent with a request.
pub(crate) enum SentDescriptor {
    None,
    /// A number that the program passed, which may name no open file.
    Open(c_int),
    /// A descriptor that is closed here before the daemon has the whole request.
    Closed(OwnedFd),
}

/// What ends the wait for a reply.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Only the reply: as in the driver, most calls cannot be interrupted.
    Reply,
    /// The reply, or a signal with a handler: the daemon is told of it, and replies at once. As in the driver, the call
    /// has begun then.
    ReplyOrSignal,
}

/// Sends a request and returns the reply; the error is an `errno`.
pub(crate) fn ask(
    request: &Request,
    descriptor: SentDescriptor,
    wait: Wait,
) -> Result<Reply, c_int> {
    ask_with(request, descriptor, &[], wait)
}

/// [`ask`], and sends descriptors of lock files, which the daemon closes when it has done what it was asked for.
pub(crate) fn ask_with(
    request: &Request,
    descriptor: SentDescriptor,
    locks: &[c_int],
    wait: Wait,
) -> Result<Reply, c_int> {
    let _guard = CancellationDisabled::new();
    let mut connection = connect()?;
    send(&connection, &request.to_bytes(), descriptor, locks)?;
    if wait == Wait::ReplyOrSignal {
        connection.wait()?;
    }
    Reply::read(&mut connection).map_err(|_| libc::EIO)
}

/// The real devices behind ploop's nodes. Asked each time, because partitions come and go. None: the daemon cannot be
/// reached.
pub(crate) fn aliases() -> Option<Vec<Alias>> {
    let request = Request::new(call::ALIASES, Node::None, Vec::new());
    let reply = ask(&request, SentDescriptor::None, Wait::Reply).ok()?;
    (reply.result >= 0).then(|| Alias::parse(&reply.payload).collect())
}

/// The most descriptors that are sent with a request.
const MAX_DESCRIPTORS: usize = 8;

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
    let connection = Connection(kernel::owned(socket)?);
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

/// Sends the descriptor with the first byte, and the rest after it, so that a [`SentDescriptor::Closed`] is closed
/// before the daemon has the whole request.
fn send(
    connection: &Connection,
    bytes: &[u8],
    descriptor: SentDescriptor,
    locks: &[c_int],
) -> Result<(), c_int> {
    let Some((first, rest)) = bytes.split_at_checked(1) else {
        return Err(libc::EIO);
    };
    let number = match &descriptor {
        SentDescriptor::None => None,
        SentDescriptor::Open(descriptor) => valid(*descriptor),
        SentDescriptor::Closed(descriptor) => Some(descriptor.as_raw_fd()),
    };
    let all: Vec<c_int> = number.into_iter().chain(locks.iter().copied()).collect();
    connection.send(first, &all)?;
    drop(descriptor);
    connection.send(rest, &[])
}

/// The descriptor, if the number names an open file: the kernel sends no other. The daemon answers EBADF where one is
/// missing.
fn valid(descriptor: c_int) -> Option<c_int> {
    // SAFETY: no pointers; any number is allowed.
    (unsafe { libc::fcntl(descriptor, libc::F_GETFD) } >= 0).then_some(descriptor)
}

impl Connection {
    fn send(&self, mut bytes: &[u8], mut descriptors: &[c_int]) -> Result<(), c_int> {
        // Room for the descriptors, aligned as their header has to be.
        let mut control = [0u64; 2 + MAX_DESCRIPTORS];
        descriptors = descriptors.get(..MAX_DESCRIPTORS).unwrap_or(descriptors);
        while !bytes.is_empty() {
            let mut part = libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast::<c_void>(),
                iov_len: bytes.len(),
            };
            // SAFETY: a structure of numbers and pointers, for which zeros are valid.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            if !descriptors.is_empty() {
                let len = size_of_val(descriptors) as u32;
                message.msg_control = control.as_mut_ptr().cast();
                // SAFETY: arithmetic.
                message.msg_controllen = unsafe { libc::CMSG_SPACE(len) } as _;
                // SAFETY: the control buffer has room for one header with so many descriptors, and is aligned; so the
                // first header lies in it, its data too.
                unsafe {
                    let header = libc::CMSG_FIRSTHDR(&raw const message);
                    (*header).cmsg_level = libc::SOL_SOCKET;
                    (*header).cmsg_type = libc::SCM_RIGHTS;
                    (*header).cmsg_len = libc::CMSG_LEN(len) as _;
                    let data = libc::CMSG_DATA(header).cast::<c_int>();
                    for (index, descriptor) in descriptors.iter().enumerate() {
                        data.add(index).write_unaligned(*descriptor);
                    }
                }
            }
            // SAFETY: the message points to what lives until the call returns.
            let sent = unsafe {
                libc::sendmsg(self.0.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
            };
            if sent >= 0 {
                bytes = bytes.get(sent as usize..).unwrap_or_default();
                descriptors = &[];
            } else if crate::errno::get() != libc::EINTR {
                return Err(libc::EIO);
            }
        }
        Ok(())
    }

    /// Waits until there is something to read. A signal whose handler does not restart calls shuts down the sending
    /// side, which tells the daemon.
    fn wait(&self) -> Result<(), c_int> {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: a pointer to one valid structure.
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
