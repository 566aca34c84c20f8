//! [`WritableDelta`]: a delta that is written to. Data is on the disk before the table leads to it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::OPERATION;
use super::allocation::{Contents, Space};
use super::partial_clusters::PartialClusters;
use super::storage::{Storage, write_zeros};
use super::write_tracker::WriteTracker;
use crate::image::delta::{check_readable, cluster_offset, entry_of, is_in_hole};
use crate::image::header::{Header, HeaderFlags};
use crate::image::holes::{is_hole, is_zero};
use crate::image::table::{PAGE, Page, entry_offset};
use crate::{ClusterSize, Error, ErrorKind, FormatVersion, Result, Size};

/// The most entries of the table that wait in memory to be written.
const MAX_DIRTY: usize = 1 << 16;

/// The most pages of the table that are kept in memory where none of them waits to be written: 16 MiB.
const MAX_PAGES: usize = 256;

/// A delta whose table in memory is ahead of the one in the file.
pub(in crate::image) struct WritableDelta {
    pub(super) path: PathBuf,
    pub(super) storage: Box<dyn Storage>,
    /// The file for readers that do not hold the delta, once there is one.
    shared: Option<Arc<File>>,
    pub(super) header: Header,
    /// The pages of the table that were read.
    pages: Vec<Option<Page>>,
    /// How many of these have entries.
    loaded: usize,
    /// Whether entries in memory differ for good from those in the file.
    has_unwritten: bool,
    /// Clusters whose entries are not yet in the file.
    dirty: BTreeSet<u32>,
    pub(super) space: Space,
    pub(super) tracker: WriteTracker,
    pub(super) partial_clusters: PartialClusters,
    /// Ranges of the file without space on its disk, if the caller knows any. No entry may lead there.
    pub(super) holes: Vec<Range<u64>>,
    /// Whether a write has failed: it is unknown what is on the disk.
    broken: bool,
}

impl fmt::Debug for WritableDelta {
    /// Without the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WritableDelta")
            .field("path", &self.path)
            .field("header", &self.header)
            .field("dirty", &self.dirty.len())
            .field("space", &self.space)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

/// [`Header::new`] of a disk of whole clusters.
pub(super) fn new_header(
    version: FormatVersion,
    cluster: ClusterSize,
    size: Size,
) -> Result<Header> {
    // What cannot be rounded up is too large for any header.
    let rounded = size.bytes().checked_next_multiple_of(cluster.bytes());
    Header::new(version, cluster, rounded.map_or(size, Size::from_bytes))
}

impl WritableDelta {
    /// Makes a new, empty delta. The file must not exist.
    pub(in crate::image) fn create(path: &Path, header: &Header) -> Result<WritableDelta> {
        let make = || -> io::Result<File> {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)?;
            write_empty(&file, header)?;
            file.sync_all()?;
            Ok(file)
        };
        let file = make().map_err(|error| {
            Error::io(OPERATION, "the delta cannot be made", error).with_path(path)
        })?;
        WritableDelta::from_storage(path, Box::new(file), false)
    }

    /// Makes a new, empty delta in an open file that is empty. It is not synced.
    pub(in crate::image) fn create_in(
        file: File,
        path: &Path,
        header: &Header,
    ) -> Result<WritableDelta> {
        write_empty(&file, header).map_err(|error| {
            Error::io(OPERATION, "the delta cannot be made", error).with_path(path)
        })?;
        WritableDelta::from_storage(path, Box::new(file), false)
    }

    /// Opens a file so that it can be written to.
    pub(in crate::image) fn open_file(path: &Path) -> Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32)
            .open(path)
            .map_err(|error| {
                Error::io(OPERATION, "the file cannot be opened", error).with_path(path)
            })
    }

    /// An open file as a delta. With `allow_in_use` it may be marked as in use.
    pub(in crate::image) fn from_file(
        path: &Path,
        file: File,
        allow_in_use: bool,
    ) -> Result<WritableDelta> {
        WritableDelta::from_storage(path, Box::new(file), allow_in_use)
    }

    pub(in crate::image) fn from_storage(
        path: &Path,
        storage: Box<dyn Storage>,
        allow_in_use: bool,
    ) -> Result<WritableDelta> {
        let open = || {
            let len = storage
                .len()
                .map_err(|error| Error::io(OPERATION, "the file cannot be examined", error))?;
            let mut bytes = [0; Header::LEN];
            storage
                .read(&mut bytes, 0)
                .map_err(|error| Error::io(OPERATION, "the header cannot be read", error))?;
            let header = Header::parse(&bytes)?;
            header.check_len(len)?;
            check_readable(&header, allow_in_use)?;
            if header.has_extension() {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    OPERATION,
                    "the image has a format extension, which writing would damage",
                )
                .with_offset(56));
            }
            Ok((header, len))
        };
        let (header, len) = open().map_err(|error: Error| error.with_path(path))?;
        Ok(WritableDelta {
            path: path.to_owned(),
            storage,
            shared: None,
            pages: empty_pages(&header),
            loaded: 0,
            has_unwritten: false,
            space: Space::new(len, header.cluster),
            header,
            dirty: BTreeSet::new(),
            tracker: WriteTracker::default(),
            partial_clusters: PartialClusters::default(),
            holes: Vec::new(),
            broken: false,
        })
    }

    pub(in crate::image) fn path(&self) -> &Path {
        &self.path
    }

    pub(in crate::image) fn header(&self) -> &Header {
        &self.header
    }

    fn entry(&mut self, cluster: u32) -> Result<u32> {
        let page = self.page(cluster / PAGE)?;
        Ok(page.map_or(0, |page| page.entry(cluster % PAGE)))
    }

    /// A page of the table; `None` behind the last.
    fn page(&mut self, number: u32) -> Result<Option<&Page>> {
        let index = number as usize;
        if index >= self.pages.len() {
            return Ok(None);
        }
        if self.pages[index].is_none() {
            let page = self.load(number)?;
            if matches!(page, Page::Entries(_)) {
                if self.loaded >= MAX_PAGES {
                    self.forget_clean_pages();
                }
                self.loaded += 1;
            }
            self.pages[index] = Some(page);
        }
        Ok(self.pages[index].as_ref())
    }

    fn load(&self, number: u32) -> Result<Page> {
        let first = number * PAGE;
        let count = (self.header.entries() - first).min(PAGE) as usize;
        let offset = entry_offset(first);
        if is_hole(self.storage.file(), offset, 4 * count as u64) {
            return Ok(Page::Empty);
        }
        let mut bytes = vec![0; 4 * count];
        self.storage.read(&mut bytes, offset).map_err(|error| {
            Error::io(OPERATION, "the table cannot be read", error)
                .with_path(&self.path)
                .with_offset(offset)
        })?;
        if is_zero(&bytes) {
            return Ok(Page::Empty);
        }
        let entries = bytes
            .chunks_exact(4)
            .map(|entry| u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]));
        Ok(Page::Entries(entries.collect()))
    }

    /// Drops the pages without entries that wait to be written.
    fn forget_clean_pages(&mut self) {
        if self.has_unwritten {
            return;
        }
        for (number, page) in (0..).zip(&mut self.pages) {
            let next_dirty = || self.dirty.range(number * PAGE..).next();
            let is_clean = || next_dirty().is_none_or(|next| next / PAGE != number);
            if matches!(page, Some(Page::Entries(_))) && is_clean() {
                *page = None;
                self.loaded -= 1;
            }
        }
    }

    /// The first cluster of the disk from `number` on that is in the file, and its offset there.
    pub(in crate::image) fn next_cluster(&mut self, number: u32) -> Result<Option<(u32, u64)>> {
        let entries = self.header.entries();
        let mut number = number;
        while number < entries {
            let first = number - number % PAGE;
            let next = match self.page(number / PAGE)? {
                Some(Page::Entries(page)) => page
                    .iter()
                    .enumerate()
                    .skip((number - first) as usize)
                    .find(|(_, entry)| **entry != 0)
                    .map(|(index, _)| first + index as u32),
                _ => None,
            };
            match next {
                None => number = first.saturating_add(PAGE),
                Some(next) => {
                    return Ok(self.cluster(next)?.map(|offset| (next, offset)));
                }
            }
        }
        Ok(None)
    }

    /// The offset of a cluster of the disk in the file.
    pub(in crate::image) fn cluster(&mut self, cluster: u32) -> Result<Option<u64>> {
        let entry = self.entry(cluster)?;
        if entry == 0 {
            return Ok(None);
        }
        let offset = cluster_offset(&self.header, entry);
        let size = self.header.cluster.bytes();
        let inside = offset >= self.header.data_start()
            && offset + size <= self.space.end
            && !is_in_hole(&self.holes, offset, size);
        if offset % size != 0 || !inside {
            return Err(Error::new(
                ErrorKind::Corrupt,
                OPERATION,
                format!("the table puts cluster {cluster} at {entry}, where there is none"),
            )
            .with_path(&self.path)
            .with_offset(entry_offset(cluster)));
        }
        Ok(Some(offset))
    }

    pub(in crate::image) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.storage.read(buffer, offset).map_err(|error| {
            Error::io(OPERATION, "the data cannot be read", error)
                .with_path(&self.path)
                .with_offset(offset)
        })
    }

    /// The file, for readers that do not hold the delta.
    pub(super) fn shared_file(&mut self) -> Result<Arc<File>> {
        if let Some(file) = &self.shared {
            return Ok(Arc::clone(file));
        }
        let file = self.storage.file().try_clone().map_err(|error| {
            Error::io(OPERATION, "the file cannot be opened again", error).with_path(&self.path)
        })?;
        Ok(Arc::clone(self.shared.insert(Arc::new(file))))
    }

    /// Writes to the file, in a cluster that it has.
    pub(super) fn write(&mut self, data: &[u8], offset: u64) -> Result<()> {
        self.record(offset, data.len() as u64);
        self.attempt("the data cannot be written", |storage| {
            storage.write(data, offset)
        })
    }

    /// Makes a whole cluster zero.
    pub(super) fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        self.partial_clusters.forget(offset);
        self.record(offset, len);
        self.attempt("the data cannot be made zero", |storage| {
            storage.zero(offset, len)
        })
    }

    pub(super) fn record(&mut self, offset: u64, len: u64) {
        self.tracker
            .record(offset, len, self.header.cluster.bytes());
    }

    /// Adds a cluster of the disk to the file. It has `data` from `within` on, and zeros elsewhere.
    pub(super) fn add(&mut self, cluster: u32, within: u64, data: &[u8]) -> Result<()> {
        let size = self.header.cluster.bytes();
        let (offset, contents) = self.allocate()?;
        // A copy of what is tracked needs the zeros, too.
        self.record(offset, size);
        match contents {
            _ if data.len() as u64 == size => self.write(data, offset)?,
            Contents::Zero => self.write_first_part(offset, within, data)?,
            Contents::Stale => {
                self.zero(offset, size)?;
                self.write_first_part(offset, within, data)?;
            }
            Contents::Missing => {
                let mut whole = vec![0; size as usize];
                whole[within as usize..][..data.len()].copy_from_slice(data);
                self.write(&whole, offset)?;
            }
        }
        self.map_cluster(cluster, offset)
    }

    /// Sets the entry of a cluster to an offset in the file, so far as an entry can lead.
    pub(in crate::image) fn map_cluster(&mut self, cluster: u32, offset: u64) -> Result<()> {
        let unit = match self.header.version {
            FormatVersion::V1 => 512,
            FormatVersion::V2 => self.header.cluster.bytes(),
        };
        self.set(cluster, (offset / unit) as u32)
    }

    /// Removes a cluster from the table. `false` where it was not there.
    pub(in crate::image) fn remove(&mut self, cluster: u32) -> Result<bool> {
        let Some(offset) = self.cluster(cluster)? else {
            return Ok(false);
        };
        self.space.released.push(offset);
        self.set(cluster, 0)?;
        Ok(true)
    }

    /// Whether the table has an entry for a cluster, sound or not.
    pub(super) fn has_entry(&mut self, cluster: u32) -> Result<bool> {
        Ok(self.entry(cluster)? != 0)
    }

    /// Sets the slot of a cluster in memory only. The slot is not checked.
    pub(super) fn set_in_memory(&mut self, cluster: u32, slot: u32) -> Result<()> {
        let entry = entry_of(&self.header, slot);
        self.has_unwritten = true;
        self.put(cluster, entry).map(drop)
    }

    fn set(&mut self, cluster: u32, entry: u32) -> Result<()> {
        if self.put(cluster, entry)? {
            self.dirty.insert(cluster);
        }
        if self.dirty.len() >= MAX_DIRTY || self.loaded >= 2 * MAX_PAGES {
            self.commit()?;
            self.forget_clean_pages();
        }
        Ok(())
    }

    /// Changes an entry in memory. `false` where there is none.
    fn put(&mut self, cluster: u32, entry: u32) -> Result<bool> {
        // Loads the page.
        self.page(cluster / PAGE)?;
        let first = cluster - cluster % PAGE;
        let count = self.header.entries().saturating_sub(first).min(PAGE);
        let Some(Some(page)) = self.pages.get_mut((cluster / PAGE) as usize) else {
            return Ok(false);
        };
        if matches!(page, Page::Empty) {
            *page = Page::Entries(vec![0; count as usize].into());
            self.loaded += 1;
        }
        let Page::Entries(entries) = page else {
            return Ok(false);
        };
        match entries.get_mut((cluster - first) as usize) {
            Some(found) => *found = entry,
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Writes the entries that wait, after the data to which they lead is on the disk.
    fn commit(&mut self) -> Result<()> {
        if self.dirty.is_empty() {
            return Ok(());
        }
        self.complete_clusters()?;
        self.attempt("the data cannot be brought to the disk", |storage| {
            storage.sync()
        })?;
        let dirty: Vec<u32> = self.dirty.iter().copied().collect();
        let mut start = 0;
        while start < dirty.len() {
            let mut stop = start + 1;
            while stop < dirty.len() && dirty[stop] == dirty[stop - 1] + 1 {
                stop += 1;
            }
            let mut bytes = Vec::with_capacity(4 * (stop - start));
            for cluster in &dirty[start..stop] {
                bytes.extend_from_slice(&self.entry(*cluster)?.to_le_bytes());
            }
            let offset = entry_offset(dirty[start]);
            self.record(offset, bytes.len() as u64);
            self.attempt("the table cannot be written", |storage| {
                storage.write(&bytes, offset)
            })?;
            start = stop;
        }
        self.dirty.clear();
        Ok(())
    }

    /// Syncs the data, then the table.
    pub(in crate::image) fn flush(&mut self) -> Result<()> {
        self.commit()?;
        self.attempt("the table cannot be brought to the disk", |storage| {
            storage.sync()
        })?;
        self.space.free.append(&mut self.space.released);
        Ok(())
    }

    /// Sets or clears the in-use mark, and syncs it. A delta in use is never flagged as empty.
    pub(in crate::image) fn mark(&mut self, in_use: bool) -> Result<()> {
        let mut header = self.header.clone();
        header.in_use = in_use;
        header.marked_closed = false;
        let empty = !in_use && self.space.end == header.data_start();
        header.flags.set(HeaderFlags::EMPTY, empty);
        self.put_header(header)
    }

    /// Corrects the flag that says whether the delta is empty, if it is not right.
    pub(in crate::image) fn settle_flags(&mut self) -> Result<()> {
        let is_empty = self.space.end == self.header.data_start();
        if self.header.flags.contains(HeaderFlags::EMPTY) == is_empty {
            return Ok(());
        }
        self.mark(self.header.in_use)
    }

    /// The file itself.
    pub(in crate::image) fn file(&self) -> &File {
        self.storage.file()
    }

    pub(in crate::image) fn put_header(&mut self, header: Header) -> Result<()> {
        let bytes = header.to_bytes();
        self.record(0, bytes.len() as u64);
        self.attempt("the header cannot be written", |storage| {
            storage.write(&bytes, 0)?;
            storage.sync()
        })?;
        self.header = header;
        Ok(())
    }

    /// Drops the table in memory, with all that was not written. It is read from the file again. Needed, too, where the
    /// header has changed, because the number of pages depends on it.
    pub(super) fn forget_table(&mut self) {
        self.pages = empty_pages(&self.header);
        self.loaded = 0;
        self.has_unwritten = false;
        self.dirty.clear();
        self.space.released.clear();
    }

    /// Fails if an earlier write failed.
    pub(super) fn check_whole(&self) -> Result<()> {
        if self.broken {
            return Err(Error::new(
                ErrorKind::Io,
                OPERATION,
                "an earlier write failed; what was written since the last flush may be lost",
            )
            .with_path(&self.path));
        }
        Ok(())
    }

    /// Changes the file. After a failure, all later changes fail.
    pub(super) fn attempt(
        &mut self,
        what: &str,
        work: impl FnOnce(&dyn Storage) -> io::Result<()>,
    ) -> Result<()> {
        self.check_whole()?;
        work(&*self.storage).map_err(|error| {
            self.broken = true;
            Error::io(OPERATION, what, error).with_path(&self.path)
        })
    }
}

fn write_empty(file: &File, header: &Header) -> io::Result<()> {
    write_zeros(file, 0, header.data_start())?;
    Storage::write(file, &header.to_bytes(), 0)
}

fn empty_pages(header: &Header) -> Vec<Option<Page>> {
    (0..header.entries().div_ceil(PAGE)).map(|_| None).collect()
}
