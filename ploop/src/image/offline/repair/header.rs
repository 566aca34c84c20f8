//! Which header of a delta is right, by its own fields, the table, the descriptor and the other deltas.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use super::options::{RepairChoice, RepairOptions};
use super::report::{Decisions, RepairOutcome};
use crate::identity::Identity;
use crate::image::check::{EntryFault, TableCheck};
use crate::image::descriptor::{Descriptor, Image};
use crate::image::file;
use crate::image::header::{Header, at};
use crate::image::layout::Layout;
use crate::image::report::{Issue, Severity};
use crate::{ClusterSize, Error, FormatVersion, Guid, Result, Size};

/// A delta with a header, or what should have one, open for reading.
pub(super) struct OpenDelta {
    pub(super) guid: Guid,
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) len: u64,
    pub(super) identity: Identity,
    /// How many names the file has.
    pub(super) names: u64,
    /// How much space it takes.
    pub(super) stored: u64,
    /// Its first bytes as they are.
    pub(super) bytes: [u8; Header::LEN],
}

impl OpenDelta {
    /// `None` where the file is no regular one, or shorter than a header; the check says so.
    pub(super) fn open(image: &Image) -> Result<Option<OpenDelta>> {
        let (file, len) = file::open("repair image", &image.file)?;
        let metadata = file.metadata().map_err(|error| {
            Error::io("repair image", "the file cannot be examined", error).with_path(&image.file)
        })?;
        let mut bytes = [0; Header::LEN];
        if !metadata.is_file() || file.read_exact_at(&mut bytes, 0).is_err() {
            return Ok(None);
        }
        Ok(Some(OpenDelta {
            guid: image.guid,
            path: image.file.clone(),
            file,
            len,
            identity: Identity::from(&metadata),
            names: metadata.nlink(),
            stored: metadata.blocks().saturating_mul(512),
            bytes,
        }))
    }

    fn layout(&self) -> Option<Layout> {
        Layout::read_from(&self.file, self.len).ok()
    }

    /// What the table is like by this layout.
    fn table(&self, layout: &Layout) -> TableQuality {
        let check = TableCheck {
            path: &self.path,
            file: &self.file,
            layout,
            len: self.len,
        };
        let mut quality = TableQuality::default();
        let mut unreadable = 0;
        check.scan(
            |_| unreadable += 1,
            |_, _, place| match place {
                Ok(_) => quality.sound += 1,
                Err(EntryFault::Misplaced(_) | EntryFault::Shared) => quality.faults += 1,
            },
        );
        quality.faults += unreadable;
        quality
    }

    fn number(&self, at: usize) -> u32 {
        number(&self.bytes, at)
    }

    /// The version by the signature.
    fn version(&self) -> Option<FormatVersion> {
        [FormatVersion::V1, FormatVersion::V2]
            .into_iter()
            .find(|version| self.bytes[..at::TYPE] == signature(*version))
    }

    fn sectors(&self, version: FormatVersion) -> u64 {
        let low = u64::from(self.number(at::SIZE));
        match version {
            FormatVersion::V1 => low,
            FormatVersion::V2 => low | u64::from(self.number(at::SIZE + 4)) << 32,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct TableQuality {
    sound: u64,
    faults: u64,
}

impl TableQuality {
    fn is_sound(self) -> bool {
        self.faults == 0
    }
}

pub(super) fn number(bytes: &[u8; Header::LEN], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn signature(version: FormatVersion) -> [u8; at::TYPE] {
    let mut signature = [0; at::TYPE];
    // Any header of the version has it.
    if let Ok(header) = Header::new(version, ClusterSize::DEFAULT, Size::from_mib(1)) {
        signature.copy_from_slice(&header.to_bytes()[..at::TYPE]);
    }
    signature
}

/// The headers that the deltas should have, in the order of the deltas. `None` where that is not known, or not to be
/// done.
pub(super) struct RightHeaders {
    pub(super) headers: Vec<Option<[u8; Header::LEN]>>,
    /// The cluster size that the descriptor should have.
    pub(super) cluster: ClusterSize,
    /// The size that the descriptor should have.
    pub(super) size: Size,
    /// Whether the top has entries behind its size, and the descriptor has a larger size.
    pub(super) size_is_uncertain: bool,
}

/// Decides which headers are right.
pub(super) fn decide(
    deltas: &[OpenDelta],
    descriptor: &Descriptor,
    options: &RepairOptions,
    decisions: &mut Decisions,
) -> RightHeaders {
    let cluster = cluster(deltas, descriptor, decisions);
    let mut right = RightHeaders {
        headers: deltas.iter().map(|_| None).collect(),
        cluster,
        size: descriptor.size,
        size_is_uncertain: false,
    };
    let candidates = Candidates {
        deltas,
        descriptor,
        cluster,
    };
    for (delta, header) in deltas.iter().zip(&mut right.headers) {
        *header = candidates.header_of(delta, options, decisions);
    }
    candidates.agree_on_version(&mut right.headers, decisions);
    for (delta, header) in deltas.iter().zip(&mut right.headers) {
        if let Some(header) = header {
            candidates.settle_size(delta, header, decisions);
            if let (true, Ok(header)) = (delta.guid == descriptor.top, Header::parse(header)) {
                right.size_is_uncertain =
                    header.size < descriptor.size && has_entries_beyond(delta, &header);
                if !right.size_is_uncertain {
                    right.size = header.size;
                }
            }
        }
    }
    right
}

/// The cluster size of the image: that of the descriptor, unless all deltas have another one.
fn cluster(
    deltas: &[OpenDelta],
    descriptor: &Descriptor,
    decisions: &mut Decisions,
) -> ClusterSize {
    let said = descriptor.cluster;
    let layouts: Vec<Option<Layout>> = deltas.iter().map(OpenDelta::layout).collect();
    let Some(Some(first)) = layouts.first() else {
        return said;
    };
    let Ok(found) = ClusterSize::from_bytes(first.cluster.bytes()) else {
        return said;
    };
    let all_agree = deltas.iter().zip(&layouts).all(|(delta, layout)| {
        layout.as_ref().is_some_and(|layout| {
            layout.is_ploop && layout.cluster == first.cluster && delta.table(layout).is_sound()
        })
    });
    // A table without entries is sound with any cluster size.
    let has_entries = || {
        let both = deltas.iter().zip(&layouts);
        both.filter_map(|(delta, layout)| Some(delta.table(layout.as_ref()?)))
            .any(|table| table.sound > 0)
    };
    if found == said || !all_agree || !has_entries() {
        return said;
    }
    for delta in deltas {
        decisions.add(
            Severity::Error,
            Issue::ClusterSize,
            &delta.path,
            None,
            "the delta has other clusters than the descriptor says",
            RepairOutcome::repaired(format!(
                "all deltas have clusters of {found}, and their tables are sound: so says the descriptor now"
            )),
        );
    }
    found
}

/// The headers that may be right.
struct Candidates<'a> {
    deltas: &'a [OpenDelta],
    descriptor: &'a Descriptor,
    cluster: ClusterSize,
}

impl Candidates<'_> {
    /// The header as it is, or the one that is right; decisions about one that is not.
    fn header_of(
        &self,
        delta: &OpenDelta,
        options: &RepairOptions,
        decisions: &mut Decisions,
    ) -> Option<[u8; Header::LEN]> {
        let layout = delta.layout();
        let is_cluster = |layout: &Layout| layout.cluster == Size::from(self.cluster);
        let mut add = |outcome: RepairOutcome| {
            for issue in [Issue::Header, Issue::ClusterSize] {
                let is_this = match issue {
                    Issue::ClusterSize => layout.is_some(),
                    _ => layout.is_none(),
                };
                if is_this {
                    decisions.add(
                        Severity::Error,
                        issue,
                        &delta.path,
                        None,
                        "the header cannot be true",
                        outcome.clone(),
                    );
                }
            }
        };
        match &layout {
            Some(own) if own.is_ploop && is_cluster(own) => {
                let table = delta.table(own);
                if !table.is_sound() {
                    if let Some(better) = self.with_other_first_block(delta, own) {
                        decisions.add(
                            Severity::Error,
                            Issue::BadEntry,
                            &delta.path,
                            None,
                            "the header says wrongly where the data begins",
                            RepairOutcome::repaired(
                                "the header said wrongly where the data begins: by what it says now, the table is sound",
                            ),
                        );
                        return Some(better);
                    }
                }
                return Some(delta.bytes);
            }
            Some(own) if !own.is_ploop && delta.table(own).is_sound() => {
                add(RepairOutcome::left(
                    "the layout is one of old Parallels versions, which is only read; export the image",
                ));
                return None;
            }
            _ => {}
        }
        let known = delta.version();
        let found: Vec<([u8; Header::LEN], TableQuality)> = self
            .versions(known)
            .into_iter()
            .filter_map(|version| {
                let bytes = self.candidate(delta, version)?;
                let header = Header::parse(&bytes).ok()?;
                if table_end(&header) > delta.len {
                    return None;
                }
                Some((bytes, delta.table(&Layout::from(&header))))
            })
            .collect();
        let sound: Vec<_> = found.iter().filter(|(_, table)| table.is_sound()).collect();
        // Of a file that ends before the data begins, every entry leads behind the end.
        let is_short = |bytes: &[u8; Header::LEN]| *bytes == delta.bytes;
        let (bytes, table) = match (&sound[..], &found[..]) {
            ([], [one]) if is_short(&one.0) => *one,
            ([one], _) => **one,
            // Faults of the table are the table's, as long as most of it fits.
            ([], [one]) if known.is_some() && one.1.sound > one.1.faults => *one,
            ([], _) => {
                add(RepairOutcome::left(
                    "no header was found by which the table is sound; export the image by --salvage, or put the delta back from a backup",
                ));
                return None;
            }
            _ => {
                add(RepairOutcome::left(
                    "more than one header is possible, and nothing tells which one is right",
                ));
                return None;
            }
        };
        let fields = changed_fields(&delta.bytes, &bytes);
        if known.is_none() {
            let others = delta.bytes[at::TYPE..at::IN_USE] == bytes[at::TYPE..at::IN_USE];
            if table.sound == 0 && !others {
                add(RepairOutcome::left(
                    "neither the header nor the table says that this is a delta",
                ));
                return None;
            }
            let effect = format!("the header is made anew ({fields})");
            if !options.allows(RepairChoice::RebuildHeaders) {
                add(RepairOutcome::choice(RepairChoice::RebuildHeaders, effect));
                return None;
            }
            add(RepairOutcome::repaired(effect));
        } else if fields.is_empty() {
            add(RepairOutcome::repaired(
                "the file is made longer, up to where the data begins",
            ));
        } else {
            add(RepairOutcome::repaired(format!(
                "by the descriptor, the table and the length of the file, the header has other values: {fields}"
            )));
        }
        Some(bytes)
    }

    fn versions(&self, known: Option<FormatVersion>) -> Vec<FormatVersion> {
        if let Some(known) = known {
            return vec![known];
        }
        let of_others: Vec<FormatVersion> =
            self.deltas.iter().filter_map(OpenDelta::version).collect();
        match of_others.split_first() {
            Some((first, rest)) if rest.iter().all(|other| other == first) => vec![*first],
            _ => vec![FormatVersion::V1, FormatVersion::V2],
        }
    }

    /// The header with the least changes that can be right.
    fn candidate(&self, delta: &OpenDelta, version: FormatVersion) -> Option<[u8; Header::LEN]> {
        let sectors = self.sectors(delta, version)?;
        let new = Header::new(version, self.cluster, Size::from_sectors(sectors)).ok()?;
        let new_bytes = new.to_bytes();
        let mut bytes = delta.bytes;
        let mut take = |start: usize, len: usize| {
            bytes[start..start + len].copy_from_slice(&new_bytes[start..start + len]);
        };
        take(0, at::HEADS);
        take(at::CLUSTER, 8);
        take(
            at::SIZE,
            match version {
                FormatVersion::V1 => 4,
                FormatVersion::V2 => 8,
            },
        );
        let first = delta.number(at::FIRST_BLOCK);
        let data_start = u64::from(first) * 512;
        let is_possible = first % self.cluster.sectors() == 0
            && data_start >= table_end(&new)
            && data_start <= delta.len;
        if !is_possible {
            take(at::FIRST_BLOCK, 4);
        }
        Some(bytes)
    }

    /// The size of the disk in a delta: what fits the number of entries in the header.
    fn sectors(&self, delta: &OpenDelta, version: FormatVersion) -> Option<u64> {
        let entries = u64::from(delta.number(at::ENTRIES));
        let count = |sectors: u64| sectors.div_ceil(self.cluster.sectors().into());
        let fits = |sectors: &u64| *sectors != 0 && count(*sectors) == entries;
        let own = delta.sectors(version);
        if fits(&own) {
            return Some(own);
        }
        let mut others: Vec<u64> = self
            .deltas
            .iter()
            .filter(|other| other.guid != delta.guid)
            .filter_map(|other| Some(other.layout()?.size.sectors()))
            .collect();
        let is_top = delta.guid == self.descriptor.top;
        others.push(self.descriptor.size.sectors());
        others.sort_unstable();
        others.dedup();
        let fitting: Vec<u64> = others.iter().copied().filter(fits).collect();
        let is_possible = |sectors: u64| {
            let header = Header::new(version, self.cluster, Size::from_sectors(sectors));
            sectors != 0 && header.is_ok_and(|header| table_end(&header) <= delta.len)
        };
        match (&fitting[..], &others[..]) {
            ([one], _) => Some(*one),
            _ if is_possible(own) => Some(own),
            _ if is_top => Some(self.descriptor.size.sectors()),
            (_, [one]) => Some(*one),
            _ => None,
        }
    }

    /// A header that differs in where the data begins, if the table is sound by it.
    fn with_other_first_block(&self, delta: &OpenDelta, own: &Layout) -> Option<[u8; Header::LEN]> {
        let new = Header::new(own.version, self.cluster, own.size).ok()?;
        if new.data_start() == own.data_start {
            return None;
        }
        let mut bytes = delta.bytes;
        bytes[at::FIRST_BLOCK..][..4].copy_from_slice(&new.first_block_sector.to_le_bytes());
        let layout = Layout::from(&Header::parse(&bytes).ok()?);
        let table = delta.table(&layout);
        (table.is_sound() && table.sound > 0).then_some(bytes)
    }

    /// Where the deltas are of two versions, and only one of them has a table that is sound by the other version: it gets
    /// the signature of that.
    fn agree_on_version(
        &self,
        headers: &mut [Option<[u8; Header::LEN]>],
        decisions: &mut Decisions,
    ) {
        let parsed: Vec<Option<Header>> = headers
            .iter()
            .map(|bytes| Header::parse(bytes.as_ref()?).ok())
            .collect();
        let mut versions = parsed.iter().flatten().map(|header| header.version);
        let Some(first) = versions.next() else {
            return;
        };
        if versions.all(|version| version == first) {
            return;
        }
        let qualities: Vec<Option<(FormatVersion, TableQuality, TableQuality)>> = self
            .deltas
            .iter()
            .zip(&parsed)
            .map(|(delta, header)| {
                let header = header.as_ref()?;
                let mut layout = Layout::from(header);
                let own = delta.table(&layout);
                layout.version = other_version(header.version);
                Some((header.version, own, delta.table(&layout)))
            })
            .collect();
        let certain = |version: FormatVersion| {
            qualities.iter().flatten().any(|(of, own, other)| {
                let (as_this, as_other) = match *of == version {
                    true => (own, other),
                    false => (other, own),
                };
                as_this.is_sound() && !as_other.is_sound()
            })
        };
        let right = match (certain(FormatVersion::V1), certain(FormatVersion::V2)) {
            (true, false) => Some(FormatVersion::V1),
            (false, true) => Some(FormatVersion::V2),
            _ => None,
        };
        let fits = |version: FormatVersion| {
            qualities.iter().flatten().all(|(of, own, other)| {
                let as_this = if *of == version { own } else { other };
                as_this.is_sound()
            })
        };
        let right = right.filter(|version| fits(*version));
        for ((delta, header), quality) in self.deltas.iter().zip(headers).zip(&qualities) {
            let (Some(bytes), Some((version, ..))) = (header, quality) else {
                continue;
            };
            let outcome = match right {
                Some(right) => {
                    if *version != right {
                        bytes[..at::TYPE].copy_from_slice(&signature(right));
                    }
                    RepairOutcome::repaired(format!(
                        "the tables of all deltas are sound by format {right}, and not all by the other one: all headers say {right} now"
                    ))
                }
                None => RepairOutcome::left(
                    "the tables do not tell which format version is right; export the image, and import it again",
                ),
            };
            decisions.add(
                Severity::Error,
                Issue::MixedVersions,
                &delta.path,
                None,
                "the deltas are of different format versions",
                outcome,
            );
        }
    }

    /// Makes size and number of entries agree.
    fn settle_size(
        &self,
        delta: &OpenDelta,
        bytes: &mut [u8; Header::LEN],
        decisions: &mut Decisions,
    ) {
        let Ok(header) = Header::parse(bytes) else {
            return;
        };
        if header.stored_entries == header.entries() {
            return;
        }
        let stored = u64::from(header.stored_entries);
        let fits = |size: &Size| {
            size.sectors().div_ceil(self.cluster.sectors().into()) == stored
                && *size != header.size
                && self.ends_at(delta, &header, stored)
        };
        let is_top = delta.guid == self.descriptor.top;
        let has_more =
            header.stored_entries > header.entries() && has_entries_beyond(delta, &header);
        let others = self.deltas.iter().filter(|other| other.guid != delta.guid);
        let mut sizes: Vec<Size> = match (is_top, has_more) {
            (true, _) => vec![self.descriptor.size],
            (false, true) => others
                .filter_map(|other| Some(other.layout()?.size))
                .chain([self.descriptor.size])
                .collect(),
            (false, false) => Vec::new(),
        };
        sizes.retain(fits);
        sizes.sort_unstable();
        sizes.dedup();
        let with_size = |size: Size| {
            let new = Header {
                size,
                ..header.clone()
            };
            let len = match header.version {
                FormatVersion::V1 => 4,
                FormatVersion::V2 => 8,
            };
            let mut with_size = *bytes;
            with_size[at::SIZE..][..len].copy_from_slice(&new.to_bytes()[at::SIZE..][..len]);
            let with = Header::parse(&with_size).ok()?;
            // An entry that leads nowhere must not come to light.
            let faults = |header: &Header| delta.table(&Layout::from(header)).faults;
            (faults(&with) <= faults(&header)).then_some(with_size)
        };
        let outcome = match &sizes[..] {
            [size] if with_size(*size).is_some() => {
                *bytes = with_size(*size).unwrap_or(*bytes);
                RepairOutcome::repaired(format!(
                    "the number of entries and the rest of the image say {size}, and so does the header now"
                ))
            }
            _ if has_more => RepairOutcome::left(
                "the table has entries behind the size, as many as the header counts, and nothing tells which size is right",
            ),
            _ => {
                bytes[at::ENTRIES..][..4].copy_from_slice(&header.entries().to_le_bytes());
                RepairOutcome::repaired("the number of entries follows from the size")
            }
        };
        decisions.add(
            Severity::Warning,
            Issue::Size,
            &delta.path,
            Some(at::ENTRIES as u64),
            "the header counts other clusters than the size has",
            outcome,
        );
    }

    /// Whether the table has no entry from `count` on, so that nothing is lost if the disk ends there.
    fn ends_at(&self, delta: &OpenDelta, header: &Header, count: u64) -> bool {
        let mut last = 0;
        let check = TableCheck {
            path: &delta.path,
            file: &delta.file,
            layout: &Layout::from(header),
            len: delta.len,
        };
        let mut is_readable = true;
        check.scan(
            |_| is_readable = false,
            |number, _, _| last = u64::from(number) + 1,
        );
        is_readable && last <= count
    }
}

/// Whether the table has entries behind those of the disk.
pub(super) fn has_entries_beyond(delta: &OpenDelta, header: &Header) -> bool {
    let check = TableCheck {
        path: &delta.path,
        file: &delta.file,
        layout: &Layout::from(header),
        len: delta.len,
    };
    let mut any = false;
    // One that cannot be read is taken for one that has some.
    check.scan_beyond_disk(|_, _| any = true).is_err() || any
}

fn other_version(version: FormatVersion) -> FormatVersion {
    match version {
        FormatVersion::V1 => FormatVersion::V2,
        FormatVersion::V2 => FormatVersion::V1,
    }
}

/// Where the table of a disk ends in the file.
pub(super) fn table_end(header: &Header) -> u64 {
    Header::LEN as u64 + 4 * u64::from(header.entries())
}

/// Whether two headers differ in more than marks and flags.
pub(super) fn is_other_layout(old: &[u8; Header::LEN], new: &[u8; Header::LEN]) -> bool {
    let fields = [0..at::IN_USE, at::FIRST_BLOCK..at::FLAGS];
    fields
        .into_iter()
        .any(|field| old[field.clone()] != new[field])
}

fn changed_fields(old: &[u8; Header::LEN], new: &[u8; Header::LEN]) -> String {
    let fields = [
        (0, at::TYPE, "signature"),
        (at::TYPE, at::HEADS, "type"),
        (at::CLUSTER, at::ENTRIES, "cluster size"),
        (at::ENTRIES, at::SIZE, "number of entries"),
        (at::SIZE, at::IN_USE, "size"),
        (at::FIRST_BLOCK, at::FLAGS, "first block"),
    ];
    let changed: Vec<&str> = fields
        .iter()
        .filter(|(start, end, _)| old[*start..*end] != new[*start..*end])
        .map(|(.., name)| *name)
        .collect();
    changed.join(", ")
}
