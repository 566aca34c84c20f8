//! Compaction: clusters that nobody needs are removed from the deltas, and the files are cut.

use std::ops::Range;
use std::path::PathBuf;

use super::OfflineImage;
use super::change::OfflineChange;
use super::free_parts::FreeParts;
use crate::image::aligned_buffer::AlignedBuffer;
use crate::image::chain::Chain;
use crate::image::clusters::Clusters;
use crate::image::descriptor::Image;
use crate::image::disk::{Disk, OpenOptions};
use crate::image::file;
use crate::image::holes::is_zero;
use crate::image::progress::{Progress, counted};
use crate::image::write::WritableDelta;
use crate::{Error, Guid, ImageMode, Result, Size};

#[cfg(test)]
mod tests;

const OPERATION: &str = "compact image";

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
    /// Clusters that [the file system does not use](OfflineImage::compact_with_free), also those that are of zeros or equal
    /// to what is below. Only the top delta has any.
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
    /// is below, and those that no entry of the table leads to. What is behind them in the file moves to their places, and
    /// the file is cut. A raw base, and the base of a preallocated image, stay as they are.
    ///
    /// Each state of the disk reads as before. Takes as long as reading all data; `progress` is called on this thread after
    /// every few MiB. Clusters that the file system inside does not use are freed by
    /// [`compact_with_free`](OfflineImage::compact_with_free).
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
        self.compact_all(options, |_| Ok(Clusters::default()), progress)
    }

    /// As [`compact`](OfflineImage::compact), and also frees clusters of the top delta that the file system inside does not
    /// use.
    ///
    /// `free` finds out which those are. It is called once, before anything is changed, with the disk as the top has it.
    /// The image is locked from before that until the end, so no other operation comes between the answer and its use.
    /// A cluster is freed where it lies wholly in free parts.
    ///
    /// These clusters of the top read as what the deltas below have afterwards, and as zero where they have nothing: the
    /// contents of deleted files are gone, or are older ones. All the rest of the top, and each snapshot, reads as before:
    /// no delta but the top's loses anything that is only free.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use ploop::image::{self, CreateOptions};
    /// # let base = dir.path().join("root.hds");
    /// # let mut image = image::create(base, ploop::Size::from_mib(64), &CreateOptions::new())?;
    /// use ploop::image::CompactOptions;
    ///
    /// let options = CompactOptions::new();
    /// let report = image.compact_with_free(
    ///     &options,
    ///     |disk, free| {
    ///         // A file system that ends before the last MiB of the disk.
    ///         let size = disk.size().bytes();
    ///         free.add(size - (1 << 20)..size);
    ///         Ok(())
    ///     },
    ///     |_| {},
    /// )?;
    /// println!("{} of free clusters", report.deltas[0].free);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`compact`](OfflineImage::compact), and those of `free`: then nothing was changed. After a later error or an
    /// interruption, some of the free clusters may be gone.
    pub fn compact_with_free(
        &mut self,
        options: &CompactOptions,
        free: impl FnOnce(&Disk, &mut FreeParts) -> Result<()>,
        progress: impl FnMut(Progress),
    ) -> Result<CompactReport> {
        let find = |change: &OfflineChange<'_>| {
            let descriptor = &change.descriptor;
            let disk = OpenOptions::new().open_descriptor(descriptor, descriptor.top)?;
            let mut parts = FreeParts::new(descriptor.cluster.into(), disk.size());
            free(&disk, &mut parts)?;
            Ok(parts.into_clusters())
        };
        self.compact_all(options, find, progress)
    }

    /// Compacts all deltas, and frees those clusters of the top that `free` finds.
    fn compact_all(
        &mut self,
        options: &CompactOptions,
        free: impl FnOnce(&OfflineChange<'_>) -> Result<Clusters>,
        progress: impl FnMut(Progress),
    ) -> Result<CompactReport> {
        let mut change = OfflineChange::begin(self, OPERATION)?;
        if !options.dry_run {
            change.merge_temporary_snapshots(&mut |_| {})?;
        }
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
                change.require_own_file(image)?;
            }
            let mut delta = open(&change, image)?;
            total += count(&mut delta)? * change.descriptor.cluster.bytes();
        }
        let free = free(&change).map_err(|error| error.during(change.operation()))?;
        let none = Clusters::default();
        let mut report = counted(Size::from_bytes(total), progress);
        // What is below has to be final first.
        let mut order = images.clone();
        order.sort_by_key(|image| change.descriptor.depth(image.guid));
        let mut found = Vec::new();
        for image in order {
            // Other deltas may hold data of snapshots, whose file systems are other ones.
            let free = match image.guid == change.descriptor.top {
                true => &free,
                false => &none,
            };
            found.push(change.compact(image, options, free, &mut report)?);
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
        free: &Clusters,
        report: &mut dyn FnMut(u64),
    ) -> Result<CompactedDelta> {
        self.compact_delta(image, options, free, report)
            .map_err(|error| error.during(self.operation()))
    }

    fn compact_delta(
        &self,
        image: &Image,
        options: &CompactOptions,
        free: &Clusters,
        report: &mut dyn FnMut(u64),
    ) -> Result<CompactedDelta> {
        let cluster = self.descriptor.cluster.bytes();
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
        let mut unreported = 0;
        let found = compact_file(&mut delta, below.as_ref(), free, options.dry_run, || {
            unreported += cluster;
            if unreported >= 4 << 20 {
                report(std::mem::take(&mut unreported));
            }
            self.check_cancel()
        })?;
        report(unreported);
        let size = |clusters: u64| Size::from_bytes(clusters * cluster);
        Ok(CompactedDelta {
            guid: image.guid,
            file: image.file.clone(),
            zeros: size(found.zeros),
            same: size(found.same),
            free: size(found.free),
            lost: size(found.lost),
        })
    }
}

/// How many clusters of a delta are not needed.
#[derive(Debug, Default)]
struct Unneeded {
    zeros: u64,
    same: u64,
    free: u64,
    lost: u64,
}

/// Removes the clusters that are not needed from the table of a delta, and then from its file, unless this is a dry run.
/// Calls `looked_at` for each cluster that the delta has.
fn compact_file(
    delta: &mut WritableDelta,
    below: Option<&Chain>,
    free: &Clusters,
    dry_run: bool,
    mut looked_at: impl FnMut() -> Result<()>,
) -> Result<Unneeded> {
    let (cluster, size) = (delta.header().cluster.bytes(), delta.header().size.bytes());
    let len = file::length(OPERATION, delta.file())?;
    let slots = len.saturating_sub(delta.header().data_start()) / cluster;
    let mut found = Unneeded::default();
    let mut all = 0;
    let mut own = AlignedBuffer::new(cluster as usize);
    let mut other = AlignedBuffer::new(cluster as usize);
    let mut next = delta.next_cluster(0)?;
    while let Some((number, at)) = next {
        next = delta.next_cluster(number + 1)?;
        looked_at()?;
        all += 1;
        let start = u64::from(number) * cluster;
        let part = start..size.min(start + cluster);
        let kind = if free.contains(number) {
            Some(&mut found.free)
        } else {
            let own = &mut own[..(part.end - part.start) as usize];
            delta.read(own, at)?;
            match below {
                Some(below) if below.has(number)? => {
                    is_equal(below, &part, own, &mut other)?.then_some(&mut found.same)
                }
                _ => is_zero(own).then_some(&mut found.zeros),
            }
        };
        if let Some(kind) = kind {
            *kind += 1;
            if !dry_run {
                delta.remove(number)?;
            }
        }
    }
    found.lost = slots.saturating_sub(all);
    let is_any = found.zeros + found.same + found.free + found.lost > 0;
    if is_any && !dry_run {
        delta.compact()?;
        delta.settle_flags()?;
        delta.flush()?;
    }
    Ok(found)
}

/// Whether the chain below has these bytes in this part of the disk.
fn is_equal(below: &Chain, part: &Range<u64>, bytes: &[u8], buffer: &mut [u8]) -> Result<bool> {
    let buffer = &mut buffer[..bytes.len()];
    below.read(buffer, part.start)?;
    Ok(bytes == buffer)
}
