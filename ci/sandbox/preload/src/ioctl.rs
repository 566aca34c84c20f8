//! The driver's ioctls.

use crate::aside::Aside;
use crate::daemon::{self, Beside, Wait};
use crate::stat::{self, Device};
use crate::{errno, ext4, kernel, libploop, memory, settings};
use libc::{c_int, c_ulong, c_void};
use ploop_sandbox_wire::{Node, Request};

/// Reads the partition table anew.
const BLKRRPART: u32 = 0x125f;

/// The letter of the driver's ioctls, and the last number.
const TYPE: u32 = b'P' as u32;
const LAST: u32 = 28;

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// The number of an ioctl, as the header's macros make it.
const fn request(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | TYPE << 8 | number
}

/// Sizes of the header's structures. All of them are aligned to 8 bytes, hence 16 and not 12 here and there.
const CTL: usize = 24;
const CHUNK: usize = 32;
const COOKIE: usize = 64;
const EXTENT: usize = 16;
const TRUNCATE_CTL: usize = 16;
const BALLOON_CTL: usize = 16;
const BLOCKS_CTL: usize = 16;
const INDEX_CTL: usize = 8;
const INDEX: usize = 8;
const GETDEVICE_CTL: usize = 8;

const ADD_DELTA: u32 = request(WRITE, 0, CTL);
const STOP: u32 = request(NONE, 2, 0);
const SNAPSHOT: u32 = request(WRITE, 4, CTL);
const DEL_DELTA: u32 = request(WRITE, 5, 4);
const TRACK_INIT: u32 = request(READ, 6, EXTENT);
const TRACK_SETPOS: u32 = request(WRITE, 9, 8);
const TRACK_READ: u32 = request(READ, 10, EXTENT);
const MERGE: u32 = request(NONE, 12, 0);
const REPLACE_DELTA: u32 = request(WRITE, 13, CTL);
const TRUNCATE: u32 = request(WRITE, 14, TRUNCATE_CTL);
const UPDATE_INDEX: u32 = request(WRITE, 16, INDEX_CTL);
const GROW: u32 = request(WRITE, 17, CTL);
const FBGET: u32 = request(WRITE, 18, BLOCKS_CTL);
const BALLOON: u32 = request(WRITE, 19, BALLOON_CTL);
const FREEBLKS: u32 = request(WRITE, 20, BLOCKS_CTL);
const RELOCBLKS: u32 = request(WRITE, 21, BLOCKS_CTL);
const GETDEVICE: u32 = request(WRITE, 22, GETDEVICE_CTL);
const DISCARD_WAIT: u32 = request(NONE, 25, 0);
const MAX_DELTA_SIZE: u32 = request(WRITE, 28, 8);

/// `pctl_flags`: a cookie follows.
const FLAG_COOKIE: u32 = 4;

/// No list is longer: the protocol takes no longer message, and the kernel would not find the memory.
const MAX_LIST: usize = 255 << 20;

#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn ioctl(
    descriptor: c_int,
    request: c_ulong,
    argument: *mut c_void,
) -> c_int {
    if settings::settings().is_some() {
        // An `int` at the caller's is widened with its sign.
        if let Some(result) = handled(descriptor, request as u32, argument) {
            return result;
        }
    }
    kernel::ioctl(descriptor, request, argument)
}

/// None: the call is the kernel's.
fn handled(descriptor: c_int, request: u32, argument: *mut c_void) -> Option<c_int> {
    let before = errno::get();
    let result = match request {
        ext4::OPEN_BALLOON => ext4::open_balloon(descriptor),
        ext4::SET_RSV_BLOCKS => ext4::set_reserved_blocks(),
        ext4::RESIZE_FS => return Some(ext4::resize(descriptor, argument)),
        BLKRRPART => forward(descriptor, request, argument),
        _ if request >> 8 & 0xff == TYPE && request & 0xff <= LAST => {
            forward(descriptor, request, argument)
        }
        _ => return None,
    };
    match result {
        None => errno::set(before),
        Some(Err(errno)) => return Some(errno::fail(errno)),
        Some(Ok(result)) if result < 0 => return Some(errno::fail(result.saturating_neg())),
        Some(Ok(_)) => errno::set(before),
    }
    result?.ok()
}

/// Has the daemon answer, if the descriptor is a device of the sandbox. The result is as the daemon gives it; the error is
/// an `errno` of this side.
fn forward(descriptor: c_int, request: u32, argument: *mut c_void) -> Option<Result<c_int, c_int>> {
    let node = match stat::device(descriptor) {
        Device::Node(node) => node,
        Device::Other => return None,
        Device::Unknown if request == BLKRRPART => return None,
        Device::Unknown => return Some(Err(libc::EIO)),
    };
    if request != BLKRRPART {
        libploop::note_use();
    }
    Some(asked(descriptor, node, request, argument))
}

fn asked(descriptor: c_int, node: Node, call: u32, argument: *mut c_void) -> Result<c_int, c_int> {
    let address = argument.expose_provenance() as u64;
    let Sent {
        payload,
        file,
        room,
    } = sent(call, address, &memory::read)?;
    let request = Request {
        call,
        node,
        argument: address,
        payload,
    };
    let beside = file.map_or(Beside::Nothing, Beside::Descriptor);
    let reply = match (call, node) {
        // The driver does not count its caller; the loop device does.
        (STOP, Node::Whole(device)) => {
            let _whole = daemon::NotCancelled::new();
            let path =
                std::ffi::CString::new(format!("/dev/ploop{device}")).map_err(|_| libc::EIO)?;
            let (aside, held) = Aside::step(descriptor)?;
            let reply = daemon::ask(&request, Beside::LastOf(held), Wait::Answer);
            aside.back(&path);
            reply?
        }
        (DISCARD_WAIT | MERGE, _) => daemon::ask(&request, beside, Wait::Signal)?,
        _ => daemon::ask(&request, beside, Wait::Answer)?,
    };
    let len = reply.payload.len().min(room);
    let written = reply.payload.get(..len).unwrap_or_default();
    if !memory::write(address, written) {
        return Err(libc::EFAULT);
    }
    Ok(reply.result)
}

/// What is sent of a call.
#[derive(Debug, Default, PartialEq)]
struct Sent {
    /// What the argument points to. Less than the call needs, or nothing, where that is no memory: when it is looked at,
    /// and whether at all, depends on the state of the device, so it is the daemon that says EFAULT.
    payload: Vec<u8>,
    /// The descriptor in it.
    file: Option<c_int>,
    /// How many bytes may be written back.
    room: usize,
}

/// Reads what the argument of a call points to.
fn sent(
    call: u32,
    address: u64,
    read: &dyn Fn(u64, usize) -> Option<Vec<u8>>,
) -> Result<Sent, c_int> {
    let mut sent = Sent::default();
    match call {
        ADD_DELTA | SNAPSHOT | REPLACE_DELTA => {
            let cookie = if call == ADD_DELTA { COOKIE } else { 0 };
            sent.payload = delta(address, cookie, read);
            sent.file = word(&sent.payload, CTL).map(|word| word as c_int);
        }
        GROW => sent.payload = read(address, CTL).unwrap_or_default(),
        DEL_DELTA => sent.payload = read(address, 4).unwrap_or_default(),
        TRACK_SETPOS | MAX_DELTA_SIZE => sent.payload = read(address, 8).unwrap_or_default(),
        TRACK_INIT => sent.room = EXTENT,
        TRACK_READ => {
            sent.payload = read(address, EXTENT).unwrap_or_default();
            sent.room = EXTENT;
        }
        TRUNCATE => {
            sent.payload = read(address, TRUNCATE_CTL).unwrap_or_default();
            sent.file = word(&sent.payload, 0).map(|word| word as c_int);
        }
        BALLOON => {
            sent.payload = read(address, BALLOON_CTL).unwrap_or_default();
            sent.room = BALLOON_CTL;
        }
        GETDEVICE => sent.room = GETDEVICE_CTL,
        UPDATE_INDEX => sent.payload = list(address, INDEX_CTL, INDEX, read)?,
        FREEBLKS | RELOCBLKS => {
            sent.payload = list(address, BLOCKS_CTL, EXTENT, read)?;
            sent.room = sent.payload.len();
        }
        FBGET => {
            // What the extents are before the call does not matter, only how many there is room for.
            sent.payload = read(address, BLOCKS_CTL).unwrap_or_default();
            if let Some(extents) = word(&sent.payload, 0) {
                sent.room = (extents as usize)
                    .saturating_mul(EXTENT)
                    .saturating_add(BLOCKS_CTL);
            }
        }
        // Nothing, or a number, or no call of the driver's.
        _ => {}
    }
    Ok(sent)
}

/// `struct ploop_ctl`, the one chunk behind it, and the cookie, of which there is one only if a flag says so.
fn delta(address: u64, cookie: usize, read: &dyn Fn(u64, usize) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut bytes = read(address, CTL).unwrap_or_default();
    // The driver takes one chunk, and looks at no chunk if it is told of more or none.
    if half_word(&bytes, 16) != Some(1) {
        return bytes;
    }
    let Some(chunk) = read(address.saturating_add(CTL as u64), CHUNK) else {
        return bytes;
    };
    bytes.extend(chunk);
    let flags = word(&bytes, 4).unwrap_or(0);
    if cookie != 0 && flags & FLAG_COOKIE != 0 {
        let address = address.saturating_add((CTL + CHUNK) as u64);
        bytes.extend(read(address, cookie).unwrap_or_default());
    }
    bytes
}

/// A head whose first number says how many items follow.
fn list(
    address: u64,
    head: usize,
    item: usize,
    read: &dyn Fn(u64, usize) -> Option<Vec<u8>>,
) -> Result<Vec<u8>, c_int> {
    let mut bytes = read(address, head).unwrap_or_default();
    let len = (word(&bytes, 0).unwrap_or(0) as usize).saturating_mul(item);
    if len > MAX_LIST {
        return Err(libc::ENOMEM);
    }
    if len > 0 {
        bytes.extend(read(address.saturating_add(head as u64), len).unwrap_or_default());
    }
    Ok(bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn half_word(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the C compiler makes of the header.
    #[test]
    fn numbers_are_those_of_the_header() {
        for (number, expected) in [
            (ADD_DELTA, 0x4018_5000),
            (STOP, 0x5002),
            (TRACK_INIT, 0x8010_5006),
            (TRACK_READ, 0x8010_500a),
            (TRUNCATE, 0x4010_500e),
            (UPDATE_INDEX, 0x4008_5010),
            (FBGET, 0x4010_5012),
            (BALLOON, 0x4010_5013),
            (RELOCBLKS, 0x4010_5015),
            (GETDEVICE, 0x4008_5016),
            (DISCARD_WAIT, 0x5019),
            (MAX_DELTA_SIZE, 0x4008_501c),
        ] {
            assert_eq!(number, expected);
        }
    }

    const AT: u64 = 0x1000;

    /// What is sent if `memory` lies at `AT` and nothing behind it.
    fn of(call: u32, memory: &[u8]) -> Sent {
        sent(call, AT, &|address, len| {
            let start = usize::try_from(address.checked_sub(AT)?).ok()?;
            Some(memory.get(start..start.checked_add(len)?)?.to_vec())
        })
        .unwrap()
    }

    fn delta_of(chunks: u16, flags: u32) -> Vec<u8> {
        let mut memory: Vec<u8> = (0..(CTL + CHUNK + COOKIE) as u8).collect();
        memory[4..8].copy_from_slice(&flags.to_ne_bytes());
        memory[16..18].copy_from_slice(&chunks.to_ne_bytes());
        memory[CTL..CTL + 4].copy_from_slice(&7u32.to_ne_bytes());
        memory
    }

    #[test]
    fn a_cookie_is_read_if_there_is_one() {
        for (call, flags, len) in [
            (ADD_DELTA, 0, CTL + CHUNK),
            (ADD_DELTA, FLAG_COOKIE | 1, CTL + CHUNK + COOKIE),
            (SNAPSHOT, FLAG_COOKIE, CTL + CHUNK),
            (REPLACE_DELTA, FLAG_COOKIE, CTL + CHUNK),
        ] {
            let memory = delta_of(1, flags);
            let sent = of(call, &memory);
            assert_eq!(sent.payload, memory[..len]);
            assert_eq!((sent.file, sent.room), (Some(7), 0));
        }
        let sent = of(ADD_DELTA, &delta_of(2, FLAG_COOKIE));
        assert_eq!((sent.payload.len(), sent.file), (CTL, None));
    }

    #[test]
    fn what_is_no_memory_is_not_sent() {
        let memory = delta_of(1, FLAG_COOKIE);
        assert_eq!(
            of(ADD_DELTA, &memory[..CTL + CHUNK]).payload.len(),
            CTL + CHUNK
        );
        assert_eq!(of(ADD_DELTA, &memory[..CTL]).payload.len(), CTL);
        for call in [
            ADD_DELTA,
            DEL_DELTA,
            BALLOON,
            GROW,
            UPDATE_INDEX,
            TRUNCATE,
            FBGET,
        ] {
            let sent = of(call, &[]);
            assert_eq!((sent.payload, sent.file), (Vec::new(), None));
        }
    }

    #[test]
    fn lists_are_as_long_as_they_say() {
        let mut memory = vec![0; BLOCKS_CTL + 3 * EXTENT];
        memory[0] = 2;
        let len = BLOCKS_CTL + 2 * EXTENT;
        for call in [FREEBLKS, RELOCBLKS] {
            let sent = of(call, &memory);
            assert_eq!((sent.payload.len(), sent.room), (len, len));
        }
        let sent = of(FBGET, &memory);
        assert_eq!((sent.payload.len(), sent.room), (BLOCKS_CTL, len));
        assert_eq!(
            of(UPDATE_INDEX, &memory).payload.len(),
            INDEX_CTL + 2 * INDEX
        );
        memory[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(
            sent_error(FREEBLKS, &memory),
            Some(libc::ENOMEM),
            "a list that no kernel has the memory for"
        );
        assert_eq!(of(FBGET, &memory).payload.len(), BLOCKS_CTL);
    }

    fn sent_error(call: u32, memory: &[u8]) -> Option<c_int> {
        sent(call, 0, &|address, len| {
            let start = address as usize;
            Some(memory.get(start..start + len)?.to_vec())
        })
        .err()
    }

    #[test]
    fn what_is_written_back_has_its_size() {
        for (call, len, room) in [
            (TRACK_INIT, 0, 16),
            (TRACK_READ, 16, 16),
            (TRACK_SETPOS, 8, 0),
            (BALLOON, 16, 16),
            (GETDEVICE, 0, 8),
            (DEL_DELTA, 4, 0),
            (MAX_DELTA_SIZE, 8, 0),
            (GROW, 24, 0),
            (STOP, 0, 0),
            (BLKRRPART, 0, 0),
        ] {
            let sent = of(call, &[0; 64]);
            assert_eq!((sent.payload.len(), sent.room), (len, room), "{call:#x}");
        }
    }
}
