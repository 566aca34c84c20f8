//! A set of cluster numbers.

use std::collections::HashMap;
use std::ops::Range;

/// A set of cluster numbers as a bitmap in pages. Numbers of a delta lie close together, so memory grows with how many
/// there are, and not with how large they are.
#[derive(Debug, Default)]
pub(super) struct Clusters {
    pages: HashMap<u32, Box<[u64; WORDS]>>,
    len: u64,
}

const WORDS: usize = 16;
const BITS: u32 = 64 * WORDS as u32;

impl Clusters {
    /// Adds a number; `false` where it was there already.
    pub(super) fn insert(&mut self, number: u32) -> bool {
        let page = self
            .pages
            .entry(number / BITS)
            .or_insert_with(|| Box::new([0; WORDS]));
        let word = &mut page[(number % BITS / 64) as usize];
        let bit = 1 << (number % 64);
        let new = *word & bit == 0;
        *word |= bit;
        self.len += u64::from(new);
        new
    }

    /// Whether a number is there.
    #[cfg(feature = "image-write")]
    pub(super) fn contains(&self, number: u32) -> bool {
        self.pages
            .get(&(number / BITS))
            .is_some_and(|page| page[(number % BITS / 64) as usize] & 1 << (number % 64) != 0)
    }

    /// How many numbers of a range are there.
    pub(super) fn count(&self, numbers: Range<u32>) -> u64 {
        let mut count = 0;
        let mut at = numbers.start;
        while at < numbers.end {
            let end = numbers.end.min((at / BITS + 1).saturating_mul(BITS));
            if let Some(page) = self.pages.get(&(at / BITS)) {
                let is_there =
                    |number: &u32| page[(number % BITS / 64) as usize] & 1 << (number % 64) != 0;
                count += (at..end).filter(is_there).count() as u64;
            }
            at = end;
        }
        count
    }

    /// How many numbers there are.
    pub(super) fn len(&self) -> u64 {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_once() {
        let mut clusters = Clusters::default();
        for number in [0, 1, 63, 64, 1023, 1024, 1 << 20, u32::MAX - 1, u32::MAX] {
            assert!(clusters.insert(number), "{number}");
            assert!(!clusters.insert(number), "{number}");
        }
        assert!(clusters.insert(62));
        assert_eq!(clusters.len(), 10);
        assert_eq!(clusters.count(0..64), 4);
        assert_eq!(clusters.count(1..1024), 5);
        assert_eq!(clusters.count(1024..u32::MAX), 3);
        assert_eq!(clusters.count(5..5), 0);
    }
}
