//! The C functions of a discard: `ploop_discard` and `ploop_discard_get_stat`; and what this crate does where the
//! child that trims was killed (`PLOOP_IOC_DISCARD_WAIT`, `PLOOP_IOC_DISCARD_FINI`).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use ploop_sys as sys;

use super::call::Call;
use super::call_result::CallResult;
use super::image_calls::AttachFirst;
use super::line;
use super::line::LINE;
use super::locked_image::LockedImage;
use super::text::Param;
use crate::Result;
use crate::lock::TimedLock;

/// The `int` by which a discard is stopped: C reads it between its rounds.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopInt(Arc<AtomicI32>);

impl StopInt {
    pub(crate) fn set(&self) {
        self.0.store(1, Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }
}

/// The parameters of `ploop_discard`, in bytes.
pub(crate) struct DiscardArgs<'a> {
    pub(crate) min_length: u64,
    pub(crate) to_free: u64,
    pub(crate) automount: bool,
    pub(crate) attach: Option<&'a AttachFirst>,
    pub(crate) defrag: bool,
    pub(crate) stop: Option<&'a StopInt>,
}

/// The result of `ploop_discard_get_stat`, in bytes.
pub(crate) struct DiscardNumbers {
    pub(crate) data: u64,
    pub(crate) ploop: u64,
    pub(crate) image: u64,
    pub(crate) balloon: u64,
    /// `None` where the library does not say.
    pub(crate) native: Option<bool>,
}

/// Held by each discard of this process: C writes the flags of extents as text to one static buffer.
static FLAG_TEXT: TimedLock = TimedLock::new();

impl LockedImage<'_> {
    pub(crate) const DISCARD: Call = Call::new("discard")
        .changes()
        .finds_device()
        .attaches()
        .by_component_if(LINE.discards_by_component)
        .discards()
        .names_users();
    pub(crate) const DISCARD_STAT: Call = Call::new("get discard statistics of")
        .looks()
        .finds_device()
        .by_component_if(LINE.discards_by_component);

    /// `device` is the one that libploop will find. Where it is in a discard whose program was killed, that one is
    /// ended first.
    pub(crate) fn discard(self, args: &DiscardArgs<'_>, device: Option<&Path>) -> Result<()> {
        let operation = self.operation();
        let stop = args
            .stop
            .map_or(std::ptr::null(), |stop| stop.0.as_ptr().cast_const());
        let mut param = Param(sys::ploop_discard_param {
            minlen_b: args.min_length,
            to_free: args.to_free,
            automount: args.automount.into(),
            stop,
            defrag: args.defrag.into(),
            ..Default::default()
        });
        let result = FLAG_TEXT.with_lock(operation, Duration::MAX, || {
            let mut call = || {
                // SAFETY: the handle is live and used by this call only; `stop` is NULL or an aligned `int` that
                // outlives the call, and C only reads it.
                self.call_attached(args.attach, |di| unsafe {
                    sys::ploop_discard(di, param.as_mut_ptr())
                })
            };
            let result = call()?;
            match device {
                Some(device) if is_abandoned(&result) && end_abandoned(device).is_ok() => call(),
                _ => Ok(result),
            }
        })?;
        result.done(self.path())
    }

    pub(crate) fn discard_stat(self) -> Result<DiscardNumbers> {
        // Later versions of libploop have one member more.
        let mut stat = [sys::ploop_discard_stat::default(); 2];
        line::forget_native_discard(&mut stat[0]);
        // SAFETY: the handle is live and used by this thread only; C fills in the first element.
        let result =
            self.call(|di| unsafe { sys::ploop_discard_get_stat(di, stat.as_mut_ptr()) })?;
        result.done(self.path())?;
        Ok(DiscardNumbers {
            data: stat[0].data_size as u64,
            ploop: stat[0].ploop_size as u64,
            image: stat[0].image_size as u64,
            balloon: stat[0].balloon_size as u64,
            native: line::native_discard(&stat[0]),
        })
    }
}

/// Whether the driver is in a discard, whose program was killed: this call holds the image's lock, and programs that
/// use libploop without this crate have to expect that any operation ends their discard.
fn is_abandoned(result: &CallResult) -> bool {
    result.code == sys::SYSEXIT_DEVIOC
        && result
            .message
            .as_ref()
            .is_some_and(|message| message.contains("initialize discard mode"))
}

/// Ends a discard in the driver: drops the requests that wait there, perhaps with a trim process, and then finishes.
fn end_abandoned(device: &Path) -> io::Result<()> {
    /// `_IO('P', 26)`.
    const PLOOP_IOC_FBDROP: libc::c_ulong = 0x501a;
    /// `_IO('P', 24)`.
    const PLOOP_IOC_DISCARD_FINI: libc::c_ulong = 0x5018;
    let device = File::open(device)?;
    // SAFETY: the requests have no argument. Where no request waits, the first one fails, and that does not matter.
    unsafe {
        libc::ioctl(device.as_raw_fd(), PLOOP_IOC_FBDROP as _, 0);
        match libc::ioctl(device.as_raw_fd(), PLOOP_IOC_DISCARD_FINI as _, 0) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// Interrupts C where it waits for the driver's next request, and the trim process that would cause one was killed.
/// C then ends the discard. `process` is that of C, or 0.
pub(super) fn interrupt_abandoned_wait(process: libc::pid_t) {
    if process != 0 && is_waiting_for_discard(process) && has_zombie_child(process) {
        // SAFETY: the process has a handler for this signal, which does nothing.
        unsafe { libc::kill(process, libc::SIGRTMIN()) };
    }
}

/// Whether a process is in `PLOOP_IOC_DISCARD_WAIT`, or in `poll`: that is how the sandbox waits in its place.
/// libploop itself does not use `poll`.
fn is_waiting_for_discard(process: libc::pid_t) -> bool {
    /// `_IO('P', 25)`.
    const PLOOP_IOC_DISCARD_WAIT: &str = "0x5019";
    #[cfg(target_arch = "x86_64")]
    const POLL: libc::c_long = libc::SYS_poll;
    #[cfg(not(target_arch = "x86_64"))]
    const POLL: libc::c_long = libc::SYS_ppoll;
    fs::read_to_string(format!("/proc/{process}/syscall")).is_ok_and(|line| {
        // The number of the system call, and its arguments.
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = words.first().and_then(|number| number.parse().ok());
        number == Some(libc::SYS_ioctl) && words.get(2) == Some(&PLOOP_IOC_DISCARD_WAIT)
            || number == Some(POLL)
    })
}

/// Whether a process has a child that has ended and was not waited for (a zombie).
fn has_zombie_child(process: libc::pid_t) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else {
        return false;
    };
    let parent = process.to_string();
    processes.flatten().any(|entry| {
        // `pid (name) state parent …`, where the name may hold anything.
        fs::read_to_string(entry.path().join("stat")).is_ok_and(|line| {
            let Some((_, rest)) = line.rsplit_once(')') else {
                return false;
            };
            let mut words = rest.split_ascii_whitespace();
            words.next() == Some("Z") && words.next() == Some(&*parent)
        })
    })
}
