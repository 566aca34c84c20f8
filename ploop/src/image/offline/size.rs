//! The sizes that a disk can have.

use crate::image::header::Header;
use crate::{ClusterSize, Error, ErrorKind, FormatVersion, Result, Size};

/// libploop calculates the length of the table in 32 bits.
const MAX_CLUSTERS: u64 = 1 << 30;

/// A size in whole clusters, as libploop rounds it: up, or down where the format cannot hold that.
pub(super) fn whole_clusters(
    operation: &'static str,
    version: FormatVersion,
    cluster: ClusterSize,
    size: Size,
) -> Result<Size> {
    let bytes = cluster.bytes();
    let max = match version {
        FormatVersion::V1 => u64::from(u32::MAX) * 512,
        FormatVersion::V2 => MAX_CLUSTERS * bytes,
    };
    if size.is_zero() || size.bytes() > max {
        let why = format!(
            "the size {size} is not within what format {version} and clusters of {cluster} can hold, up to {}",
            Size::from_bytes(max)
        );
        return Err(Error::new(ErrorKind::InvalidInput, operation, why));
    }
    let rounded = size.bytes().next_multiple_of(bytes);
    Ok(Size::from_bytes(match rounded > max {
        true => max - max % bytes,
        false => rounded,
    }))
}

/// The header of a delta of the same version and cluster size, with a table that is as long as it can be where the data
/// of the disk begins.
pub(super) fn widest(
    version: FormatVersion,
    cluster: ClusterSize,
    table_clusters: u64,
) -> Result<Header> {
    let entries = (table_clusters * cluster.bytes() - Header::LEN as u64) / 4;
    let max = match version {
        FormatVersion::V1 => u64::from(u32::MAX) / u64::from(cluster.sectors()),
        FormatVersion::V2 => MAX_CLUSTERS,
    };
    let size = entries.min(max) * cluster.bytes();
    Header::new(version, cluster, Size::from_bytes(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_as_libploop_does() {
        let mib = ClusterSize::DEFAULT;
        let round = |version, size| whole_clusters("test", version, mib, Size::from_bytes(size));
        let (v1, v2) = (FormatVersion::V1, FormatVersion::V2);
        assert_eq!(round(v2, 1).unwrap(), Size::from_mib(1));
        assert_eq!(round(v1, (5 << 20) + 512).unwrap(), Size::from_mib(6));
        let tib: u64 = 1 << 40;
        assert_eq!(
            round(v1, 2 * tib - 512).unwrap().bytes(),
            2 * tib - (1 << 20)
        );
        for (version, size) in [(v1, 0), (v1, 2 * tib), (v2, 0), (v2, (1 << 50) + 1)] {
            let error = round(version, size).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{size}");
        }
        assert_eq!(round(v2, 1 << 50).unwrap().bytes(), 1 << 50);
    }

    #[test]
    fn the_widest_table_begins_no_later() {
        for shift in [15, 20, 26] {
            let cluster = ClusterSize::from_bytes(1 << shift).unwrap();
            for clusters in [1, 2, 7] {
                let header = widest(FormatVersion::V2, cluster, clusters).unwrap();
                assert_eq!(header.data_start(), clusters << shift);
            }
        }
    }
}
