//! A set of numbers, as ranges that do not touch.

use std::collections::BTreeMap;

/// A set of numbers: the end of each range, by its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    /// Adds a range, which is joined with those that it touches.
    pub(super) fn insert(&mut self, start: u64, end: u64) {
        let (mut start, mut end) = (start, end);
        if start >= end {
            return;
        }
        while let Some((&other, &other_end)) = self.0.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.0.remove(&other);
            start = start.min(other);
            end = end.max(other_end);
        }
        self.0.insert(start, end);
    }

    /// Removes a range, which may be a part of others.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        while let Some((&other, &other_end)) = self.0.range(..end).next_back() {
            if other_end <= start {
                break;
            }
            self.0.remove(&other);
            if other < start {
                self.0.insert(other, start);
            }
            if end < other_end {
                self.0.insert(end, other_end);
            }
        }
    }

    /// The first range at or after a number; of one that begins before, the rest.
    pub(super) fn next_from(&self, at: u64) -> Option<(u64, u64)> {
        let before = self.0.range(..=at).next_back();
        let rest = before.filter(|(_, end)| **end > at);
        rest.map(|(_, end)| (at, *end))
            .or_else(|| self.0.range(at..).next().map(|(start, end)| (*start, *end)))
    }

    /// Takes the first range that begins at or after a number.
    pub(super) fn take_from(&mut self, at: u64) -> Option<(u64, u64)> {
        let (&start, &end) = self.0.range(at..).next()?;
        self.0.remove(&start);
        Some((start, end))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(set: &RangeSet) -> Vec<(u64, u64)> {
        set.0.iter().map(|(start, end)| (*start, *end)).collect()
    }

    #[test]
    fn ranges_that_touch_are_joined() {
        let mut set = RangeSet::default();
        for (start, end) in [
            (40, 50),
            (0, 10),
            (20, 30),
            (10, 20),
            (45, 60),
            (25, 26),
            (9, 9),
        ] {
            set.insert(start, end);
        }
        assert_eq!(ranges(&set), [(0, 30), (40, 60)]);
    }

    /// Against a list of booleans.
    #[test]
    fn it_is_a_set() {
        const LEN: u64 = 64;
        let mut set = RangeSet::default();
        let mut flags = [false; LEN as usize];
        let mut random: u64 = 1;
        for _ in 0..5000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let (start, len) = (random >> 33 & 63, random >> 40 & 15);
            let end = (start + len).min(LEN);
            let adds = random >> 60 & 1 == 0;
            if adds {
                set.insert(start, end);
            } else {
                set.remove(start, end);
            }
            flags[start as usize..end as usize].fill(adds);
            let mut listed = [false; LEN as usize];
            let mut at = 0;
            while let Some((start, end)) = set.next_from(at) {
                assert!(start >= at && start < end);
                listed[start as usize..end as usize].fill(true);
                at = end;
            }
            assert_eq!(listed, flags);
            let pairs = ranges(&set);
            assert!(pairs.windows(2).all(|pair| pair[0].1 < pair[1].0));
            assert_eq!(set.is_empty(), !flags.contains(&true));
        }
        set.insert(10, 20);
        assert!(matches!(set.next_from(15), Some((15, end)) if end >= 20));
    }
}
