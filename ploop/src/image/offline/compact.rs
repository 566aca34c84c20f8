//! Compaction: clusters that nobody needs are removed from the deltas, and the files are cut.

use std::ops::Range;
use std::path::PathBuf;

use super::OfflineImage;
use super::change::OfflineChange;
use crate::image::chain::Chain;
use crate::image::descriptor::Image;
use crate::image::file;
use crate::image::holes::is_zero;
use crate::image::progress::{Progress, counted};
use crate::image::write::WritableDelta;
use crate::{Error, Guid, ImageMode, Result, Size};

/// What [`OfflineImage::compact`] does.
///
/// ```
/// use ploop::image::CompactOptions;
///
/// let how_much = CompactOptions::new().dry_run(true);
/// # let _ = how_much;
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct CompactOptions {
    dry_run: bool,
    free: Vec<Range<u64>>,
}

impl CompactOptions {
    /// Removes clusters of zeros, those that are equal to what is below, and those without an entry.
    pub fn new() -> CompactOptions {
        CompactOptions::default()
    }

    /// Whether only to find out how much would be freed (default: no).
    pub fn dry_run(mut self, dry_run: bool) -> CompactOptions {
        self.dry_run = dry_run;
        self
    }

    /// Parts of the disk that its file system does not use now, in bytes, in order and without overlaps (default: none).
    /// Clusters of the top delta that lie wholly in one are removed, too, where no delta below has them: they read as
    /// zero then.
    pub fn free(mut self, parts: Vec<Range<u64>>) -> CompactOptions {
        self.free = parts;
        self
    }

    /// Whether the file system does not use a part of the disk.
    fn is_free(&self, part: &Range<u64>) -> bool {
        let next = self.free.partition_point(|free| free.end < part.end);
        self.free
            .get(next)
            .is_some_and(|free| free.start <= part.start && part.end <= free.end)
    }
}

/// What [`OfflineImage::compact`] has freed, or would free.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct CompactReport {
    /// The deltas that were looked at, in the order of the descriptor.
    pub deltas: Vec<CompactedDelta>,
}

impl CompactReport {
    /// How much shorter all files are together.
    #[must_use]
    pub fn freed(&self) -> Size {
        self.deltas.iter().map(CompactedDelta::freed).sum()
    }
}

/// A delta as a [`CompactReport`] has it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct CompactedDelta {
    /// The snapshot or top whose data it holds.
    pub guid: Guid,
    /// The file.
    #[cfg_attr(feature = "serde", serde(with = "crate::stored::paths"))]
    pub file: PathBuf,
    /// Clusters of zeros, where no delta below has anything.
    pub zeros: Size,
    /// Clusters that are equal to what is below.
    pub same: Size,
    /// Clusters that [the file system does not use](CompactOptions::free).
    pub free: Size,
    /// Clusters of the file without an entry.
    pub lost: Size,
}

impl CompactedDelta {
    /// How much shorter the file is.
    #[must_use]
    pub fn freed(&self) -> Size {
        self.zeros + self.same + self.free + self.lost
    }
}

impl OfflineImage {
    /// Frees the space of clusters that are not needed, in all deltas: clusters of zeros, clusters that are equal to what
    /// is below, those that the caller knows to be free, and those that no entry of the table leads to. What is behind
    /// them in the file moves to their places, and the file is cut. A raw base, and the base of a preallocated image, stay
    /// as they are.
    ///
    /// Each state of the disk reads as before, but for what the caller has called free. Takes as long as reading all
    /// data; `progress` is called on this thread after every few MiB.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use ploop::image::{self, CreateOptions};
    /// # let base = dir.path().join("root.hds");
    /// # let mut image = image::create(base, ploop::Size::from_mib(64), &CreateOptions::new())?;
    /// use ploop::image::CompactOptions;
    ///
    /// let report = image.compact(&CompactOptions::new().dry_run(true), |_| {})?;
    /// println!("{} could be freed", report.freed());
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Corrupt`](crate::ErrorKind::Corrupt) where a delta is damaged; [`Unsupported`](crate::ErrorKind::Unsupported) where the file of
    /// a delta has several names, and this is no dry run; [`Cancelled`](crate::ErrorKind::Cancelled) after
    /// [`set_cancel`](OfflineImage::set_cancel); and those that [all operations](OfflineImage#what-is-refused) have. After
    /// an error or an interruption the image reads as before, some deltas are compact, and one may have clusters without
    /// an entry.
    pub fn compact(
        &mut self,
        options: &CompactOptions,
        progress: impl FnMut(Progress),
    ) -> Result<CompactReport> {
        let change = OfflineChange::begin(self, "compact image")?;
        let images = &change.descriptor.images;
        let is_kept = |image: &Image| {
            let is_base = change.descriptor.parent(image.guid).is_none();
            is_base && change.descriptor.mode != ImageMode::Expanded
        };
        let images: Vec<&Image> = images.iter().filter(|image| !is_kept(image)).collect();
        change.require_sound(images.iter().copied())?;
        let mut total = 0;
        for image in &images {
            if !options.dry_run {
                change.require_no_hard_links(image)?;
            }
            let mut delta = open(&change, image)?;
            total += count(&mut delta)? * change.descriptor.cluster.bytes();
        }
        let mut report = counted(Size::from_bytes(total), progress);
        // What is below has to be final first.
        let mut order = images.clone();
        order.sort_by_key(|image| change.descriptor.depth(image.guid));
        let mut found = Vec::new();
        for image in order {
            found.push(change.compact(image, options, &mut report)?);
        }
        let place = |delta: &CompactedDelta| images.iter().position(|it| it.guid == delta.guid);
        found.sort_by_key(place);
        Ok(CompactReport { deltas: found })
    }
}

fn open(change: &OfflineChange<'_>, image: &Image) -> Result<WritableDelta> {
    let failed = |error: Error| error.during(change.operation());
    let file = WritableDelta::open_file(&image.file).map_err(failed)?;
    WritableDelta::from_file(&image.file, file, false).map_err(failed)
}

/// How many clusters a delta has.
fn count(delta: &mut WritableDelta) -> Result<u64> {
    let mut count = 0;
    let mut next = delta.next_cluster(0)?;
    while let Some((number, _)) = next {
        count += 1;
        next = delta.next_cluster(number + 1)?;
    }
    Ok(count)
}

impl OfflineChange<'_> {
    fn compact(
        &self,
        image: &Image,
        options: &CompactOptions,
        report: &mut dyn FnMut(u64),
    ) -> Result<CompactedDelta> {
        self.compact_delta(image, options, report)
            .map_err(|error| error.during(self.operation()))
    }

    fn compact_delta(
        &self,
        image: &Image,
        options: &CompactOptions,
        report: &mut dyn FnMut(u64),
    ) -> Result<CompactedDelta> {
        let cluster = self.descriptor.cluster.bytes();
        let is_top = image.guid == self.descriptor.top;
        let below = self.descriptor.parent(image.guid);
        let below: Vec<Image> = match below {
            Some(below) => {
                let chain = self.descriptor.chain(below);
                chain.into_iter().cloned().collect()
            }
            None => Vec::new(),
        };
        let below = match below.is_empty() {
            true => None,
            false => Some(self.open_chain(&below)?),
        };
        let mut delta = open(self, image)?;
        let size = delta.header().size.bytes();
        let len = file::length(self.operation(), delta.file())?;
        let slots = len.saturating_sub(delta.header().data_start()) / cluster;
        let (mut used, mut zeros, mut same, mut free) = (0, 0, 0, 0);
        let mut own = vec![0; cluster as usize];
        let mut other = Vec::new();
        let mut unreported = 0;
        let mut next = delta.next_cluster(0)?;
        while let Some((number, at)) = next {
            next = delta.next_cluster(number + 1)?;
            self.check_cancel()?;
            used += 1;
            let start = u64::from(number) * cluster;
            let part = start..size.min(start + cluster);
            let has_below = match &below {
                Some(below) => below.has(number)?,
                None => false,
            };
            let kind = if is_top && !has_below && options.is_free(&part) {
                Some(&mut free)
            } else {
                let own = &mut own[..(part.end - part.start) as usize];
                delta.read(own, at)?;
                match &below {
                    _ if !has_below => is_zero(own).then_some(&mut zeros),
                    Some(below) => is_equal(below, &part, own, &mut other)?.then_some(&mut same),
                    None => None,
                }
            };
            if let Some(kind) = kind {
                *kind += cluster;
                if !options.dry_run {
                    delta.remove(number)?;
                }
            }
            unreported += cluster;
            if unreported >= 4 << 20 {
                report(std::mem::take(&mut unreported));
            }
        }
        report(unreported);
        if !options.dry_run && (slots > used || zeros + same + free > 0) {
            delta.compact()?;
            delta.settle_flags()?;
            delta.flush()?;
        }
        Ok(CompactedDelta {
            guid: image.guid,
            file: image.file.clone(),
            zeros: Size::from_bytes(zeros),
            same: Size::from_bytes(same),
            free: Size::from_bytes(free),
            lost: Size::from_bytes(slots.saturating_sub(used) * cluster),
        })
    }
}

/// Whether the chain below has these bytes in this part of the disk.
fn is_equal(below: &Chain, part: &Range<u64>, bytes: &[u8], buffer: &mut Vec<u8>) -> Result<bool> {
    buffer.resize(bytes.len(), 0);
    below.read(buffer, part.start)?;
    Ok(bytes == &buffer[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_parts_are_free() {
        let options = CompactOptions::new().free(vec![0..10, 20..40, 50..60]);
        for (part, expected) in [
            (0..10, true),
            (5..10, true),
            (5..11, false),
            (10..20, false),
            (20..30, true),
            (30..40, true),
            (15..25, false),
            (40..50, false),
            (50..60, true),
            (55..61, false),
            (70..80, false),
        ] {
            assert_eq!(options.is_free(&part), expected, "{part:?}");
        }
        assert!(!CompactOptions::new().is_free(&(0..1)));
    }
}
