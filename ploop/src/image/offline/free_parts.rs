//! [`FreeParts`]: which clusters of a disk its file system does not use.

use std::ops::Range;

use crate::Size;
use crate::image::clusters::Clusters;

/// Collects the parts of a disk that its file system does not use:
/// [`OfflineImage::compact_with_free`](super::OfflineImage::compact_with_free) makes one and has it filled.
///
/// Memory is one bit for each free cluster, however many parts there are.
#[derive(Debug)]
pub struct FreeParts {
    cluster: u64,
    size: u64,
    clusters: Clusters,
    /// What was added last. The next part may continue it.
    last: Range<u64>,
}

impl FreeParts {
    pub(super) fn new(cluster: Size, size: Size) -> FreeParts {
        FreeParts {
            cluster: cluster.bytes(),
            size: size.bytes(),
            clusters: Clusters::default(),
            last: 0..0,
        }
    }

    /// Adds a part of the disk, in bytes. What is behind the end of the disk does not count, and an empty part is none.
    ///
    /// A part that begins where the one before it ended continues it: a cluster that lies in both is free. So parts have
    /// to come in order; of others, only the clusters that lie in one of them are free.
    pub fn add(&mut self, part: Range<u64>) {
        if part.start == self.last.end {
            self.last.end = self.last.end.max(part.end);
            return;
        }
        self.take_last();
        self.last = part;
    }

    fn take_last(&mut self) {
        let Range { start, end } = std::mem::take(&mut self.last);
        // The last cluster of a disk may be shorter.
        let end = match end >= self.size {
            true => self.size.div_ceil(self.cluster),
            false => end / self.cluster,
        };
        for number in start.div_ceil(self.cluster)..end {
            // A number that does not fit is in no table.
            if let Ok(number) = u32::try_from(number) {
                self.clusters.insert(number);
            }
        }
    }

    /// The clusters that lie wholly in free parts.
    pub(super) fn into_clusters(mut self) -> Clusters {
        self.take_last();
        self.clusters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The free ones of the clusters 0 to 9, of 10 bytes each.
    fn free(size: u64, parts: &[(u64, u64)]) -> Vec<u32> {
        let mut free = FreeParts::new(Size::from_bytes(10), Size::from_bytes(size));
        for (start, end) in parts {
            free.add(*start..*end);
        }
        let clusters = free.into_clusters();
        let found: Vec<u32> = (0..10).filter(|it| clusters.contains(*it)).collect();
        assert_eq!(found.len() as u64, clusters.len());
        found
    }

    #[test]
    fn only_whole_clusters_are_free() {
        assert_eq!(free(100, &[(0, 10), (20, 40), (55, 69)]), [0, 2, 3]);
        assert_eq!(free(100, &[(0, 9), (11, 20)]), []);
        assert_eq!(free(100, &[(95, 100)]), []);
        assert_eq!(free(100, &[]), []);
    }

    #[test]
    fn parts_that_touch_are_one() {
        assert_eq!(free(100, &[(0, 3), (3, 7), (7, 12)]), [0]);
        assert_eq!(free(100, &[(5, 15), (15, 20), (20, 30)]), [1, 2]);
        // With something between them they are two.
        assert_eq!(free(100, &[(0, 5), (6, 10)]), []);
    }

    #[test]
    fn parts_in_any_order_free_no_more_than_they_have() {
        assert_eq!(free(100, &[(20, 30), (0, 10), (5, 10)]), [0, 2]);
        assert_eq!(free(100, &[(15, 20), (10, 15)]), []);
        assert_eq!(free(100, &[(30, 10), (40, 50)]), [4]);
    }

    #[test]
    fn the_last_cluster_may_be_shorter() {
        assert_eq!(free(95, &[(85, 95)]), [9]);
        assert_eq!(free(95, &[(85, 94)]), []);
        assert_eq!(free(95, &[(80, u64::MAX)]), [8, 9]);
        assert_eq!(free(95, &[(100, 200)]), []);
    }
}
