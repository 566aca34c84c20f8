//! [`ChangedParts`]: the parts of a device that are not the same in two states.

use std::ops::Range;

/// How many parts are kept, of 16 bytes each.
const MAX_PARTS: usize = 1 << 20;

/// Parts that may differ, in order. Where there are too many of them, what lies between two counts as one that may differ,
/// too: whoever asks compares more than is needed, and misses nothing.
#[derive(Debug, Default)]
pub(crate) struct ChangedParts {
    parts: Vec<Range<u64>>,
    /// Parts with less than this between them are one.
    gap: u64,
}

impl ChangedParts {
    /// Adds a part that begins behind all others.
    pub(crate) fn push(&mut self, part: Range<u64>) {
        match self.parts.last_mut() {
            Some(last) if part.start <= last.end + self.gap => last.end = last.end.max(part.end),
            _ => self.parts.push(part),
        }
        self.limit(MAX_PARTS);
    }

    /// Adds parts in any order.
    pub(crate) fn extend(&mut self, parts: impl IntoIterator<Item = Range<u64>>) {
        self.parts.extend(parts);
        self.parts.sort_by_key(|part| part.start);
        self.join();
        self.limit(MAX_PARTS);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn limit(&mut self, max: usize) {
        if self.parts.len() <= max {
            return;
        }
        while self.parts.len() > max / 2 {
            self.gap = (self.gap * 2).max(4 << 10);
            self.join();
        }
    }

    fn join(&mut self) {
        let gap = self.gap;
        self.parts.dedup_by(|next, last| {
            let touches = next.start <= last.end + gap;
            if touches {
                last.end = last.end.max(next.end);
            }
            touches
        });
    }

    /// Up to where nothing has changed from an offset on; that offset itself where it lies in a part.
    pub(crate) fn unchanged_until(&self, at: u64) -> u64 {
        let next = self.parts.partition_point(|part| part.end <= at);
        self.parts
            .get(next)
            .map_or(u64::MAX, |part| part.start.max(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_parts_has_not_changed() {
        let mut changed = ChangedParts::default();
        assert_eq!(changed.unchanged_until(0), u64::MAX);
        assert!(changed.is_empty());
        for (start, end) in [(10, 20), (20, 30), (50, 60)] {
            changed.push(start..end);
        }
        changed.extend([(55, 70), (5, 8)].map(|(start, end)| start..end));
        for (at, until) in [
            (0, 5),
            (5, 5),
            (7, 7),
            (8, 10),
            (29, 29),
            (30, 50),
            (69, 69),
            (70, u64::MAX),
        ] {
            assert_eq!(changed.unchanged_until(at), until, "{at}");
        }
    }

    #[test]
    fn of_many_parts_none_is_missed() {
        let mut changed = ChangedParts::default();
        let parts: Vec<u64> = (0..1000).map(|number| number * 10_000).collect();
        for start in &parts {
            changed.push(*start..start + 100);
            changed.limit(100);
            assert!(changed.parts.len() <= 100);
        }
        for start in parts {
            assert_eq!(changed.unchanged_until(start + 50), start + 50);
        }
    }
}
