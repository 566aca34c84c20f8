//! The ranges of a file that changed, as change tracking (`PLOOP_IOC_TRACK_READ`) hands them out.

use super::range_set::RangeSet;

/// All numbers are bytes of the file.
#[derive(Default)]
pub(super) struct ChangedRanges {
    pub(super) ranges: RangeSet,
    /// The end of what the caller has copied (`PLOOP_IOC_TRACK_SETPOS`).
    pub(super) end: u64,
    /// Where the last range that was handed out ends.
    next: u64,
}

impl ChangedRanges {
    pub(super) fn insert(&mut self, start: u64, end: u64) {
        self.ranges.insert(start, end);
    }

    /// Takes the next range behind the last one, or the first one again when everything up to `len` was copied once.
    pub(super) fn take(&mut self, len: u64) -> Option<(u64, u64)> {
        let mut found = self.ranges.take_from(self.next);
        if found.is_none() && self.end >= len && self.next != 0 {
            found = self.ranges.take_from(0);
        }
        self.next = found.map_or(0, |(_, end)| end);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_taken_in_order() {
        let mut ranges = ChangedRanges::default();
        for (start, end) in [(40, 60), (0, 30)] {
            ranges.insert(start, end);
        }
        ranges.end = 100;
        assert_eq!(ranges.take(100), Some((0, 30)));
        ranges.insert(5, 6);
        assert_eq!(ranges.take(100), Some((40, 60)));
        assert_eq!(ranges.take(100), Some((5, 6)));
        assert_eq!(ranges.take(100), None);
    }
}
