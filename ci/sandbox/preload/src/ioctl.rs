//! Sends the driver's ioctls, `PLOOP_IOC_*`, and `BLKRRPART` to the daemon, each with what its argument points to.

use crate::daemon::{self, SentDescriptor, Wait};
use crate::locks::open_lock_files;
use crate::released::ReleasedDescriptor;
use crate::stat::{self, Device};
use crate::{errno, ext4, kernel, libploop, memory, settings};
use libc::{c_int, c_ulong, c_void};
use ploop_sandbox_wire::{BLKRRPART, BLOCK_TYPE, Node, Request, TYPE, cbt, number};

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// The whole number of an ioctl: `_IO`, `_IOR` or `_IOW` of its number.
const fn request(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | TYPE << 8 | number
}

/// Sizes of the structures of `ploop_if.h`, all of which are aligned to 8 bytes.
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
/// The entries, of 4 bytes each, begin within its padding.
const DUMP_CTL: usize = 16;
const DUMP_HEAD: usize = 12;

const ADD_DELTA: u32 = request(WRITE, number::ADD_DELTA, CTL);
const START: u32 = request(NONE, number::START, 0);
const STOP: u32 = request(NONE, number::STOP, 0);
const SNAPSHOT: u32 = request(WRITE, number::SNAPSHOT, CTL);
const DEL_DELTA: u32 = request(WRITE, number::DEL_DELTA, 4);
const TRACK_INIT: u32 = request(READ, number::TRACK_INIT, EXTENT);
const TRACK_SETPOS: u32 = request(WRITE, number::TRACK_SETPOS, 8);
const TRACK_READ: u32 = request(READ, number::TRACK_READ, EXTENT);
const MERGE: u32 = request(NONE, number::MERGE, 0);
const REPLACE_DELTA: u32 = request(WRITE, number::REPLACE_DELTA, CTL);
const TRUNCATE: u32 = request(WRITE, number::TRUNCATE, TRUNCATE_CTL);
const UPDATE_INDEX: u32 = request(WRITE, number::UPDATE_INDEX, INDEX_CTL);
const GROW: u32 = request(WRITE, number::GROW, CTL);
const FBGET: u32 = request(WRITE, number::FBGET, BLOCKS_CTL);
const BALLOON: u32 = request(WRITE, number::BALLOON, BALLOON_CTL);
const FREEBLKS: u32 = request(WRITE, number::FREEBLKS, BLOCKS_CTL);
const RELOCBLKS: u32 = request(WRITE, number::RELOCBLKS, BLOCKS_CTL);
const GETDEVICE: u32 = request(WRITE, number::GETDEVICE, GETDEVICE_CTL);
const DISCARD_WAIT: u32 = request(NONE, number::DISCARD_WAIT, 0);
const DUMP_CACHED_BAT: u32 = request(WRITE, number::DUMP_CACHED_BAT, DUMP_CTL);
const MAX_DELTA_SIZE: u32 = request(WRITE, number::MAX_DELTA_SIZE, 8);

/// The whole number of an ioctl of the block layer for changed blocks.
const fn cbt_request(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | BLOCK_TYPE << 8 | number
}

const CBT_START: u32 = cbt_request(READ, cbt::START, cbt::INFO);
const CBT_STOP: u32 = cbt_request(NONE, cbt::STOP, 0);
const CBT_GET: u32 = cbt_request(READ | WRITE, cbt::GET, cbt::INFO);
const CBT_SET: u32 = cbt_request(READ, cbt::SET, cbt::INFO);
const CBT_CLR: u32 = cbt_request(READ, cbt::CLR, cbt::INFO);

/// Offsets in `struct blk_user_cbt_info`: how many extents follow it, and for how many there is room.
const CBT_MAPPED: usize = 40;
const CBT_COUNT: usize = 44;
/// The kernel takes no more extents.
const CBT_MAX_EXTENTS: u32 = 512;

/// `pctl_flags`: a cookie follows.
const FLAG_COOKIE: u32 = 4;

/// The longest list: the protocol takes no longer message, and the kernel would not have the memory.
const MAX_LIST: usize = 255 << 20;

#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn ioctl(
    descriptor: c_int,
    request: c_ulong,
    argument: *mut c_void,
) -> c_int {
    if settings::settings().is_some() {
        // Where the caller's type is `int`, the upper half is its sign.
        if let Some(result) = handled(descriptor, request as u32, argument) {
            return result;
        }
    }
    kernel::ioctl(descriptor, request, argument)
}

/// The result of a call that the sandbox answers. None: the kernel has to answer.
fn handled(descriptor: c_int, request: u32, argument: *mut c_void) -> Option<c_int> {
    let before = errno::get();
    let result = match request {
        ext4::OPEN_BALLOON => ext4::open_balloon(descriptor),
        ext4::SET_RSV_BLOCKS => ext4::set_reserved_blocks(),
        ext4::RESIZE_FS => return Some(ext4::resize(descriptor, argument)),
        BLKRRPART => forward(descriptor, request, argument),
        CBT_START | CBT_STOP | CBT_GET | CBT_SET | CBT_CLR => {
            forward(descriptor, request, argument)
        }
        _ if request >> 8 & 0xff == TYPE && request & 0xff <= number::LAST => {
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

/// Has the daemon answer, if the descriptor is a device of the sandbox. The error is an `errno` of this side.
fn forward(descriptor: c_int, request: u32, argument: *mut c_void) -> Option<Result<c_int, c_int>> {
    let node = match stat::device(descriptor) {
        Device::Node(node) => node,
        Device::Other => return None,
        Device::Unknown if request == BLKRRPART => return None,
        Device::Unknown => return Some(Err(libc::EIO)),
    };
    if request >> 8 & 0xff == TYPE {
        libploop::note_use();
    }
    Some(ask(descriptor, node, request, argument))
}

fn ask(descriptor: c_int, node: Node, call: u32, argument: *mut c_void) -> Result<c_int, c_int> {
    let address = argument.expose_provenance() as u64;
    let Argument {
        payload,
        file,
        reply_len,
    } = argument_of(call, address, &memory::read)?;
    let request = Request {
        call,
        node,
        argument: address,
        payload,
    };
    let file = file.map_or(SentDescriptor::None, SentDescriptor::Open);
    let reply = match (call, node) {
        // The driver does not count the caller's descriptor as an opener. The loop device does.
        (STOP, Node::Whole(device)) => {
            let _guard = daemon::CancellationDisabled::new();
            let path =
                std::ffi::CString::new(format!("/dev/ploop{device}")).map_err(|_| libc::EIO)?;
            let (released, closed) = ReleasedDescriptor::release(descriptor)?;
            let closed = SentDescriptor::Closed(closed);
            let reply = daemon::ask_with(&request, closed, &open_lock_files(), Wait::Reply);
            released.reopen(&path);
            reply?
        }
        (DISCARD_WAIT, _) => daemon::ask(&request, file, Wait::ReplyOrSignal)?,
        (MERGE, _) => daemon::ask_with(&request, file, &open_lock_files(), Wait::ReplyOrSignal)?,
        (START | ADD_DELTA | SNAPSHOT | DEL_DELTA | REPLACE_DELTA | TRUNCATE | GROW, _) => {
            daemon::ask_with(&request, file, &open_lock_files(), Wait::Reply)?
        }
        _ => daemon::ask(&request, file, Wait::Reply)?,
    };
    let len = reply.payload.len().min(reply_len);
    let written = reply.payload.get(..len).unwrap_or_default();
    if !memory::write(address, written) {
        return Err(libc::EFAULT);
    }
    Ok(reply.result)
}

/// What the argument of a call leads to.
#[derive(Debug, Default, PartialEq)]
struct Argument {
    /// The bytes that it points to; fewer, or none, where that is no memory. The daemon answers EFAULT when it needs
    /// the missing ones: whether it does depends on the state of the device.
    payload: Vec<u8>,
    /// The descriptor in these bytes.
    file: Option<c_int>,
    /// How many bytes the reply may write there.
    reply_len: usize,
}

/// Reads the bytes that the argument of a call points to.
fn argument_of(
    call: u32,
    address: u64,
    read: &dyn Fn(u64, usize) -> Option<Vec<u8>>,
) -> Result<Argument, c_int> {
    let mut argument = Argument::default();
    match call {
        ADD_DELTA | SNAPSHOT | REPLACE_DELTA => {
            let cookie = if call == ADD_DELTA { COOKIE } else { 0 };
            argument.payload = delta(address, cookie, read);
            argument.file = word(&argument.payload, CTL).map(|word| word as c_int);
        }
        GROW => argument.payload = read(address, CTL).unwrap_or_default(),
        DEL_DELTA => argument.payload = read(address, 4).unwrap_or_default(),
        TRACK_SETPOS | MAX_DELTA_SIZE => argument.payload = read(address, 8).unwrap_or_default(),
        TRACK_INIT => argument.reply_len = EXTENT,
        TRACK_READ => {
            argument.payload = read(address, EXTENT).unwrap_or_default();
            argument.reply_len = EXTENT;
        }
        TRUNCATE => {
            argument.payload = read(address, TRUNCATE_CTL).unwrap_or_default();
            argument.file = word(&argument.payload, 0).map(|word| word as c_int);
        }
        BALLOON => {
            argument.payload = read(address, BALLOON_CTL).unwrap_or_default();
            argument.reply_len = BALLOON_CTL;
        }
        GETDEVICE => argument.reply_len = GETDEVICE_CTL,
        UPDATE_INDEX => argument.payload = list(address, INDEX_CTL, INDEX, read)?,
        FREEBLKS | RELOCBLKS => {
            argument.payload = list(address, BLOCKS_CTL, EXTENT, read)?;
            argument.reply_len = argument.payload.len();
        }
        FBGET => {
            // Only the number of extents that the caller has room for matters.
            argument.payload = read(address, BLOCKS_CTL).unwrap_or_default();
            if let Some(extents) = word(&argument.payload, 0) {
                argument.reply_len = (extents as usize)
                    .saturating_mul(EXTENT)
                    .saturating_add(BLOCKS_CTL);
            }
        }
        DUMP_CACHED_BAT => {
            argument.payload = read(address, DUMP_HEAD).unwrap_or_default();
            if let Some(entries) = word(&argument.payload, 8) {
                argument.reply_len = (entries as usize)
                    .saturating_mul(4)
                    .saturating_add(DUMP_HEAD);
            }
        }
        CBT_START => argument.payload = read(address, cbt::INFO).unwrap_or_default(),
        CBT_GET => {
            argument.payload = read(address, cbt::INFO).unwrap_or_default();
            let room = word(&argument.payload, CBT_COUNT).unwrap_or(0);
            argument.reply_len = cbt::INFO + room.min(CBT_MAX_EXTENTS) as usize * cbt::EXTENT;
        }
        CBT_SET | CBT_CLR => {
            argument.payload = read(address, cbt::INFO).unwrap_or_default();
            let mapped = word(&argument.payload, CBT_MAPPED).unwrap_or(0);
            let len = mapped.min(CBT_MAX_EXTENTS) as usize * cbt::EXTENT;
            if len > 0 {
                let extents = read(address.saturating_add(cbt::INFO as u64), len);
                argument.payload.extend(extents.unwrap_or_default());
            }
        }
        // The argument is nothing or a number, or this is no call of the driver.
        _ => {}
    }
    Ok(argument)
}

/// `struct ploop_ctl`, the chunk behind it, and the cookie, if a flag says that there is one.
fn delta(address: u64, cookie: usize, read: &dyn Fn(u64, usize) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut bytes = read(address, CTL).unwrap_or_default();
    // The driver refuses another number of chunks without a look at them.
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

/// A head whose first number is the number of items behind it.
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

    /// The numbers that the C compiler makes of `ploop_if.h`.
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
            (DUMP_CACHED_BAT, 0x4010_5022),
            (CBT_START, 0x8038_12c8),
            (CBT_STOP, 0x12c9),
            (CBT_GET, 0xc038_12ca),
            (CBT_SET, 0x8038_12cb),
            (CBT_CLR, 0x8038_12cc),
        ] {
            assert_eq!(number, expected);
        }
    }

    const AT: u64 = 0x1000;

    /// The argument if `memory` lies at `AT` and nothing behind it.
    fn of(call: u32, memory: &[u8]) -> Argument {
        argument_of(call, AT, &|address, len| {
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
            let argument = of(call, &memory);
            assert_eq!(argument.payload, memory[..len]);
            assert_eq!((argument.file, argument.reply_len), (Some(7), 0));
        }
        let argument = of(ADD_DELTA, &delta_of(2, FLAG_COOKIE));
        assert_eq!((argument.payload.len(), argument.file), (CTL, None));
    }

    #[test]
    fn only_valid_memory_is_sent() {
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
            let argument = of(call, &[]);
            assert_eq!((argument.payload, argument.file), (Vec::new(), None));
        }
    }

    #[test]
    fn a_list_has_the_length_that_its_head_names() {
        let mut memory = vec![0; BLOCKS_CTL + 3 * EXTENT];
        memory[0] = 2;
        let len = BLOCKS_CTL + 2 * EXTENT;
        for call in [FREEBLKS, RELOCBLKS] {
            let argument = of(call, &memory);
            assert_eq!((argument.payload.len(), argument.reply_len), (len, len));
        }
        let argument = of(FBGET, &memory);
        assert_eq!(
            (argument.payload.len(), argument.reply_len),
            (BLOCKS_CTL, len)
        );
        assert_eq!(
            of(UPDATE_INDEX, &memory).payload.len(),
            INDEX_CTL + 2 * INDEX
        );
        memory[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(
            argument_error(FREEBLKS, &memory),
            Some(libc::ENOMEM),
            "a list that no kernel has the memory for"
        );
        assert_eq!(of(FBGET, &memory).payload.len(), BLOCKS_CTL);
    }

    fn argument_error(call: u32, memory: &[u8]) -> Option<c_int> {
        argument_of(call, 0, &|address, len| {
            let start = address as usize;
            Some(memory.get(start..start + len)?.to_vec())
        })
        .err()
    }

    #[test]
    fn a_reply_has_the_size_of_the_structure() {
        for (call, len, reply_len) in [
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
            let argument = of(call, &[0; 64]);
            assert_eq!(
                (argument.payload.len(), argument.reply_len),
                (len, reply_len),
                "{call:#x}"
            );
        }
    }
}
