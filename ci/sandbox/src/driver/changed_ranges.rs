//! The ranges of a file that changed, as change tracking (`PLOOP_IOC_TRACK_READ`) hands them out.

use std::collections::BTreeMap;

/// All numbers are bytes of the file.
#[derive(Default)]
pub(super) struct ChangedRanges {
    /// The end of each range, by its start.
    pub(super) ranges: BTreeMap<u64, u64>,
    /// The end of what the caller has copied (`PLOOP_IOC_TRACK_SETPOS`).
    pub(super) end: u64,
    /// Where the last range that was handed out ends.
    next: u64,
}

impl ChangedRanges {
    pub(super) fn insert(&mut self, start: u64, end: u64) {
        let (mut start, mut end) = (start, end);
        // It is joined with the ranges that it touches.
        while let Some((&other, &other_end)) = self.ranges.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.ranges.remove(&other);
            start = start.min(other);
            end = end.max(other_end);
        }
        self.ranges.insert(start, end);
    }

    /// Takes the next range behind the last one, or the first one again when everything up to `len` was copied once.
    pub(super) fn take(&mut self, len: u64) -> Option<(u64, u64)> {
        let at = self.next;
        let from = |start| {
            let (&start, &end) = self.ranges.range(start..).next()?;
            Some((start, end))
        };
        let mut found = from(at);
        if found.is_none() && self.end >= len && at != 0 {
            found = from(0);
        }
        match found {
            Some((start, end)) => {
                self.ranges.remove(&start);
                self.next = end;
            }
            None => self.next = 0,
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_joined_and_taken_in_order() {
        let mut ranges = ChangedRanges::default();
        for (start, end) in [(40, 50), (0, 10), (20, 30), (10, 20), (45, 60), (25, 26)] {
            ranges.insert(start, end);
        }
        assert_eq!(ranges.ranges, BTreeMap::from([(0, 30), (40, 60)]));
        ranges.end = 100;
        assert_eq!(ranges.take(100), Some((0, 30)));
        ranges.insert(5, 6);
        assert_eq!(ranges.take(100), Some((40, 60)));
        assert_eq!(ranges.take(100), Some((5, 6)));
        assert_eq!(ranges.take(100), None);
    }
}
