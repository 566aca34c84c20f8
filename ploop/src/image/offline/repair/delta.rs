//! What is to be changed in a delta: header, table, and the clusters of its file.

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;

use super::geometry::leave_all;
use super::header::{OpenDelta, number as number_at};
use super::options::{RepairChoice, RepairOptions};
use super::report::{Decisions, RepairOutcome};
use crate::Size;
use crate::identity::Identity;
use crate::image::check::{EntryFault, TableCheck};
use crate::image::clusters::Clusters;
use crate::image::header::{Header, HeaderFlags, at};
use crate::image::layout::Layout;
use crate::image::report::{Issue, Severity};
use crate::image::table::entry_offset;
use crate::image::{extension, holes};

/// The changes of a file.
#[derive(Debug, Clone)]
pub(super) struct FileChange {
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
    pub(super) old_len: u64,
    pub(super) new_len: u64,
    /// The length while clusters are copied: not less than the old one.
    pub(super) longest: u64,
    /// Where header and table end, with what follows up to the first cluster; 0 in a raw base.
    pub(super) table_end: u64,
    pub(super) cluster: u64,
    pub(super) header: Option<HeaderChange>,
    /// In ascending order.
    pub(super) entries: Vec<EntryChange>,
    pub(super) copies: Vec<ClusterCopy>,
    /// Holes that get space.
    pub(super) fills: Vec<Range<u64>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct HeaderChange {
    pub(super) old: [u8; Header::LEN],
    pub(super) new: [u8; Header::LEN],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryChange {
    /// Where the entry is in the file.
    pub(super) offset: u64,
    pub(super) old: u32,
    pub(super) new: u32,
}

/// A cluster that is copied before an entry leads to the copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClusterCopy {
    pub(super) from: u64,
    pub(super) to: u64,
    /// The entry that leads to the copy then.
    pub(super) entry: EntryChange,
}

impl FileChange {
    pub(super) fn new(delta: &OpenDelta, cluster: u64, table_end: u64) -> FileChange {
        FileChange {
            path: delta.path.clone(),
            identity: delta.identity,
            old_len: delta.len,
            new_len: delta.len,
            longest: delta.len,
            table_end,
            cluster,
            header: None,
            entries: Vec::new(),
            copies: Vec::new(),
            fills: Vec::new(),
        }
    }

    /// The entries that follow each other in the file, together.
    pub(super) fn entry_runs(&self) -> impl Iterator<Item = &[EntryChange]> {
        self.entries
            .chunk_by(|first, second| first.offset + 4 == second.offset)
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.header.is_none()
            && self.entries.is_empty()
            && self.copies.is_empty()
            && self.fills.is_empty()
            && self.new_len == self.old_len
    }
}

/// What the table of a delta has.
#[derive(Default)]
struct Table {
    used: Clusters,
    /// Entries that lead to no cluster: which, and the entry.
    misplaced: Vec<(u32, u32)>,
    /// Entries that lead to the cluster of an entry before them.
    shared: Vec<(u32, u32)>,
    /// Behind those of the disk: where, and the entry.
    beyond: Vec<(u64, u32)>,
    is_readable: bool,
}

/// A delta whose changes are being found.
struct Planned<'a> {
    delta: &'a OpenDelta,
    header: Header,
    layout: Layout,
    options: &'a RepairOptions,
    table: Table,
    /// The clusters of the extension, by their number behind the table; those that an entry does not lead to.
    extension: Clusters,
    change: FileChange,
}

/// The changes of a delta whose header is to be `right`. `None` where nothing is to be done. `hold` is why nothing
/// but the header is changed, if so.
pub(super) fn plan(
    delta: &OpenDelta,
    right: &[u8; Header::LEN],
    hold: Option<&str>,
    options: &RepairOptions,
    decisions: &mut Decisions,
) -> Option<FileChange> {
    let header = Header::parse(right).ok()?;
    let layout = Layout::from(&header);
    let change = FileChange::new(delta, layout.cluster.bytes(), layout.data_start);
    let mut planned = Planned {
        delta,
        layout,
        options,
        table: Table::default(),
        extension: Clusters::default(),
        change,
        header,
    };
    if delta.names > 1 {
        leave_all(
            &delta.path,
            decisions,
            &RepairOutcome::left(format!(
                "the file has {} names (hard links), and would change under all of them; put a copy of it in its place, or remove the other names",
                delta.names
            )),
        );
        return None;
    }
    planned.scan();
    if planned.header.flags.contains(HeaderFlags::CONVERTING) {
        leave_all(
            &delta.path,
            decisions,
            &RepairOutcome::left(
                "a change of the format version was interrupted, and its copy of the table, with which it would be taken back, is missing",
            ),
        );
        return None;
    }
    if !planned.table.is_readable {
        leave_all(
            &delta.path,
            decisions,
            &RepairOutcome::left(
                "the table cannot be read from the disk: copy the file to another disk first",
            ),
        );
        return None;
    }
    let mut new = *right;
    if let Some(reason) = hold {
        planned.leave_table(reason, decisions);
    } else {
        planned.settle_extension(&mut new, decisions)?;
        planned.settle_entries(decisions);
        planned.settle_holes(decisions);
    }
    planned.settle_flags(&mut new, decisions);
    if new != delta.bytes {
        planned.change.header = Some(HeaderChange {
            old: delta.bytes,
            new,
        });
    }
    let mut change = planned.change;
    change.entries.sort_by_key(|entry| entry.offset);
    (!change.is_nothing()).then_some(change)
}

impl Planned<'_> {
    fn check(&self) -> TableCheck<'_> {
        TableCheck {
            path: &self.delta.path,
            file: &self.delta.file,
            layout: &self.layout,
            len: self.delta.len,
        }
    }

    fn scan(&mut self) {
        let mut table = Table {
            is_readable: true,
            ..Table::default()
        };
        let mut is_readable = true;
        let check = self.check();
        let used = check.scan(
            |_| is_readable = false,
            |number, entry, place| match place {
                Ok(_) => {}
                Err(EntryFault::Misplaced(_)) => table.misplaced.push((number, entry)),
                Err(EntryFault::Shared) => table.shared.push((number, entry)),
            },
        );
        let beyond = check.scan_beyond_disk(|offset, entry| table.beyond.push((offset, entry)));
        // A file that ends before the data begins has no more entries.
        let is_short = self.delta.len < self.layout.data_start;
        table.is_readable = is_readable && (beyond.is_ok() || is_short);
        table.used = used;
        self.table = table;
    }

    /// Leaves the faults of the table and of the clusters.
    fn leave_table(&self, reason: &str, decisions: &mut Decisions) {
        let end = self.delta.len.max(self.layout.data_start);
        let tail = (end - self.layout.data_start) % self.layout.cluster.bytes();
        let Table {
            misplaced,
            shared,
            beyond,
            ..
        } = &self.table;
        for (issue, severity, count) in [
            (Issue::BadEntry, Severity::Error, misplaced.len() as u64),
            (Issue::SharedCluster, Severity::Error, shared.len() as u64),
            (
                Issue::EntryBeyondDisk,
                Severity::Warning,
                beyond.len() as u64,
            ),
            (
                Issue::LostClusters,
                Severity::Warning,
                self.lost(end - tail),
            ),
            (Issue::UnalignedTail, Severity::Warning, tail),
        ] {
            if count != 0 {
                let outcome = RepairOutcome::left(reason);
                let message = match issue {
                    Issue::LostClusters => "the file has clusters that are not in use",
                    Issue::UnalignedTail => "the file does not end with a whole cluster",
                    _ => "the table has wrong entries",
                };
                self.add(decisions, (severity, issue), message, outcome);
            }
        }
    }

    fn add(
        &self,
        decisions: &mut Decisions,
        (severity, issue): (Severity, Issue),
        message: impl Into<String>,
        outcome: RepairOutcome,
    ) {
        decisions.add(severity, issue, &self.delta.path, None, message, outcome);
    }

    /// Decides about the format extension. `None` where the delta must stay as it is because of it.
    fn settle_extension(
        &mut self,
        new: &mut [u8; Header::LEN],
        decisions: &mut Decisions,
    ) -> Option<()> {
        if !self.layout.has_extension() {
            return Some(());
        }
        let allowed = self.options.allows(RepairChoice::DropExtensions);
        let clusters = extension::clusters(&self.delta.file, &self.layout, self.delta.len);
        let is_damaged = clusters.is_err();
        let is_changed = |faults: usize, choice| faults > 0 && self.options.allows(choice);
        let needs_change = is_changed(self.table.misplaced.len(), RepairChoice::ClearEntries)
            || is_changed(self.table.shared.len(), RepairChoice::CopyShared)
            || !self.table.beyond.is_empty();
        if allowed && (is_damaged || needs_change) {
            new[at::IN_USE..][..4].fill(0);
            new[at::EXTENSION..][..8].fill(0);
            self.add(
                decisions,
                (Severity::Warning, Issue::Extension),
                "the delta has a format extension",
                RepairOutcome::repaired("it is dropped: the next backup is a full one"),
            );
            return Some(());
        }
        let effect = match is_damaged {
            true => {
                "the format extension is dropped, with the bitmaps of what a backup has to copy"
            }
            false => {
                "the format extension is dropped, because its bitmaps would not tell what the repair changes"
            }
        };
        if is_damaged || needs_change {
            // Which clusters are its own is not known, or its bitmaps would go stale.
            let outcome = RepairOutcome::choice(RepairChoice::DropExtensions, effect);
            leave_all(&self.delta.path, decisions, &outcome);
            return None;
        }
        for offset in clusters.unwrap_or_default() {
            let slot = (offset - self.layout.data_start) / self.layout.cluster.bytes();
            self.extension.insert(slot as u32);
        }
        Some(())
    }

    fn offset_of(&self, slot: u32) -> u64 {
        self.layout.data_start + u64::from(slot) * self.layout.cluster.bytes()
    }

    fn slot_of(&self, offset: u64) -> u32 {
        // No entry leads so far that the number does not fit.
        ((offset - self.layout.data_start) / self.layout.cluster.bytes()) as u32
    }

    /// The entry that leads to an offset; `None` where no entry can lead so far.
    fn entry_to(&self, offset: u64) -> Option<u32> {
        let slot = u32::try_from(offset / self.layout.cluster.bytes()).ok()?;
        let entry = self.layout.entry_of(slot);
        (self.layout.cluster_offset(entry) == offset).then_some(entry)
    }

    /// Decides about the entries of the table, and which clusters go where.
    fn settle_entries(&mut self, decisions: &mut Decisions) {
        let cluster = self.layout.cluster.bytes();
        let (len, data_start) = (self.delta.len, self.layout.data_start);
        let tail = len.saturating_sub(data_start) % cluster;
        // The cluster at the end of a file that was cut short.
        let torn = len.saturating_sub(tail);
        let clears = self.options.allows(RepairChoice::ClearEntries);
        let copies = self.options.allows(RepairChoice::CopyShared);
        let mut end = torn.max(data_start);
        if len < data_start {
            self.change.new_len = data_start;
            self.change.longest = data_start;
            self.add(
                decisions,
                (Severity::Error, Issue::Header),
                "the file ends before the data begins",
                RepairOutcome::repaired("the file is made longer, up to where the data begins"),
            );
        }
        let mut is_settled = true;
        let mut keeps_tail = false;

        if !self.table.misplaced.is_empty() {
            let count = self.table.misplaced.len();
            let has_torn = tail != 0
                && self
                    .table
                    .misplaced
                    .iter()
                    .any(|(_, entry)| self.layout.cluster_offset(*entry) == torn);
            let outcome = if clears {
                let misplaced = std::mem::take(&mut self.table.misplaced);
                for (number, entry) in misplaced {
                    if has_torn && self.layout.cluster_offset(entry) == torn {
                        if self.table.used.insert(self.slot_of(torn)) {
                            keeps_tail = true;
                            end = torn + cluster;
                        } else {
                            self.table.shared.push((number, entry));
                        }
                        continue;
                    }
                    self.change.entries.push(EntryChange {
                        offset: entry_offset(number),
                        old: entry,
                        new: 0,
                    });
                }
                self.table.shared.sort_unstable();
                RepairOutcome::repaired(match keeps_tail {
                    true => format!(
                        "the entry is cleared; that of the cluster at the end of the file, of which {tail} bytes are there, stays, with zeros for the rest"
                    ),
                    false => "the entry is cleared".to_owned(),
                })
            } else {
                is_settled = false;
                RepairOutcome::choice(
                    RepairChoice::ClearEntries,
                    "these clusters read as in the deltas below, or as zeros; what is there of one at the end of the file stays",
                )
            };
            self.add(
                decisions,
                (Severity::Error, Issue::BadEntry),
                entries(
                    count,
                    "of the table leads to no cluster",
                    "of the table lead to no cluster",
                ),
                outcome,
            );
            if has_torn && !clears {
                let effect = "the bytes at the end belong to a cluster that was cut short; it gets zeros for the rest";
                let outcome = RepairOutcome::choice(RepairChoice::ClearEntries, effect);
                self.tail_is(decisions, tail, outcome);
            }
        }
        if tail != 0 {
            if keeps_tail {
                self.change.new_len = end;
                self.change.longest = end;
                let outcome = RepairOutcome::repaired("the cluster at the end is whole again");
                self.tail_is(decisions, tail, outcome);
            } else if is_settled {
                self.change.new_len = torn;
                self.tail_is(decisions, tail, RepairOutcome::repaired("they are cut off"));
            } else {
                let reason = "they may belong to a damaged entry of the table, and stay until that is repaired";
                self.tail_is(decisions, tail, RepairOutcome::left(reason));
            }
        }

        let shared = std::mem::take(&mut self.table.shared);
        let mut homeless: Vec<(u32, u32)> = Vec::new();
        if !shared.is_empty() {
            let count = shared.len();
            let outcome = if !self.table.misplaced.is_empty() {
                // A longer file could make one of them lead to a cluster, to a wrong one.
                RepairOutcome::left("the entries that lead to no cluster have to be repaired first")
            } else if copies {
                homeless = shared;
                RepairOutcome::repaired("the entry gets a copy of the cluster")
            } else {
                is_settled = false;
                RepairOutcome::choice(
                    RepairChoice::CopyShared,
                    "each entry but the first gets a copy of the cluster; which of them it belongs to is not known",
                )
            };
            self.add(
                decisions,
                (Severity::Error, Issue::SharedCluster),
                entries(
                    count,
                    "of the table leads to the cluster of another one",
                    "of the table lead to clusters of others",
                ),
                outcome,
            );
        }

        if !self.table.beyond.is_empty() {
            let outcome = match is_settled {
                true => {
                    let cleared = self.table.beyond.iter().map(|(offset, entry)| EntryChange {
                        offset: *offset,
                        old: *entry,
                        new: 0,
                    });
                    self.change.entries.extend(cleared);
                    RepairOutcome::repaired("they are cleared: the disk ends before them")
                }
                false => {
                    is_settled = false;
                    RepairOutcome::left("they stay until the other entries are repaired")
                }
            };
            self.add(
                decisions,
                (Severity::Warning, Issue::EntryBeyondDisk),
                "the table has entries for clusters behind the end of the disk",
                outcome,
            );
        }
        self.settle_lost(end, &homeless, is_settled, decisions);
    }

    fn tail_is(&self, decisions: &mut Decisions, tail: u64, outcome: RepairOutcome) {
        self.add(
            decisions,
            (Severity::Warning, Issue::UnalignedTail),
            format!("the file ends with {tail} bytes that are not a whole cluster"),
            outcome,
        );
    }

    /// Decides about clusters without an entry, and where clusters go that need another place: those in `homeless`, and
    /// those at the end of a file that becomes shorter. `end` is where the whole clusters of the file end.
    fn settle_lost(
        &mut self,
        end: u64,
        homeless: &[(u32, u32)],
        is_settled: bool,
        decisions: &mut Decisions,
    ) {
        let cluster = self.layout.cluster.bytes();
        let slots = self.slot_of(end);
        let used = self.table.used.len();
        let unused = self.unused(end);
        let lost = self.lost(end);
        let frees = lost != 0 && is_settled;
        if lost != 0 {
            let outcome = match is_settled {
                true => RepairOutcome::repaired(format!(
                    "{} of the file are freed: what is behind them moves to their place, and the file is cut",
                    Size::from_bytes(unused * cluster)
                )),
                false => RepairOutcome::left(
                    "they may belong to damaged entries of the table, and stay until these are repaired",
                ),
            };
            self.add(
                decisions,
                (Severity::Warning, Issue::LostClusters),
                match lost {
                    1 => "one cluster of the file is not in use".to_owned(),
                    _ => format!("{lost} clusters of the file are not in use"),
                },
                outcome,
            );
        }
        if !frees && homeless.is_empty() {
            return;
        }
        // Clusters of an extension do not move.
        let stays = self.extension.len() != 0;
        let new_end = match (frees, stays) {
            (true, false) => self.offset_of((used + homeless.len() as u64) as u32),
            (true, true) => {
                let last = (0..slots)
                    .rev()
                    .find(|slot| self.table.used.contains(*slot) || self.extension.contains(*slot));
                let end = self.offset_of(last.map_or(0, |last| last + 1));
                end + homeless.len() as u64 * cluster
            }
            (false, _) => end + homeless.len() as u64 * cluster,
        };
        let first_free = match (frees, stays) {
            (true, false) => 0,
            (true, true) => self.slot_of(new_end) - homeless.len() as u32,
            (false, _) => slots,
        };
        let taken = &self.table.used;
        let mut free = (first_free..self.slot_of(new_end)).filter(|slot| !taken.contains(*slot));
        let mut moves: Vec<(u32, u32)> = homeless.to_vec();
        if frees && !stays {
            let (check, layout) = (self.check(), &self.layout);
            let shared: HashSet<u32> = homeless.iter().map(|(number, _)| *number).collect();
            check.scan(
                |_| {},
                |number, entry, place| {
                    let offset = layout.cluster_offset(entry);
                    let is_kept = place.is_ok()
                        || offset + cluster == end
                            && !shared.contains(&number)
                            && offset < end
                            && layout.is_aligned(offset)
                            && offset >= layout.data_start;
                    if is_kept && offset >= new_end {
                        moves.push((number, entry));
                    }
                },
            );
        }
        let mut copies = Vec::new();
        for (number, entry) in moves {
            let target = free.next().map(|slot| self.offset_of(slot));
            let Some((to, new)) = target.and_then(|to| Some((to, self.entry_to(to)?))) else {
                // No entry can lead so far. All stays as it is; a later finding says so.
                return;
            };
            copies.push(ClusterCopy {
                from: self.layout.cluster_offset(entry),
                to,
                entry: EntryChange {
                    offset: entry_offset(number),
                    old: entry,
                    new,
                },
            });
        }
        self.change
            .entries
            .extend(copies.iter().map(|copy| copy.entry));
        self.change.copies = copies;
        self.change.longest = self.change.longest.max(new_end).max(self.delta.len);
        self.change.new_len = new_end;
    }

    /// How many clusters before `end` are not in use.
    fn unused(&self, end: u64) -> u64 {
        u64::from(self.slot_of(end)).saturating_sub(self.table.used.len() + self.extension.len())
    }

    /// How many clusters before `end` are not in use, and no holes.
    fn lost(&self, end: u64) -> u64 {
        let unused = self.unused(end);
        unused - self.unused_holes(end).min(unused)
    }

    /// How many clusters before `end` are holes, and not in use.
    fn unused_holes(&self, end: u64) -> u64 {
        if self.delta.stored >= self.delta.len || self.delta.len < self.layout.data_start {
            return 0;
        }
        // One that was cut short is in use by now, and not in the file.
        let whole = TableCheck {
            len: self.delta.len.min(end),
            ..self.check()
        };
        whole.unused_holes(&self.table.used)
    }

    /// Decides about holes in what is in use.
    fn settle_holes(&mut self, decisions: &mut Decisions) {
        let missing = self.delta.len.saturating_sub(self.delta.stored);
        if missing == 0 {
            return;
        }
        let (len, data_start) = (self.delta.len, self.layout.data_start);
        let unused = self.unused_holes(len) * self.layout.cluster.bytes();
        if missing <= unused {
            return;
        }
        if !self.options.allows(RepairChoice::FillHoles) {
            self.add(
                decisions,
                (Severity::Warning, Issue::Sparse),
                "the file has holes",
                RepairOutcome::choice(
                    RepairChoice::FillHoles,
                    format!(
                        "they get space, {} or more",
                        Size::from_bytes(missing - unused)
                    ),
                ),
            );
            return;
        }
        let mut fills: Vec<Range<u64>> = Vec::new();
        let mut fill = |part: Range<u64>| match fills.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => fills.push(part),
        };
        let mut at = 0;
        let ends = holes::data(&self.delta.file, 0, len).chain([(len, 0)]);
        for (start, data) in ends {
            if at < start.min(data_start) {
                fill(at..start.min(data_start));
            }
            let mut from = at.max(data_start);
            while from < start {
                let slot = self.slot_of(from);
                let to = self.offset_of(slot.saturating_add(1)).min(start);
                if self.table.used.contains(slot) || self.extension.contains(slot) {
                    fill(from..to);
                }
                from = to.max(from + 1);
            }
            at = start + data;
        }
        self.change.fills = fills;
        self.add(
            decisions,
            (Severity::Warning, Issue::Sparse),
            "the file has holes",
            RepairOutcome::repaired("they have space now"),
        );
    }

    /// Decides about the in-use mark and the flag of an empty delta.
    fn settle_flags(&mut self, new: &mut [u8; Header::LEN], decisions: &mut Decisions) {
        let is_left = |decisions: &Decisions| {
            let own = decisions.0.iter().filter(|it| it.file == self.delta.path);
            own.filter(|it| it.severity == Severity::Error)
                .any(|it| !matches!(it.outcome, RepairOutcome::Repaired { .. }))
        };
        if self.header.in_use {
            let outcome = match is_left(decisions) {
                true => {
                    RepairOutcome::left("the mark stays until the damage of the delta is repaired")
                }
                false => {
                    new[at::IN_USE..][..4].fill(0);
                    RepairOutcome::repaired("no device of this host has it: the mark is cleared")
                }
            };
            self.add(
                decisions,
                (Severity::Warning, Issue::InUse),
                "the delta is marked as in use",
                outcome,
            );
        }
        let moves = !self.change.copies.is_empty() || self.change.new_len < self.delta.len;
        if moves && !self.layout.has_extension() && self.layout.extension_sector != 0 {
            // It is not kept up, and its clusters are taken.
            new[at::EXTENSION..][..8].fill(0);
        }
        let says_empty = self.header.flags.contains(HeaderFlags::EMPTY);
        let is_empty = self.table.used.len() == 0
            && (says_empty || self.change.new_len <= self.layout.data_start);
        let is_open = self.header.in_use && number_at(new, at::IN_USE) != 0;
        let is_settled = self.table.misplaced.is_empty() && !(is_open && is_empty);
        if says_empty != is_empty && is_settled {
            let mut flags = self.header.flags;
            flags.set(HeaderFlags::EMPTY, is_empty);
            new[at::FLAGS..][..4].copy_from_slice(&flags.bits().to_le_bytes());
            self.add(
                decisions,
                (Severity::Note, Issue::EmptyFlag),
                match is_empty {
                    true => "the header does not say that the delta is empty",
                    false => "the header says that the delta is empty",
                },
                RepairOutcome::repaired("the flag is right now"),
            );
        }
    }
}

/// So many entries, and what is said of them.
fn entries(count: usize, of_one: &str, of_more: &str) -> String {
    match count {
        1 => format!("one entry {of_one}"),
        _ => format!("{count} entries {of_more}"),
    }
}
