//! Ranges of a file that changed.

use std::collections::BTreeMap;

/// Everything in bytes of the file.
#[derive(Default)]
pub(super) struct Track {
    /// Ranges that changed: their ends by their starts.
    pub(super) changed: BTreeMap<u64, u64>,
    /// How far the copy is; what lies behind is copied anyway.
    pub(super) end: u64,
    /// Where the last range that was handed out ends.
    next: u64,
}

impl Track {
    pub(super) fn insert(&mut self, start: u64, end: u64) {
        let (mut start, mut end) = (start, end);
        // Those it touches become one with it.
        while let Some((&other, &other_end)) = self.changed.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.changed.remove(&other);
            start = start.min(other);
            end = end.max(other_end);
        }
        self.changed.insert(start, end);
    }

    /// The next range, from where the last one ended; at the end of a whole pass, from the beginning.
    pub(super) fn take(&mut self, len: u64) -> Option<(u64, u64)> {
        let at = self.next;
        let from = |start| {
            let (&start, &end) = self.changed.range(start..).next()?;
            Some((start, end))
        };
        let mut found = from(at);
        if found.is_none() && self.end >= len && at != 0 {
            found = from(0);
        }
        match found {
            Some((start, end)) => {
                self.changed.remove(&start);
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
    fn ranges_that_touch_become_one_and_come_in_order() {
        let mut track = Track::default();
        for (start, end) in [(40, 50), (0, 10), (20, 30), (10, 20), (45, 60), (25, 26)] {
            track.insert(start, end);
        }
        assert_eq!(track.changed, BTreeMap::from([(0, 30), (40, 60)]));
        track.end = 100;
        assert_eq!(track.take(100), Some((0, 30)));
        track.insert(5, 6);
        assert_eq!(track.take(100), Some((40, 60)));
        assert_eq!(track.take(100), Some((5, 6)));
        assert_eq!(track.take(100), None);
    }
}
