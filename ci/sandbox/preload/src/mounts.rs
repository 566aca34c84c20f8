//! `mount` with `balloon_ino=`, and the lists of mounts in `/proc` as OpenVZ's kernel would print them.

use crate::daemon::{self, CancellationDisabled, SentDescriptor, Wait};
use crate::errno::{self, preserve_errno};
use crate::paths::{self, MountList};
use crate::{kernel, libploop, real, settings, stat};
use libc::{FILE, c_char, c_int, c_uint, c_ulong, c_void};
use ploop_sandbox_wire::{Alias, Node, Request, call};
use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd};

/// The option that only OpenVZ's ext4 knows.
const BALLOON: &[u8] = b"balloon_ino=";

#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn mount(
    source: *const c_char,
    target: *const c_char,
    kind: *const c_char,
    flags: c_ulong,
    data: *const c_void,
) -> c_int {
    let real = |data| match real::mount() {
        // SAFETY: called as the program calls it; the data is the program's, or a C string too.
        Some(real) => unsafe { real(source, target, kind, flags, data) },
        None => real::missing(),
    };
    let node = if settings::settings().is_some() {
        // Device mapper's name of a partition, or what stands in for one, is a link.
        paths::node(paths::bytes(source)).or_else(|| paths::node_of_link(source))
    } else {
        None
    };
    let Some(node) = node else {
        return real(data);
    };
    let _guard = CancellationDisabled::new();
    // The data of a file system on a block device is a C string.
    let (rest, inode) = without_balloon(paths::bytes(data.cast()));
    let is_first = is_new(flags) && inode.is_none() && preserve_errno(|| !is_mounted(source));
    let result = real(match inode {
        Some(_) => rest.as_ptr().cast(),
        None => data,
    });
    if result == 0 {
        preserve_errno(|| note_balloon(node, target, inode, is_first));
    }
    let errno = errno::get();
    drop(rest);
    errno::set(errno);
    result
}

/// Whether this is a mount of a file system, and not a change of one.
fn is_new(flags: c_ulong) -> bool {
    const OTHER: c_ulong = libc::MS_BIND | libc::MS_MOVE;
    const PROPAGATION: c_ulong =
        libc::MS_SHARED | libc::MS_PRIVATE | libc::MS_SLAVE | libc::MS_UNBINDABLE;
    flags & (libc::MS_REMOUNT | OTHER | PROPAGATION) == 0
}

/// Whether a block device is mounted anywhere, also in another mount namespace: then nobody else can claim it.
fn is_mounted(source: *const c_char) -> bool {
    // Without O_CREAT, O_EXCL claims a block device.
    let opened = kernel::open(source, libc::O_RDONLY | libc::O_EXCL | libc::O_CLOEXEC);
    opened.is_err_and(|errno| errno == libc::EBUSY)
}

/// Tells the daemon with which balloon a file system was mounted. As in OpenVZ's ext4, the number of anything but a
/// regular file changes nothing. Without a number the first mount has no balloon; a remount keeps the one it had, and so
/// does one more mount of the same file system.
fn note_balloon(node: Node, target: *const c_char, inode: Option<u64>, is_first: bool) {
    let found = match inode {
        Some(0) => Some(0),
        Some(inode) => (balloon_in(target) == Some(inode)).then_some(inode),
        None => None,
    };
    let Some(inode) = found.or(is_first.then_some(0)) else {
        return;
    };
    let request = Request::new(call::BALLOON_INODE, node, inode.to_string().into_bytes());
    // Where that fails, the list of mounts lacks the option.
    let _ = daemon::ask(&request, SentDescriptor::None, Wait::Reply);
}

/// The inode of the file with the balloon's name in the root of the file system mounted here.
fn balloon_in(target: *const c_char) -> Option<u64> {
    let root = kernel::open(target, libc::O_PATH | libc::O_DIRECTORY).ok()?;
    let status = kernel::status_of_path(
        root.as_raw_fd(),
        crate::balloon::NAME.as_ptr(),
        libc::AT_SYMLINK_NOFOLLOW,
    )?;
    (status.st_mode & libc::S_IFMT == libc::S_IFREG).then_some(status.st_ino)
}

/// The options without `balloon_ino=`, as a C string, and the last inode that it named, if any. A value that is no
/// number stays, and the kernel refuses it.
fn without_balloon(options: &[u8]) -> (Vec<u8>, Option<u64>) {
    let mut rest = Vec::with_capacity(options.len() + 1);
    let mut inode = None;
    let mut first = true;
    for option in options.split(|byte| *byte == b',') {
        let number = option
            .strip_prefix(BALLOON)
            .and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
        if number.is_some() {
            inode = number;
            continue;
        }
        if !first {
            rest.push(b',');
        }
        first = false;
        rest.extend_from_slice(option);
    }
    rest.push(0);
    (rest, inode)
}

/// The kind of list at a path, if it is one and this process uses libploop.
fn mount_list(path: *const c_char) -> Option<MountList> {
    if !paths::starts_with(path, b"/proc/") || settings::settings().is_none() {
        return None;
    }
    paths::mount_list(paths::bytes(path)).filter(|_| libploop::is_used())
}

/// Opens the rewritten list for `open`. None: the path is no list, or the real one is right.
pub(crate) fn opened(path: *const c_char, flags: c_int) -> Option<c_int> {
    let kind = mount_list(path)?;
    let other = libc::O_ACCMODE | libc::O_PATH | libc::O_DIRECTORY;
    if flags & other != libc::O_RDONLY {
        return None;
    }
    preserve_errno(|| {
        let _guard = CancellationDisabled::new();
        Some(list(path, kind, flags & libc::O_CLOEXEC != 0)?.into_raw_fd())
    })
}

/// Opens the rewritten list for `fopen`.
pub(crate) fn fopened(path: *const c_char, mode: *const c_char) -> Option<*mut FILE> {
    let kind = mount_list(path)?;
    let words = paths::bytes(mode);
    if words.first() != Some(&b'r') || words.contains(&b'+') {
        return None;
    }
    preserve_errno(|| {
        let _guard = CancellationDisabled::new();
        let list = list(path, kind, words.contains(&b'e'))?;
        // SAFETY: the descriptor is open, and the mode is the C string of the program's `fopen`.
        let file = unsafe { libc::fdopen(list.as_raw_fd(), mode) };
        if file.is_null() {
            return None;
        }
        // The `FILE` owns it now.
        let _ = list.into_raw_fd();
        Some(file)
    })
}

/// A copy of a list, rewritten.
fn list(path: *const c_char, kind: MountList, close_on_exec: bool) -> Option<OwnedFd> {
    let aliases = daemon::aliases().filter(|aliases| !aliases.is_empty())?;
    let list = kernel::open(path, libc::O_RDONLY).ok()?;
    let text = rewritten(kind, &read(&list)?, &aliases);
    let copy = memory_file(close_on_exec).or_else(|| nameless_file(close_on_exec))?;
    write(&copy, &text)?;
    // SAFETY: no pointers.
    (unsafe { libc::lseek(copy.as_raw_fd(), 0, libc::SEEK_SET) } == 0).then_some(copy)
}

fn memory_file(close_on_exec: bool) -> Option<OwnedFd> {
    let flags: c_uint = if close_on_exec { libc::MFD_CLOEXEC } else { 0 };
    // SAFETY: a C string.
    kernel::owned(unsafe { libc::memfd_create(c"mounts".as_ptr(), flags) }).ok()
}

/// For where `memfd_create` fails: the kernel is too old, or a system call filter forbids it.
fn nameless_file(close_on_exec: bool) -> Option<OwnedFd> {
    let mut name = *b"/tmp/ploop-sandbox-mounts-XXXXXX\0";
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: a writable C string that ends in the six letters to be replaced.
    let file = kernel::owned(unsafe { libc::mkostemp(name.as_mut_ptr().cast(), flags) }).ok()?;
    // SAFETY: a C string.
    (unsafe { libc::unlink(name.as_ptr().cast()) } == 0).then_some(file)
}

fn read(file: &OwnedFd) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        // SAFETY: the buffer is valid for that many bytes.
        let len = unsafe { libc::read(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        match usize::try_from(len) {
            Ok(0) => return Some(text),
            Ok(len) => text.extend_from_slice(buffer.get(..len)?),
            Err(_) if errno::get() == libc::EINTR => {}
            Err(_) => return None,
        }
    }
}

fn write(file: &OwnedFd, mut text: &[u8]) -> Option<()> {
    while !text.is_empty() {
        // SAFETY: the bytes are valid.
        let len = unsafe { libc::write(file.as_raw_fd(), text.as_ptr().cast(), text.len()) };
        text = text.get(usize::try_from(len).ok()?..)?;
    }
    Some(())
}

/// A list as OpenVZ's kernel would print it.
fn rewritten(kind: MountList, text: &[u8], aliases: &[Alias]) -> Vec<u8> {
    let mut result = Vec::with_capacity(text.len() + 128);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let new = match kind {
            MountList::Mountinfo => info_line(line, aliases),
            MountList::Mounts => mounts_line(line, aliases),
        };
        match new {
            Some(new) => result.extend(new),
            None => result.extend_from_slice(line),
        }
    }
    result
}

/// `36 35 259:3 / /mnt rw,relatime shared:1 - ext4 /dev/ploop7p1 rw,discard`. None: the line stays as it is.
fn info_line(line: &[u8], aliases: &[Alias]) -> Option<Vec<u8>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let (id, parent, device, rest) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    let (major, minor) = std::str::from_utf8(device).ok()?.split_once(':')?;
    let device = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
    let node = stat::node(aliases, device)?;
    let (major, minor) = stat::number(node)?;
    let number = format!("{major}:{minor}");
    let (rest, end) = match rest.strip_suffix(b"\n") {
        Some(rest) => (rest, &b"\n"[..]),
        None => (rest, &b""[..]),
    };
    let balloon = balloon(aliases, node);
    Some(
        [
            id,
            b" ",
            parent,
            b" ",
            number.as_bytes(),
            b" ",
            rest,
            &balloon,
            end,
        ]
        .concat(),
    )
}

/// `/dev/ploop7p1 /mnt ext4 rw,relatime 0 0`. None: the line stays as it is.
fn mounts_line(line: &[u8], aliases: &[Alias]) -> Option<Vec<u8>> {
    let mut fields = line.splitn(5, |byte| *byte == b' ');
    let (source, target, kind, options, rest) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    let balloon = balloon(aliases, paths::node(source)?);
    Some(
        [
            source, b" ", target, b" ", kind, b" ", options, &balloon, b" ", rest,
        ]
        .concat(),
    )
}

/// `,balloon_ino=12` for a mount of this node, or nothing. The file system lies on the partition, if there is one.
fn balloon(aliases: &[Alias], node: Node) -> Vec<u8> {
    let alias = aliases.iter().find(|alias| match node {
        Node::Partition(device) => alias.device == device,
        Node::Whole(device) => alias.device == device && alias.partition.is_none(),
        Node::None => false,
    });
    match alias.and_then(|alias| alias.balloon_inode) {
        Some(inode) => format!(",balloon_ino={inode}").into_bytes(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn balloon_ino_is_removed_from_the_options() {
        for (options, rest, inode) in [
            ("balloon_ino=12,", "", Some(12)),
            ("balloon_ino=12", "", Some(12)),
            ("balloon_ino=12,discard", "discard", Some(12)),
            ("a,balloon_ino=12,b=c", "a,b=c", Some(12)),
            ("a,balloon_ino=12", "a", Some(12)),
            ("balloon_ino=1,a,balloon_ino=2", "a", Some(2)),
            ("a,,balloon_ino=,b", "a,,balloon_ino=,b", None),
            ("balloon_ino=x", "balloon_ino=x", None),
            ("", "", None),
            ("discard,data=ordered", "discard,data=ordered", None),
            ("xballoon_ino=1", "xballoon_ino=1", None),
            ("balloon_ino", "balloon_ino", None),
        ] {
            let (found_rest, found) = without_balloon(options.as_bytes());
            assert_eq!((text(found_rest), found), (format!("{rest}\0"), inode));
        }
    }

    fn aliases() -> [Alias; 3] {
        let alias = |device, partition, balloon_inode| Alias {
            device,
            whole: (7, device),
            partition,
            balloon_inode,
        };
        [
            alias(59915, Some((259, 3)), Some(12)),
            alias(20000, None, Some(13)),
            alias(20001, Some((259, 4)), None),
        ]
    }

    #[test]
    fn mountinfo_has_the_drivers_numbers() {
        let before = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 259:3 / /mnt/a\\040b rw,relatime - ext4 /dev/ploop59915p1 rw,discard
31 22 7:20000 / /mnt/raw ro,relatime master:2 - ext4 /dev/ploop20000 ro
32 22 259:4 /sub /mnt/c rw - ext4 /dev/ploop20001p1 rw
33 22 259:5 / /mnt/d rw - ext4 /dev/nvme0n1p1 rw
broken
34 22 7:59915 / /mnt/e rw - ext4 /dev/ploop59915 rw";
        let after = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 182:958641 / /mnt/a\\040b rw,relatime - ext4 /dev/ploop59915p1 rw,discard,balloon_ino=12
31 22 182:320000 / /mnt/raw ro,relatime master:2 - ext4 /dev/ploop20000 ro,balloon_ino=13
32 22 182:320017 /sub /mnt/c rw - ext4 /dev/ploop20001p1 rw
33 22 259:5 / /mnt/d rw - ext4 /dev/nvme0n1p1 rw
broken
34 22 182:958640 / /mnt/e rw - ext4 /dev/ploop59915 rw";
        assert_eq!(
            text(rewritten(
                MountList::Mountinfo,
                before.as_bytes(),
                &aliases()
            )),
            after
        );
        assert_eq!(
            text(rewritten(MountList::Mountinfo, before.as_bytes(), &[])),
            before
        );
    }

    #[test]
    fn mounts_shows_balloon_ino() {
        let before = "\
/dev/vda / ext4 rw,relatime 0 0
/dev/ploop59915p1 /mnt/a\\040b ext4 rw,relatime,discard 0 0
/dev/ploop20001p1 /mnt/c ext4 rw 0 0
/dev/ploop1p1 /mnt/unknown ext4 rw 0 0
/dev/ploop59915p1
";
        let after = before.replace("relatime,discard", "relatime,discard,balloon_ino=12");
        assert_eq!(
            text(rewritten(MountList::Mounts, before.as_bytes(), &aliases())),
            after
        );
    }

    #[test]
    fn outside_a_sandbox_nothing_is_rewritten() {
        assert_eq!(opened(c"/proc/mounts".as_ptr(), libc::O_RDONLY), None);
        assert!(fopened(c"/proc/self/mountinfo".as_ptr(), c"r".as_ptr()).is_none());
    }

    #[test]
    fn a_list_is_read_whole() {
        let file = kernel::open(c"/proc/self/mountinfo".as_ptr(), libc::O_RDONLY).unwrap();
        assert_eq!(
            read(&file).unwrap(),
            std::fs::read("/proc/self/mountinfo").unwrap()
        );
    }
}
