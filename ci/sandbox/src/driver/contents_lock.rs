//! The lock of what a device holds. Reads happen outside of it, and see no cluster that is moved away under them.
//!
//! A read looks up under the lock where its data lies, and then reads the files without it, so that reads wait neither for
//! each other nor for a write to the host. In between, the place must not become another cluster's. So a read says that it
//! is in flight (it holds `in_flight` for reading) before it looks anything up, and until it has the data. Who takes the
//! lock the usual way ([`lock`]) waits until no read is in flight, and none begins meanwhile: it may move
//! clusters, give them up and exchange the files, as discards, relocation, merges and all changes of levels do.
//!
//! [`beside_reads`](ContentsLock::beside_reads) does not wait. It is for what neither gives a cluster up nor moves one: a
//! write goes into a cluster that is there, and a read at the same time gets the old bytes or the new ones; or it gets a new
//! cluster, which no read in flight can have found, because the place was given up under the full lock if it was ever
//! another's.
//!
//! Reads in flight end by themselves: they wait for the host's files and for nothing of this process.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::lock::{Lock, lock};

/// See the module. `in_flight` is taken first.
#[derive(Default)]
pub(super) struct ContentsLock<T> {
    in_flight: RwLock<()>,
    contents: Mutex<T>,
}

/// The full lock: no read is in flight.
pub(super) struct Alone<'a, T> {
    // Dropped first.
    contents: MutexGuard<'a, T>,
    _in_flight: RwLockWriteGuard<'a, ()>,
}

/// A read is in flight until this is dropped.
pub(super) struct InFlight<'a> {
    _guard: RwLockReadGuard<'a, ()>,
}

impl<T> ContentsLock<T> {
    pub(super) fn new(contents: T) -> ContentsLock<T> {
        ContentsLock {
            in_flight: RwLock::new(()),
            contents: Mutex::new(contents),
        }
    }

    /// Looks something up for a read, which has to drop what is returned beside it when it has its data.
    pub(super) fn look_up<R>(&self, look: impl FnOnce(&mut T) -> R) -> (R, InFlight<'_>) {
        let guard = self.in_flight.read();
        let in_flight = InFlight {
            _guard: guard.unwrap_or_else(PoisonError::into_inner),
        };
        let found = look(&mut lock(&self.contents));
        (found, in_flight)
    }

    /// The contents, while reads may be in flight.
    pub(super) fn beside_reads(&self) -> MutexGuard<'_, T> {
        lock(&self.contents)
    }
}

impl<T> Lock for ContentsLock<T> {
    type Guard<'a>
        = Alone<'a, T>
    where
        T: 'a;

    fn take(&self) -> Alone<'_, T> {
        let in_flight = self.in_flight.write();
        let in_flight = in_flight.unwrap_or_else(PoisonError::into_inner);
        Alone {
            contents: lock(&self.contents),
            _in_flight: in_flight,
        }
    }
}

impl<T> Deref for Alone<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.contents
    }
}

impl<T> DerefMut for Alone<'_, T> {
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
    fn who_writes_does_not_wait_for_reads_and_who_moves_does() {
        let contents = ContentsLock::new(1);
        let (found, in_flight) = contents.look_up(|value| *value);
        assert_eq!(found, 1);
        let (other, also_in_flight) = contents.look_up(|value| *value);
        assert_eq!(other, 1);
        *contents.beside_reads() = 2;
        let is_alone = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut alone = lock(&contents);
                is_alone.store(true, Ordering::SeqCst);
                *alone = 3;
            });
            thread::sleep(std::time::Duration::from_millis(50));
            drop(in_flight);
            thread::sleep(std::time::Duration::from_millis(50));
            assert!(!is_alone.load(Ordering::SeqCst), "a read is in flight");
            assert_eq!(*contents.beside_reads(), 2);
            drop(also_in_flight);
        });
        assert_eq!(contents.look_up(|value| *value).0, 3);
    }

    /// Clusters are slots of a file here, and a mover swaps two of them, so that each slot is always another's soon.
    #[test]
    fn a_read_gets_no_other_cluster_s_data() {
        const CLUSTERS: usize = 4;
        let slots: [AtomicU64; CLUSTERS] = std::array::from_fn(|n| AtomicU64::new(n as u64));
        // Where each cluster lies.
        let table = ContentsLock::new(std::array::from_fn::<usize, CLUSTERS, _>(|n| n));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for n in 0..20_000 {
                        let cluster = n % CLUSTERS;
                        let (slot, _in_flight) = table.look_up(|table| table[cluster]);
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
                    let mut table = lock(&table);
                    table.swap(one, other);
                    for cluster in [one, other] {
                        slots[table[cluster]].store(cluster as u64, Ordering::SeqCst);
                    }
                }
            });
        });
    }
}
