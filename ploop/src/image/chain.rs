//! The chain of files through which a disk is read: a base, and deltas upon it.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
#[cfg(feature = "image-write")]
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::delta::{Delta, Place};
use super::file;
use super::holes;
use super::salvage::{self, LossReason, Lost};
use super::table::{PAGE, Page};
#[cfg(feature = "image-write")]
use crate::ClusterSize;
use crate::{Error, ErrorKind, Result, Size};

const OPERATION: &str = "open image";

/// libploop has at most 127. Each level costs a file descriptor.
const MAX_LEVELS: usize = 1024;

/// The files of a disk, the base first.
#[derive(Debug)]
pub(super) struct Chain {
    levels: Vec<Level>,
    /// The cluster size in bytes.
    cluster: u64,
    size: u64,
    /// Whether the size is that of a storage, and not that of the top.
    #[cfg(feature = "image-write")]
    is_storage: bool,
    /// Whether what cannot be read is zero, and no error.
    salvage: bool,
    /// The parts that could not be read so far, by their offsets.
    unreadable: Mutex<BTreeMap<u64, Lost>>,
}

/// How many parts that cannot be read are remembered.
const MAX_UNREADABLE: usize = 1 << 16;

#[derive(Debug)]
pub(super) enum Level {
    /// A base without a table.
    Raw {
        path: PathBuf,
        file: Arc<File>,
        len: u64,
    },
    Delta(Delta),
}

/// Where data of the disk is: in the file of a level, at this offset. Data without a location is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) level: usize,
    pub(super) offset: u64,
}

impl Level {
    /// An open file as a level; with `raw`, as a base without a table.
    pub(super) fn from_file(
        path: &Path,
        file: File,
        raw: bool,
        allow_in_use: bool,
    ) -> Result<Level> {
        let len = file::length(OPERATION, &file).map_err(|error| error.with_path(path))?;
        if raw {
            let (path, file) = (path.to_owned(), Arc::new(file));
            Ok(Level::Raw { path, file, len })
        } else {
            Delta::from_file(path, file, len, allow_in_use).map(Level::Delta)
        }
    }

    /// Reads the header, the table and the length again, after others have written to the file. Nothing changes after
    /// an error.
    #[cfg(feature = "image-write")]
    fn reload(&mut self) -> Result<()> {
        match self {
            Level::Raw { path, file, len } => {
                *len = file::length(OPERATION, file).map_err(|error| error.with_path(&*path))?;
                Ok(())
            }
            Level::Delta(delta) => delta.reload(),
        }
    }

    /// Ranges of the file without space on its disk, if the caller knows any.
    #[cfg(feature = "image-write")]
    pub(super) fn holes(&self) -> Vec<Range<u64>> {
        match self {
            Level::Raw { .. } => Vec::new(),
            Level::Delta(delta) => delta.holes().to_vec(),
        }
    }

    #[cfg(feature = "image-write")]
    pub(super) fn set_holes(&mut self, holes: Vec<Range<u64>>) {
        if let Level::Delta(delta) = self {
            delta.set_holes(holes);
        }
    }

    #[cfg(feature = "image-write")]
    pub(super) fn is_raw(&self) -> bool {
        matches!(self, Level::Raw { .. })
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Level::Raw { path, .. } => path,
            Level::Delta(delta) => delta.path(),
        }
    }

    pub(super) fn file(&self) -> &File {
        self.shared_file()
    }

    /// The file, for a reader that does not hold the chain.
    pub(super) fn shared_file(&self) -> &Arc<File> {
        match self {
            Level::Raw { file, .. } => file,
            Level::Delta(delta) => delta.file(),
        }
    }

    /// Fills `buffer` from an offset of the file on.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file().read_exact_at(buffer, offset).map_err(|error| {
            Error::io("read image", "the data cannot be read", error)
                .with_path(self.path())
                .with_offset(offset)
        })
    }

    /// The size of a disk whose top this is.
    fn size(&self) -> u64 {
        match self {
            // Disks consist of sectors.
            Level::Raw { len, .. } => len.checked_next_multiple_of(512).unwrap_or(*len),
            Level::Delta(delta) => delta.layout().size.bytes(),
        }
    }
}

/// Checks that the levels make up a disk, and returns its size: that of the top, if it is not given.
fn check_levels(levels: &[Level], cluster: u64, size: Option<u64>) -> Result<u64> {
    let Some(top) = levels.last() else {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            OPERATION,
            "there is no file to read",
        ));
    };
    let size = size.unwrap_or_else(|| top.size());
    if levels.len() > MAX_LEVELS {
        return Err(Error::new(
            ErrorKind::Unsupported,
            OPERATION,
            format!(
                "the chain has {} deltas, more than {MAX_LEVELS}",
                levels.len()
            ),
        ));
    }
    if size.div_ceil(cluster) > u64::from(u32::MAX) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            OPERATION,
            format!(
                "a disk of {size} bytes has more than 2^32 clusters of {}",
                Size::from_bytes(cluster)
            ),
        )
        .with_path(top.path()));
    }
    for level in levels {
        if let Level::Delta(delta) = level {
            let found = delta.layout().cluster;
            if found.bytes() != cluster {
                let cluster = Size::from_bytes(cluster);
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    OPERATION,
                    format!("the delta has clusters of {found}, the image of {cluster}"),
                )
                .with_path(delta.path())
                .with_offset(28));
            }
        }
    }
    Ok(size)
}

#[cfg(feature = "image-write")]
fn no_level(level: usize) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        OPERATION,
        format!("the chain has no level {level}, or not one for this operation"),
    )
}

impl Chain {
    /// A chain of `levels`, the base first. All deltas must have clusters of the given size.
    #[cfg(feature = "image-write")]
    pub(super) fn new(levels: Vec<Level>, cluster: ClusterSize) -> Result<Chain> {
        Chain::sized(levels, cluster.into(), None)
    }

    /// A chain of `levels`, the base first. All deltas must have clusters of the given size. The size of the disk is that
    /// of the top, or that of a storage of a split disk.
    pub(super) fn sized(levels: Vec<Level>, cluster: Size, storage: Option<Size>) -> Result<Chain> {
        let cluster = cluster.bytes();
        let size = check_levels(&levels, cluster, storage.map(Size::bytes))?;
        Ok(Chain {
            levels,
            cluster,
            size,
            #[cfg(feature = "image-write")]
            is_storage: storage.is_some(),
            salvage: false,
            unreadable: Mutex::default(),
        })
    }

    /// The chain, with zeros in the place of what cannot be read.
    pub(super) fn salvaged(self) -> Chain {
        Chain {
            salvage: true,
            ..self
        }
    }

    /// Checks the levels after a change, and takes the size from the top.
    #[cfg(feature = "image-write")]
    fn update(&mut self) -> Result<()> {
        let size = self.is_storage.then_some(self.size);
        self.size = check_levels(&self.levels, self.cluster, size)?;
        Ok(())
    }

    pub(super) fn size(&self) -> Size {
        Size::from_bytes(self.size)
    }

    pub(super) fn cluster(&self) -> Size {
        Size::from_bytes(self.cluster)
    }

    pub(super) fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// Puts a delta on top.
    #[cfg(feature = "image-write")]
    pub(super) fn push(&mut self, top: Level) -> Result<()> {
        self.levels.push(top);
        let updated = self.update();
        if updated.is_err() {
            self.levels.pop();
        }
        updated
    }

    /// The chain below the top delta, if there is any.
    #[cfg(feature = "image-write")]
    pub(super) fn without_top(mut self) -> Option<Chain> {
        self.levels.pop();
        self.size = self.levels.last()?.size();
        Some(self)
    }

    /// Replaces a file by one with the same contents.
    #[cfg(feature = "image-write")]
    pub(super) fn replace(&mut self, level: usize, new: Level) -> Result<()> {
        let old = self.levels.get(level).ok_or_else(|| no_level(level))?;
        let same = match (old, &new) {
            (Level::Raw { len: old, .. }, Level::Raw { len: new, .. }) => old == new,
            (Level::Delta(old), Level::Delta(new)) => {
                let (old, new) = (old.layout(), new.layout());
                old.size == new.size && old.cluster == new.cluster && old.version == new.version
            }
            _ => false,
        };
        if !same {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                OPERATION,
                format!(
                    "the file differs in kind or size from level {level}, which it is to replace"
                ),
            )
            .with_path(new.path()));
        }
        self.levels[level] = new;
        Ok(())
    }

    /// Removes a delta that was merged into the one below, and reads that one again.
    #[cfg(feature = "image-write")]
    pub(super) fn remove(&mut self, level: usize) -> Result<()> {
        if level == 0 || level >= self.levels.len() {
            return Err(no_level(level));
        }
        self.reload(level - 1)?;
        self.levels.remove(level);
        self.update()
    }

    /// Reads the header and the table of a delta again, after others have written to it.
    #[cfg(feature = "image-write")]
    pub(super) fn reload(&mut self, level: usize) -> Result<()> {
        let reloaded = self.levels.get_mut(level).ok_or_else(|| no_level(level))?;
        reloaded.reload()?;
        self.update()
    }

    /// Sets the slot of a cluster in the table in memory. `level` must be the one from which the cluster is read.
    #[cfg(feature = "image-write")]
    pub(super) fn set_slot(&mut self, level: usize, cluster: u32, slot: u32) -> Result<()> {
        let mut found = None;
        for (number, level) in self.levels.iter_mut().enumerate().rev() {
            if let Level::Delta(delta) = level {
                if delta.has_entry(cluster)? {
                    found = Some((number, delta));
                    break;
                }
            }
        }
        match found {
            Some((number, delta)) if number == level => delta.set_slot(cluster, slot),
            _ => Err(no_level(level)),
        }
    }

    /// Whether any level has data for a cluster.
    #[cfg(feature = "image-write")]
    pub(super) fn has(&self, cluster: u32) -> Result<bool> {
        let (location, _) = self.locate_in_cluster(u64::from(cluster) * self.cluster)?;
        Ok(location.is_some())
    }

    /// Fills `buffer` from `offset` on. Readers must not read behind the end of the disk. A writer whose delta upon this
    /// chain is larger may, and gets zeros.
    pub(super) fn read(&self, mut buffer: &mut [u8], mut offset: u64) -> Result<()> {
        while !buffer.is_empty() {
            let (location, len) = self.locate(offset, buffer.len() as u64)?;
            // At most the length of the buffer.
            let (part, rest) = buffer.split_at_mut(len as usize);
            match location {
                None => part.fill(0),
                Some(location) => self.read_location(location, part, offset)?,
            }
            buffer = rest;
            offset += len;
        }
        Ok(())
    }

    /// Fills `buffer` from a place in a file, which is at `offset` of the disk.
    pub(super) fn read_location(
        &self,
        location: Location,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<()> {
        let level = &self.levels[location.level];
        match level.read(buffer, location.offset) {
            Err(_) if self.salvage => {
                self.read_pieces(level, location, buffer, offset);
                Ok(())
            }
            read => read,
        }
    }

    /// Reads what can be read. The rest becomes zero, and is remembered.
    fn read_pieces(&self, level: &Level, location: Location, buffer: &mut [u8], offset: u64) {
        const PIECE: usize = 4096;
        let mut done = 0;
        while done < buffer.len() {
            let at = location.offset + done as u64;
            let left = PIECE - (at % PIECE as u64) as usize;
            let end = buffer.len().min(done + left);
            let piece = &mut buffer[done..end];
            if level.read(piece, at).is_err() {
                piece.fill(0);
                let lost = Lost {
                    offset: offset + done as u64,
                    len: piece.len() as u64,
                    level: location.level,
                    reason: LossReason::Unreadable,
                };
                self.remember(lost);
            }
            done = end;
        }
    }

    fn remember(&self, lost: Lost) {
        let mut list = self
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_full = list.len() >= MAX_UNREADABLE;
        let before = list.range_mut(..=lost.offset).next_back();
        let before = before.map(|(_, before)| before).filter(|before| {
            before.level == lost.level && before.offset + before.len >= lost.offset
        });
        match before {
            Some(before) => {
                let end = (before.offset + before.len).max(lost.offset + lost.len);
                before.len = end - before.offset;
            }
            None if !is_full => {
                list.insert(lost.offset, lost);
            }
            None => {}
        }
    }

    /// The parts that could not be read so far.
    pub(super) fn unreadable(&self) -> Vec<Lost> {
        let list = self
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        list.values().copied().collect()
    }

    /// Appends what is lost by the tables and the lengths of the files, up to a number of parts.
    pub(super) fn lost(&self, list: &mut Vec<Lost>, max: usize) {
        if !self.salvage {
            return;
        }
        let clusters = self.size.div_ceil(self.cluster);
        for number in 0..self.pages() {
            let pages: Vec<Option<Page>> = self
                .levels
                .iter()
                .map(|level| match level {
                    Level::Delta(delta) => delta.page(number).ok(),
                    Level::Raw { .. } => None,
                })
                .collect();
            let is_raw = matches!(self.levels[0], Level::Raw { .. });
            let is_empty = |page: &Option<Page>| matches!(page, None | Some(Page::Empty));
            if !is_raw && pages.iter().all(is_empty) {
                continue;
            }
            let first = u64::from(number) * u64::from(PAGE);
            let top = pages.iter().rposition(|page| !is_empty(page));
            if let Some((level, Some(Page::Lost))) = top.map(|level| (level, &pages[level])) {
                let offset = first * self.cluster;
                let len = (u64::from(PAGE) * self.cluster).min(self.size - offset);
                let reason = LossReason::Table;
                let lost = Lost {
                    offset,
                    len,
                    level,
                    reason,
                };
                salvage::push(list, lost);
                continue;
            }
            for index in 0..(clusters - first).min(u64::from(PAGE)) as u32 {
                if list.len() >= max {
                    return;
                }
                if let Some(lost) = self.lost_of(first, index, &pages) {
                    salvage::push(list, lost);
                }
            }
        }
    }

    /// What is lost of a cluster, which is the `index`th of a page.
    fn lost_of(&self, first: u64, index: u32, pages: &[Option<Page>]) -> Option<Lost> {
        let number = first + u64::from(index);
        let start = number * self.cluster;
        let len = self.cluster.min(self.size - start);
        for (level, (source, page)) in self.levels.iter().zip(pages).enumerate().rev() {
            let (there, reason) = match (source, page) {
                (Level::Delta(delta), Some(page)) => {
                    match delta.place_of(number as u32, page.entry(index)).ok()? {
                        None => continue,
                        Some(Place::Lost(reason)) => (0, reason),
                        Some(Place::At(offset)) => {
                            (delta.data_end().saturating_sub(offset), LossReason::Missing)
                        }
                    }
                }
                // A disk that has grown since may be longer than its base.
                (Level::Raw { len, .. }, _) if self.levels.len() == 1 => {
                    (len.saturating_sub(start), LossReason::Missing)
                }
                _ => continue,
            };
            return (there < len).then(|| Lost {
                offset: start + there,
                len: len - there,
                level,
                reason,
            });
        }
        None
    }

    /// Where the disk's data from `offset` on is, and how much of it is contiguous there: at least one byte, at most
    /// `max`.
    pub(super) fn locate(&self, offset: u64, max: u64) -> Result<(Option<Location>, u64)> {
        let (location, mut len) = self.locate_in_cluster(offset)?;
        while len < max {
            let (next, more) = self.locate_in_cluster(offset + len)?;
            let expected = location.map(|location| Location {
                offset: location.offset + len,
                ..location
            });
            if next != expected {
                break;
            }
            len += more;
        }
        Ok((location, len.min(max)))
    }

    /// [`locate`](Chain::locate) up to the end of the cluster.
    fn locate_in_cluster(&self, offset: u64) -> Result<(Option<Location>, u64)> {
        let size = self.cluster;
        let within = offset % size;
        let left = size - within;
        // `new` has seen that it fits.
        let number = (offset / size) as u32;
        for (level, source) in self.levels.iter().enumerate().rev() {
            match source {
                Level::Delta(delta) => {
                    match delta.place(number)? {
                        Some(Place::At(start)) if start + within < delta.data_end() => {
                            let offset = start + within;
                            let len = left.min(delta.data_end() - offset);
                            return Ok((Some(Location { level, offset }), len));
                        }
                        // What is below is older, and was there no more.
                        Some(_) => return Ok((None, left)),
                        None => {}
                    }
                }
                Level::Raw { len, .. } => {
                    if offset < *len {
                        return Ok((Some(Location { level, offset }), left.min(len - offset)));
                    }
                }
            }
        }
        Ok((None, left))
    }

    /// How many pages the table of the disk has.
    pub(super) fn pages(&self) -> u32 {
        // `new` has seen that the number of clusters fits.
        self.size.div_ceil(self.cluster * u64::from(PAGE)) as u32
    }

    /// Where the clusters of a page of the table are, for a reader of the whole disk; for one of a part, see
    /// [`locate`](Chain::locate). `locations` gets an entry for each cluster of the page that is on the disk, or none at
    /// all where no file has any of these clusters.
    pub(super) fn page(&self, number: u32, locations: &mut Vec<Option<Location>>) -> Result<()> {
        let size = self.cluster;
        let first = u64::from(number) * u64::from(PAGE);
        let clusters = self.size.div_ceil(size).saturating_sub(first);
        let count = clusters.min(u64::from(PAGE)) as usize;
        locations.clear();
        let mut missing = count;
        // Clusters that a salvaged delta has lost: what is below does not count.
        let mut lost = HashSet::new();
        for (level, source) in self.levels.iter().enumerate().rev() {
            if missing == 0 {
                break;
            }
            match source {
                Level::Delta(delta) => {
                    let page = delta.page(number)?;
                    match page {
                        Page::Empty => continue,
                        // What is below does not count.
                        Page::Lost => break,
                        Page::Entries(_) => {}
                    }
                    locations.resize(count, None);
                    for (index, location) in (0..).zip(locations.iter_mut()) {
                        let entry = page.entry(index);
                        if location.is_some() || entry == 0 || lost.contains(&index) {
                            continue;
                        }
                        match delta.place_of(number * PAGE + index, entry)? {
                            Some(Place::At(offset)) => *location = Some(Location { level, offset }),
                            Some(Place::Lost(_)) => {
                                lost.insert(index);
                            }
                            None => {}
                        }
                        missing -= 1;
                    }
                }
                Level::Raw { len, file, .. } => {
                    let start = first * size;
                    if start >= *len || holes::is_hole(file, start, u64::from(PAGE) * size) {
                        continue;
                    }
                    locations.resize(count, None);
                    for (index, location) in (first..).zip(locations.iter_mut()) {
                        let offset = index * size;
                        let index = (index - first) as u32;
                        if location.is_none() && offset < *len && !lost.contains(&index) {
                            *location = Some(Location { level, offset });
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
