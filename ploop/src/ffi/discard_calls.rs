//! Discard: the call that may not fail to fork, and whose child may not be killed.

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
use super::locked_image::LockedImage;
use super::text::Param;
use crate::Result;
use crate::lock::TimedLock;

/// The `int` that C looks at between rounds.
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

/// What `ploop_discard` is told, in bytes.
pub(crate) struct DiscardArgs<'a> {
    pub(crate) min_length: u64,
    pub(crate) to_free: u64,
    pub(crate) automount: bool,
    pub(crate) defrag: bool,
    pub(crate) stop: Option<&'a StopInt>,
}

/// What `ploop_discard_get_stat` answers, in bytes.
pub(crate) struct DiscardNumbers {
    pub(crate) data: u64,
    pub(crate) ploop: u64,
    pub(crate) image: u64,
    pub(crate) balloon: u64,
}

/// C describes the flags of extents in one static buffer while it discards.
static FLAG_TEXT: TimedLock = TimedLock::new();

impl LockedImage<'_> {
    pub(crate) const DISCARD: Call = Call::new("discard")
        .changes()
        .finds_device()
        .by_component()
        .discards();
    pub(crate) const DISCARD_STAT: Call = Call::new("get discard statistics")
        .looks()
        .finds_device()
        .by_component();

    /// `device` is the one that libploop will find.
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
            // SAFETY: the handle is live, and only this call uses it; `stop` is NULL or an `int` that
            // outlives the call, and C reads it with plain loads of an aligned `int`.
            let mut call = || self.call(|di| unsafe { sys::ploop_discard(di, param.as_mut_ptr()) });
            let result = call()?;
            match device {
                Some(device) if is_abandoned(&result) && end_abandoned(device).is_ok() => call(),
                _ => Ok(result),
            }
        })?;
        result.done(self.path())
    }

    pub(crate) fn discard_stat(self) -> Result<DiscardNumbers> {
        // Later versions of the library write a member more.
        let mut stat = [sys::ploop_discard_stat::default(); 2];
        // SAFETY: the handle is live and used by this thread only; C fills in the first element.
        let result =
            self.call(|di| unsafe { sys::ploop_discard_get_stat(di, stat.as_mut_ptr()) })?;
        result.done(self.path())?;
        Ok(DiscardNumbers {
            data: stat[0].data_size as u64,
            ploop: stat[0].ploop_size as u64,
            image: stat[0].image_size as u64,
            balloon: stat[0].balloon_size as u64,
        })
    }
}

/// Whether the driver is in the middle of a discard. It is one whose program was killed: no other program
/// of this crate's is at this image, and to libploop by itself, any operation may end a discard.
fn is_abandoned(result: &CallResult) -> bool {
    result.code == sys::SYSEXIT_DEVIOC
        && result
            .message
            .as_ref()
            .is_some_and(|message| message.contains("initialize discard mode"))
}

/// Drops the requests that wait, in which a trim process may be left, and ends the discard.
fn end_abandoned(device: &Path) -> io::Result<()> {
    /// `_IO('P', 26)`.
    const PLOOP_IOC_FBDROP: libc::c_ulong = 0x501a;
    /// `_IO('P', 24)`.
    const PLOOP_IOC_DISCARD_FINI: libc::c_ulong = 0x5018;
    let device = File::open(device)?;
    // SAFETY: the requests have no argument. Where nothing waits, the first one fails, which is as well.
    unsafe {
        libc::ioctl(device.as_raw_fd(), PLOOP_IOC_FBDROP as _, 0);
        match libc::ioctl(device.as_raw_fd(), PLOOP_IOC_DISCARD_FINI as _, 0) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// Whether a process of C waits for the driver's next request though the trim process, which would cause
/// one, was killed: then the wait is ended, and C ends the discard.
pub(super) fn release_waiting(process: libc::pid_t) {
    if process != 0 && waits_for_discard(process) && has_dead_child(process) {
        // SAFETY: the process has a handler for this signal, which does nothing.
        unsafe { libc::kill(process, libc::SIGRTMIN()) };
    }
}

/// Nothing else that libploop does is interrupted by this crate. What stands in for the driver may wait in
/// `poll`, which libploop does not use.
fn waits_for_discard(process: libc::pid_t) -> bool {
    /// `_IO('P', 25)`.
    const PLOOP_IOC_DISCARD_WAIT: &str = "0x5019";
    #[cfg(target_arch = "x86_64")]
    const POLL: libc::c_long = libc::SYS_poll;
    #[cfg(not(target_arch = "x86_64"))]
    const POLL: libc::c_long = libc::SYS_ppoll;
    fs::read_to_string(format!("/proc/{process}/syscall")).is_ok_and(|line| {
        // The number, and the arguments.
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = words.first().and_then(|number| number.parse().ok());
        number == Some(libc::SYS_ioctl) && words.get(2) == Some(&PLOOP_IOC_DISCARD_WAIT)
            || number == Some(POLL)
    })
}

/// One that has ended, and was not waited for.
fn has_dead_child(process: libc::pid_t) -> bool {
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
