//! [`WriteTracker`]: which clusters of a file were written (`PLOOP_IOC_TRACK_INIT`, `PLOOP_IOC_TRACK_READ`).

use std::collections::BTreeSet;
use std::ops::Range;

/// The clusters of a file that were written since they were last taken.
#[derive(Debug, Default)]
pub(super) struct WriteTracker {
    /// `None` while nothing is tracked.
    slots: Option<BTreeSet<u64>>,
}

impl WriteTracker {
    /// Begins or ends tracking. If it is on already, nothing is forgotten.
    pub(super) fn track(&mut self, on: bool) {
        match on {
            true => drop(self.slots.get_or_insert_default()),
            false => self.slots = None,
        }
    }

    /// Records a write of `len` bytes at `offset`.
    pub(super) fn record(&mut self, offset: u64, len: u64, cluster: u64) {
        if let Some(slots) = &mut self.slots {
            slots.extend(offset / cluster..(offset + len).div_ceil(cluster));
        }
    }

    /// Takes the ranges that were written, in order and in whole clusters.
    pub(super) fn take(&mut self, cluster: u64) -> Vec<Range<u64>> {
        let slots = self.slots.as_mut().map(std::mem::take).unwrap_or_default();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for slot in slots {
            let start = slot * cluster;
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end += cluster,
                _ => ranges.push(start..start + cluster),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_joined_and_taken_once() {
        let mut tracker = WriteTracker::default();
        tracker.record(0, 10, 100);
        assert!(tracker.take(100).is_empty());
        tracker.track(true);
        for (offset, len) in [(250, 10), (99, 2), (0, 0), (200, 100), (500, 1)] {
            tracker.record(offset, len, 100);
        }
        tracker.track(true);
        assert_eq!(tracker.take(100), [0..300, 500..600]);
        assert!(tracker.take(100).is_empty());
        tracker.record(0, 1, 100);
        tracker.track(false);
        assert!(tracker.take(100).is_empty());
    }
}
