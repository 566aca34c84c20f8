//! Discard: the call that may not fail to fork.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use ploop_sys as sys;

use super::call::Op;
use super::kill_filter::without_kill_all;
use super::pid_namespace;
use super::reply::Reply;
use super::turn::Turn;
use crate::lock::TimedLock;
use crate::{Error, ErrorKind, Result};

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

impl Turn<'_> {
    pub(crate) const DISCARD: Op = Op::new("discard")
        .changes()
        .finds_device()
        .by_component()
        .forks()
        .closes_stdin();
    pub(crate) const DISCARD_STAT: Op = Op::new("get discard statistics").looks().finds_device();

    pub(crate) fn discard(self, args: &DiscardArgs<'_>) -> Result<()> {
        let mut turn = self.with_new_handle();
        let operation = turn.operation();
        let reply: Reply = FLAG_TEXT.alone(operation, Duration::MAX, || {
            let mut param = Param(sys::ploop_discard_param {
                minlen_b: args.min_length,
                to_free: args.to_free,
                automount: args.automount.into(),
                stop: args.stop.map_or(std::ptr::null(), |stop| stop.0.as_ptr().cast_const()),
                defrag: args.defrag.into(),
                ..Default::default()
            });
            let filtered = {
                let (turn, param) = (&mut turn, &mut param);
                without_kill_all(move || {
                    let param = &mut *param;
                    // SAFETY: the handle is live, and only this thread uses it while its owner waits;
                    // `stop` is NULL or an `int` that outlives the call, and C reads it with plain loads
                    // of an aligned `int`.
                    turn.call(|di| unsafe { sys::ploop_discard(di, &mut param.0) })
                })
            };
            let no_filter = match filtered {
                Ok(reply) => return reply,
                Err(error) => error,
            };
            let timeout = turn.timeout();
            turn.call_by(|op, di| {
                let stop = || args.stop.is_some_and(StopInt::is_set);
                pid_namespace::call(op, timeout, stop, |stop| {
                    param.0.stop = stop;
                    // SAFETY: as above; the handle is this process's copy, and `stop` an `int` that it
                    // shares with its parent.
                    unsafe { sys::ploop_discard(di, &mut param.0) }
                })
            })
            .map_err(|error| match error.kind() {
                ErrorKind::Unsupported => Error::new(
                    ErrorKind::Unsupported,
                    operation,
                    format!(
                        "libploop kills every process when it cannot fork here, and this system has no means to keep it from that: no system call filter could be installed ({no_filter}), and {}",
                        error.message()
                    ),
                ),
                _ => error,
            })
        })?;
        reply.done(turn.path())
    }

    pub(crate) fn discard_stat(self) -> Result<DiscardNumbers> {
        let mut turn = self.with_new_handle();
        // Later versions of the library write a member more.
        let mut stat = [sys::ploop_discard_stat::default(); 2];
        // SAFETY: the handle is live and used by this thread only; C fills in the first element.
        let reply =
            turn.call(|di| unsafe { sys::ploop_discard_get_stat(di, stat.as_mut_ptr()) })?;
        reply.done(turn.path())?;
        Ok(DiscardNumbers {
            data: stat[0].data_size as u64,
            ploop: stat[0].ploop_size as u64,
            image: stat[0].image_size as u64,
            balloon: stat[0].balloon_size as u64,
        })
    }
}

struct Param(sys::ploop_discard_param);

// SAFETY: the one pointer in it is NULL or leads to an atomic integer, which every thread may read.
unsafe impl Send for Param {}
