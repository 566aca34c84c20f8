//! The check of a block allocation table, and of the clusters of its file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::findings::Findings;
use crate::image::clusters::Clusters;
use crate::image::layout::Layout;
use crate::image::report::{Issue, Severity};
use crate::image::table::{self, PAGE, Page, Table};
use crate::image::{extension, holes};
use crate::{Error, Result};

/// The check of one delta's table.
pub(in crate::image) struct TableCheck<'a> {
    pub(in crate::image) path: &'a Path,
    pub(in crate::image) file: &'a File,
    pub(in crate::image) layout: &'a Layout,
    pub(in crate::image) len: u64,
}

/// What is wrong with an entry of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum EntryFault {
    /// It leads to no cluster of the file; why.
    Misplaced(&'static str),
    /// An entry before it leads to the same cluster.
    Shared,
}

impl TableCheck<'_> {
    /// Checks each entry, and returns the clusters that are in use, by their number behind the table.
    pub(super) fn entries(&self, findings: &mut Findings) -> Clusters {
        let mut unreadable = Vec::new();
        let clusters = self.scan(
            |error| unreadable.push(error),
            |number, entry, place| {
                let (issue, what) = match place {
                    Ok(_) => return,
                    Err(EntryFault::Misplaced(what)) => (Issue::BadEntry, what),
                    Err(EntryFault::Shared) => (Issue::SharedCluster, "another cluster uses, too"),
                };
                findings.add(
                    Severity::Error,
                    issue,
                    Some(self.path),
                    Some(table::entry_offset(number)),
                    format!("the table puts cluster {number} at {entry}, which {what}"),
                );
            },
        );
        for error in unreadable {
            findings.add_error(Issue::Unreadable, &error);
        }
        clusters
    }

    /// Looks at each entry that is not 0, in their order: which cluster, the entry, and the offset to which it leads or
    /// what is wrong with it. Returns the clusters that are in use, by their number behind the table.
    pub(in crate::image) fn scan(
        &self,
        mut unreadable: impl FnMut(Error),
        mut each: impl FnMut(u32, u32, Result<u64, EntryFault>),
    ) -> Clusters {
        let entries = self.layout.entries;
        let table = Table::new(entries);
        let mut clusters = Clusters::default();
        for number in 0..entries.div_ceil(PAGE) {
            let page = match table.page_uncached(self.file, number) {
                Ok(Page::Entries(page)) => page,
                Ok(_) => continue,
                Err(error) => {
                    unreadable(error.with_path(self.path));
                    continue;
                }
            };
            for (cluster, entry) in (number * PAGE..).zip(page) {
                if entry != 0 {
                    each(cluster, entry, self.place(entry, &mut clusters));
                }
            }
        }
        clusters
    }

    /// Where an entry leads.
    fn place(&self, entry: u32, clusters: &mut Clusters) -> Result<u64, EntryFault> {
        let layout = self.layout;
        let offset = layout.cluster_offset(entry);
        if let Some(what) = layout.misplaced(offset, |end| self.is_beyond(end)) {
            return Err(EntryFault::Misplaced(what));
        }
        // No entry leads so far that the number does not fit.
        let slot = (offset - layout.data_start) / layout.cluster.bytes();
        match clusters.insert(slot as u32) {
            true => Ok(offset),
            false => Err(EntryFault::Shared),
        }
    }

    /// Whether an offset is behind the end of the file. A delta in use grows meanwhile.
    fn is_beyond(&self, end: u64) -> bool {
        end > self.len && self.file.metadata().map_or(true, |now| end > now.len())
    }

    /// How many clusters the format extension has.
    pub(super) fn extension_clusters(&self, findings: &mut Findings) -> u64 {
        if !self.layout.has_extension() {
            if self.layout.extension_sector != 0 && !self.layout.in_use {
                findings.add(
                    Severity::Note,
                    Issue::Extension,
                    Some(self.path),
                    Some(56),
                    "the header names a format extension that was not kept up, and is ignored",
                );
            }
            return 0;
        }
        match extension::clusters(self.file, self.layout, self.len) {
            Ok(clusters) => {
                findings.add(
                    Severity::Note,
                    Issue::Extension,
                    Some(self.path),
                    Some(56),
                    "the image has a format extension; with libploop 1, which would cut it off, changes and mounts are refused",
                );
                clusters.len() as u64
            }
            Err(error) => {
                let at = error.offset();
                let file = Some(self.path);
                findings.add(
                    Severity::Warning,
                    Issue::Extension,
                    file,
                    at,
                    error.message(),
                );
                0
            }
        }
    }

    /// Checks that the table is zero behind the entries of the disk, up to the first cluster of data.
    pub(super) fn entries_beyond_disk(&self, findings: &mut Findings) -> Result<()> {
        self.scan_beyond_disk(|offset, _| {
            findings.add(
                Severity::Warning,
                Issue::EntryBeyondDisk,
                Some(self.path),
                Some(offset),
                "the table has an entry for a cluster behind the end of the disk",
            );
        })
    }

    /// Looks at each entry behind those of the disk that is not 0: where it is, and the entry.
    pub(in crate::image) fn scan_beyond_disk(&self, mut each: impl FnMut(u64, u32)) -> Result<()> {
        let mut at = table::entry_offset(self.layout.entries);
        let end = self.layout.data_start;
        let mut buffer = vec![0; 64 << 10];
        while at < end {
            let Some((start, len)) = holes::data(self.file, at, end - at).next() else {
                break;
            };
            // To the beginning of an entry.
            at = start - start % 4;
            let part = (start + len - at).min(buffer.len() as u64) as usize;
            self.file
                .read_exact_at(&mut buffer[..part], at)
                .map_err(|error| {
                    Error::io("read block table", "the file cannot be read", error).with_offset(at)
                })?;
            if holes::is_zero(&buffer[..part]) {
                at += part as u64;
                continue;
            }
            for (index, entry) in (0u64..).zip(buffer[..part].chunks(4)) {
                if entry.iter().any(|byte| *byte != 0) {
                    let mut bytes = [0; 4];
                    bytes[..entry.len()].copy_from_slice(entry);
                    each(at + 4 * index, u32::from_le_bytes(bytes));
                }
            }
            at += part as u64;
        }
        Ok(())
    }

    /// How many clusters of the file are holes, and not in use.
    pub(in crate::image) fn unused_holes(&self, used: &Clusters) -> u64 {
        let (cluster, data_start) = (self.layout.cluster.bytes(), self.layout.data_start);
        let (mut at, end) = (data_start, self.len - (self.len - data_start) % cluster);
        let mut holes = 0;
        let mut add = |from: u64, to: u64| {
            let (first, last) = (
                (from - data_start).div_ceil(cluster),
                (to - data_start) / cluster,
            );
            if let (Ok(first), Ok(last)) = (u32::try_from(first), u32::try_from(last)) {
                holes += u64::from(last.saturating_sub(first)) - used.count(first..last);
            }
        };
        for (start, len) in holes::data(self.file, at, end.saturating_sub(at)) {
            add(at, start);
            at = start + len;
        }
        add(at, end);
        holes
    }

    /// How many clusters of the file have no entry that leads to them, and take space: `holes` of them take none.
    pub(super) fn lost_clusters(&self, used: u64, holes: u64, findings: &mut Findings) -> u64 {
        let cluster = self.layout.cluster.bytes();
        let tail = (self.len - self.layout.data_start) % cluster;
        if tail != 0 {
            findings.add(
                Severity::Warning,
                Issue::UnalignedTail,
                Some(self.path),
                Some(self.len - tail),
                format!("the file ends with {tail} bytes that are not a whole cluster"),
            );
        }
        let clusters = (self.len - self.layout.data_start) / cluster;
        let unused = clusters.saturating_sub(used);
        let lost = unused.saturating_sub(holes);
        if unused != 0 {
            let mut message = format!("{unused} of the file's {clusters} clusters are not in use");
            let severity = match lost {
                0 => {
                    message += "; they are holes, and take no space";
                    Severity::Note
                }
                _ => Severity::Warning,
            };
            findings.add(
                severity,
                Issue::LostClusters,
                Some(self.path),
                None,
                message,
            );
        }
        lost
    }
}
