//! The lock around the contents of a device, which is not held while a read waits for the host's files.
//!
//! A read looks up under the lock where its data lies, and then reads the files without it. So reads wait neither for
//! each other nor for a write to the host. Meanwhile the slot in the file must not become another cluster's. So a read
//! holds `in_flight` for reading from before the look-up until it has the data. [`lock`](ContentsLock::lock) waits
//! until no read is in flight, and keeps new ones from beginning: its holder may move clusters, free them and exchange
//! the files, as discards, relocation, merges and all changes of levels do.
//!
//! [`lock_during_reads`](ContentsLock::lock_during_reads) does not wait for reads. It is for work that neither frees
//! nor moves a cluster. A write goes into a cluster that is there: then a read at the same time gets the old bytes or
//! the new ones. Or it goes into a new cluster: no read in flight has looked that slot up, for slots are freed under
//! the exclusive lock only.
//!
//! Reads in flight wait for the host's files and for nothing of this process, so they end by themselves.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::lock::lock;

/// `in_flight` is always taken before `contents`.
#[derive(Default)]
pub(super) struct ContentsLock<T> {
    in_flight: RwLock<()>,
    contents: Mutex<T>,
}

/// The exclusive lock: no read is in flight.
pub(super) struct ExclusiveGuard<'a, T> {
    // Dropped first.
    contents: MutexGuard<'a, T>,
    _in_flight: RwLockWriteGuard<'a, ()>,
}

impl<T> ContentsLock<T> {
    pub(super) fn new(contents: T) -> ContentsLock<T> {
        ContentsLock {
            in_flight: RwLock::new(()),
            contents: Mutex::new(contents),
        }
    }

    /// Takes the exclusive lock: waits until no read is in flight.
    pub(super) fn lock(&self) -> ExclusiveGuard<'_, T> {
        let in_flight = self.in_flight.write();
        let in_flight = in_flight.unwrap_or_else(PoisonError::into_inner);
        ExclusiveGuard {
            contents: lock(&self.contents),
            _in_flight: in_flight,
        }
    }

    /// Looks up where the data of a read lies. The read is in flight until the guard is dropped.
    pub(super) fn begin_read<R>(
        &self,
        look_up: impl FnOnce(&mut T) -> R,
    ) -> (R, RwLockReadGuard<'_, ()>) {
        let in_flight = self.in_flight.read();
        let in_flight = in_flight.unwrap_or_else(PoisonError::into_inner);
        let found = look_up(&mut lock(&self.contents));
        (found, in_flight)
    }

    /// Locks the contents while reads may be in flight.
    pub(super) fn lock_during_reads(&self) -> MutexGuard<'_, T> {
        lock(&self.contents)
    }
}

impl<T> Deref for ExclusiveGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.contents
    }
}

impl<T> DerefMut for ExclusiveGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.contents
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn only_the_exclusive_lock_waits_for_reads() {
        let contents = ContentsLock::new(1);
        let (found, in_flight) = contents.begin_read(|value| *value);
        assert_eq!(found, 1);
        let (other, also_in_flight) = contents.begin_read(|value| *value);
        assert_eq!(other, 1);
        *contents.lock_during_reads() = 2;
        let is_locked = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut locked = contents.lock();
                is_locked.store(true, Ordering::SeqCst);
                *locked = 3;
            });
            thread::sleep(std::time::Duration::from_millis(50));
            drop(in_flight);
            thread::sleep(std::time::Duration::from_millis(50));
            assert!(!is_locked.load(Ordering::SeqCst), "a read is in flight");
            assert_eq!(*contents.lock_during_reads(), 2);
            drop(also_in_flight);
        });
        assert_eq!(contents.begin_read(|value| *value).0, 3);
    }

    /// One thread keeps swapping the slots of two clusters while others read.
    #[test]
    fn a_read_gets_no_other_cluster_s_data() {
        const CLUSTERS: usize = 4;
        let slots: [AtomicU64; CLUSTERS] = std::array::from_fn(|n| AtomicU64::new(n as u64));
        // The slot of each cluster.
        let table = ContentsLock::new(std::array::from_fn::<usize, CLUSTERS, _>(|n| n));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for n in 0..20_000 {
                        let cluster = n % CLUSTERS;
                        let (slot, _in_flight) = table.begin_read(|table| table[cluster]);
                        thread::yield_now();
                        let data = slots[slot].load(Ordering::SeqCst);
                        assert_eq!(data, cluster as u64);
                    }
                    stop.store(true, Ordering::SeqCst);
                });
            }
            scope.spawn(|| {
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let (one, other) = (n % CLUSTERS, (n + 1) % CLUSTERS);
                    let mut table = table.lock();
                    table.swap(one, other);
                    for cluster in [one, other] {
                        slots[table[cluster]].store(cluster as u64, Ordering::SeqCst);
                    }
                }
            });
        });
    }
}
