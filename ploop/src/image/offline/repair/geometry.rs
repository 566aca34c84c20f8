//! The geometry of the deltas, which is decided before any entry is judged: format version, cluster size, size of the disk,
//! number of entries and first block.
//!
//! What the headers and the descriptor say are candidates. Each is tested against all that is known: each field that
//! says something else counts as a damage, and so does each entry of the table that cannot be right then. The candidate
//! with the fewest damages is right, if no other one has as few and one field at most contradicts it. Where there is none,
//! nothing of the delta is written: by a wrong geometry, whole clusters seem to be in no use. Whoever knows which is right can
//! choose it.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use super::header::{OpenDelta, changed_fields};
use super::options::{RepairChoice, RepairGeometry, RepairOptions};
use super::report::{Decisions, RepairOutcome};
use crate::image::check::TableCheck;
use crate::image::descriptor::Descriptor;
use crate::image::header::{Header, at};
use crate::image::layout::Layout;
use crate::image::report::{Issue, Severity};
use crate::{ClusterSize, FormatVersion, Guid, Size};

const ENTRIES: &str = "number of entries";
const SIGNATURE: &str = "signature";
/// A signature that is there, and of the other version.
const OTHER_SIGNATURE: &str = "signature of the other version";
const DESCRIPTOR_CLUSTER: &str = "cluster size in the descriptor";
const DESCRIPTOR_SIZE: &str = "size in the descriptor";

/// What the headers and the descriptor should say.
pub(super) struct Geometry {
    /// The headers, in the order of the deltas. `None` where nothing of the delta is to be written.
    pub(super) headers: Vec<Option<[u8; Header::LEN]>>,
    /// The cluster size that the descriptor should have.
    pub(super) cluster: ClusterSize,
    /// The size that the descriptor should have; `None` where that is not known.
    pub(super) size: Option<Size>,
    /// Whether that differs from what some header or the descriptor says now, in more than the number of entries.
    pub(super) is_corrected: bool,
}

impl Geometry {
    /// Why nothing but the geometry is changed in this repair, if so: by a wrong one, whole clusters seem to be in no use.
    pub(super) fn hold(&self) -> Option<&'static str> {
        if self.size.is_none() {
            Some("it stays while the size of the disk or of its clusters is not certain")
        } else if self.is_corrected {
            Some(
                "this repair corrects what the image says of its clusters and its size, and nothing else: see that the disk is right, and repair the image again",
            )
        } else {
            None
        }
    }
}

/// Decides which geometry the deltas have.
pub(super) fn decide(
    deltas: &[OpenDelta],
    descriptor: &Descriptor,
    options: &RepairOptions,
    decisions: &mut Decisions,
) -> Geometry {
    let mut geometry = Geometry {
        headers: deltas.iter().map(|_| None).collect(),
        cluster: descriptor.cluster,
        size: Some(descriptor.size),
        is_corrected: false,
    };
    let is_old = |delta: &OpenDelta| is_old(delta, descriptor);
    let (old, known): (Vec<&OpenDelta>, Vec<&OpenDelta>) = deltas.iter().partition(|it| is_old(it));
    for delta in old {
        let outcome = RepairOutcome::left(
            "the layout is one of old Parallels versions, which is only read; export the image",
        );
        leave(delta, decisions, &outcome);
    }
    let chosen = options.chosen_geometry();
    let evidence = Evidence::new(&known, descriptor, chosen);
    let hypotheses = evidence.hypotheses();
    let least = hypotheses.iter().map(Hypothesis::cost).min();
    let best: Vec<&Hypothesis> = hypotheses
        .iter()
        .filter(|it| Some(it.cost()) == least)
        .collect();
    let right = match &best[..] {
        [] => return geometry,
        [one] if one.common_faults() <= 1 || chosen.is_some() => one,
        _ => {
            for (number, delta) in known.iter().enumerate() {
                let candidates = best.iter().filter_map(|it| it.deltas[number].first());
                doubtful(delta, candidates, decisions);
            }
            geometry.size = None;
            return geometry;
        }
    };
    if let Some(chosen) = chosen.filter(|_| right.deltas.iter().any(Vec::is_empty)) {
        let outcome = RepairOutcome::left(format!(
            "{chosen} was chosen, and is not possible: by it, a file ends in its table"
        ));
        for delta in known {
            leave(delta, decisions, &outcome);
        }
        geometry.size = None;
        return geometry;
    }
    geometry.cluster = right.cluster;
    geometry.is_corrected = right.cluster != descriptor.cluster;
    for (delta, candidates) in known.iter().zip(&right.deltas) {
        let header = settle(delta, candidates, options, decisions);
        if delta.guid == descriptor.top {
            geometry.size = match (&header, &candidates[..]) {
                (Some(_), [one]) => Some(one.header.size),
                _ => None,
            };
            geometry.is_corrected |= geometry.size.is_some_and(|size| size != descriptor.size);
        }
        if let (Some(header), Some(candidate)) = (&header, candidates.first()) {
            let version = candidate.header.version;
            // The number of entries follows from the others.
            let changed = changed_fields(&delta.bytes, header, version);
            geometry.is_corrected |= changed.iter().any(|name| *name != ENTRIES);
        }
        let place = deltas.iter().position(|it| it.guid == delta.guid);
        if let Some(place) = place {
            geometry.headers[place] = header;
        }
    }
    geometry
}

/// Whether two headers differ in more than marks and flags.
pub(super) fn is_other(old: &[u8; Header::LEN], new: &[u8; Header::LEN]) -> bool {
    let fields = [0..at::IN_USE, at::FIRST_BLOCK..at::FLAGS];
    fields
        .into_iter()
        .any(|field| old[field.clone()] != new[field])
}

/// Whether the layout is one of the first versions of Parallels, and nothing contradicts that.
fn is_old(delta: &OpenDelta, descriptor: &Descriptor) -> bool {
    let Some(layout) = delta.layout().filter(|layout| !layout.is_ploop) else {
        return false;
    };
    layout.cluster == Size::from(descriptor.cluster) && Quality::of(delta, &layout).faults == 0
}

/// What becomes of a delta, whose best candidates these are: the header that it should have.
fn settle(
    delta: &OpenDelta,
    candidates: &[Candidate],
    options: &RepairOptions,
    decisions: &mut Decisions,
) -> Option<[u8; Header::LEN]> {
    let [one] = candidates else {
        doubtful(delta, candidates.iter(), decisions);
        return None;
    };
    let fields = changed_fields(&delta.bytes, &one.bytes, one.header.version);
    if fields.is_empty() {
        if one.wrong.contains(&DESCRIPTOR_CLUSTER) {
            let outcome = RepairOutcome::repaired(format!(
                "headers, tables and lengths of the files say clusters of {}: so says the descriptor now",
                one.header.cluster
            ));
            add(delta, Issue::ClusterSize, decisions, &outcome);
        }
        return Some(one.bytes);
    }
    let names = fields.join(", ");
    if delta.version().is_none() {
        let others = delta.bytes[at::TYPE..at::IN_USE] == one.bytes[at::TYPE..at::IN_USE];
        let outcome = if one.table.faults != 0 {
            RepairOutcome::left(
                "no header was found by which the table is sound; export the image by --salvage, or put the delta back from a backup",
            )
        } else if one.table.sound == 0 && !others {
            RepairOutcome::left("neither the header nor the table says that this is a delta")
        } else if options.allows(RepairChoice::RebuildHeaders) {
            let outcome = RepairOutcome::repaired(format!("the header is made anew ({names})"));
            add(delta, Issue::Header, decisions, &outcome);
            return Some(one.bytes);
        } else {
            RepairOutcome::choice(
                RepairChoice::RebuildHeaders,
                format!("the header is made anew ({names})"),
            )
        };
        leave(delta, decisions, &outcome);
        return None;
    }
    let chosen = options.chosen_geometry();
    if one.wrong.len() > 1 && chosen.is_none() {
        doubtful(delta, candidates.iter(), decisions);
        return None;
    }
    let now = delta.layout().map(|own| Quality::of(delta, &own).wrong);
    if now.is_some_and(|now| now < one.table.wrong) {
        let outcome = RepairOutcome::left(format!(
            "by this geometry ({one}), clusters could not be read that can be now: wrong entries of the table would come to light"
        ));
        leave(delta, decisions, &outcome);
        return None;
    }
    let why = match chosen {
        Some(chosen) => format!("as was chosen ({chosen}), the header has other values now"),
        None => "all else (descriptor, table, length of the file, other fields and deltas) contradicts one field of the header, which has another value now".to_owned(),
    };
    let outcome = RepairOutcome::repaired(format!("{why}: {names}"));
    for issue in [
        Issue::Header,
        Issue::ClusterSize,
        Issue::MixedVersions,
        Issue::Size,
        Issue::OldLayout,
    ] {
        add(delta, issue, decisions, &outcome);
    }
    Some(one.bytes)
}

fn add(delta: &OpenDelta, issue: Issue, decisions: &mut Decisions, outcome: &RepairOutcome) {
    // A check that could not read the descriptor has not found it.
    let message = match issue == Issue::Header && delta.layout().is_none() {
        true => "the header cannot be true",
        false => "",
    };
    let file = &delta.path;
    decisions.add(Severity::Error, issue, file, None, message, outcome.clone());
}

/// Leaves a delta as it is, of which these geometries are possible.
fn doubtful<'a>(
    delta: &OpenDelta,
    candidates: impl Iterator<Item = &'a Candidate>,
    decisions: &mut Decisions,
) {
    let mut possible: Vec<String> = candidates.map(Candidate::to_string).collect();
    possible.dedup();
    let reason = match &possible[..] {
        [] => "no geometry is possible: the file ends in the table, or header and descriptor say nothing that fits; export the image by --salvage, or put the delta back from a backup".to_owned(),
        [one] => format!(
            "nothing of the delta is written, for too much is contradictory: the most likely geometry is {one}; choose it, with an undo file, and look at the disk; else export the image by --salvage"
        ),
        more => format!(
            "nothing of the delta is written, for more than one geometry is possible: {}; choose one, with an undo file, and look at the disk",
            more.join(", or ")
        ),
    };
    leave(delta, decisions, &RepairOutcome::left(reason));
}

/// Leaves everything of a delta as it is, and says so even where the check has found nothing.
fn leave(delta: &OpenDelta, decisions: &mut Decisions, outcome: &RepairOutcome) {
    leave_all(&delta.path, decisions, outcome);
    for decision in &mut decisions.0 {
        if decision.issue == Issue::Header && decision.file == delta.path {
            "the delta stays as it is".clone_into(&mut decision.message);
        }
    }
}

/// Leaves whatever the check has found in a delta.
pub(super) fn leave_all(path: &Path, decisions: &mut Decisions, outcome: &RepairOutcome) {
    for issue in [
        Issue::Header,
        Issue::InUse,
        Issue::Unsupported,
        Issue::Extension,
        Issue::ClusterSize,
        Issue::MixedVersions,
        Issue::Size,
        Issue::BadEntry,
        Issue::SharedCluster,
        Issue::EntryBeyondDisk,
        Issue::LostClusters,
        Issue::UnalignedTail,
        Issue::Sparse,
    ] {
        // Those decided before were to be repaired.
        decisions
            .0
            .retain(|it| it.issue != issue || it.file != path);
        let outcome = outcome.clone();
        decisions.add(Severity::Error, issue, path, None, "", outcome);
    }
}

/// A format version and a cluster size for all deltas, with the best candidates of each by that. There are several where
/// nothing tells which is right.
struct Hypothesis {
    cluster: ClusterSize,
    deltas: Vec<Vec<Candidate>>,
}

impl Hypothesis {
    /// How much damage there would be. What is wrong in several deltas has the same reason.
    fn cost(&self) -> u64 {
        let found = || self.deltas.iter().filter_map(|it| it.first());
        let wrong: BTreeSet<&str> = found().flat_map(|it| &it.wrong).copied().collect();
        let faults: u64 = found().map(|it| it.table.faults + it.order).sum();
        let has_gaps = found().any(|it| it.table.has_gaps);
        let is_far = found().any(|it| it.is_far);
        let impossible = self.deltas.iter().filter(|it| it.is_empty()).count() as u64;
        cost(
            wrong.len() as u64 + 3 * impossible + faults,
            has_gaps,
            is_far,
        )
    }

    /// How many of the fields are wrong that are the same for all deltas.
    fn common_faults(&self) -> usize {
        let common = [OTHER_SIGNATURE, "cluster size", DESCRIPTOR_CLUSTER];
        let found = || self.deltas.iter().filter_map(|it| it.first());
        common
            .iter()
            .filter(|name| found().any(|it| it.wrong.contains(name)))
            .count()
    }

    fn fits(&self) -> bool {
        self.deltas
            .iter()
            .all(|it| matches!(&it[..], [one] if one.fits()))
    }
}

/// What may be so after a crash, or since the disk became smaller, only counts where all else does not decide.
fn cost(damages: u64, has_gaps: bool, is_far: bool) -> u64 {
    4 * damages + u64::from(has_gaps) + u64::from(is_far)
}

/// A header that a delta may have.
struct Candidate {
    header: Header,
    bytes: [u8; Header::LEN],
    /// The fields that say something else.
    wrong: Vec<&'static str>,
    table: Quality,
    /// How many deltas above have a smaller disk, or below a larger one.
    order: u64,
    /// Whether the data begins later than it has to.
    is_far: bool,
}

impl Candidate {
    fn fits(&self) -> bool {
        self.wrong.is_empty() && self.table.faults == 0
    }

    fn cost(&self) -> u64 {
        let damages = self.wrong.len() as u64 + self.table.faults + self.order;
        cost(damages, self.table.has_gaps, self.is_far)
    }
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Candidate { header, .. } = self;
        let geometry = RepairGeometry::new(header.version, header.cluster, header.size);
        let first = header.first_block_sector;
        write!(
            f,
            "{geometry}, with data from sector {first} on (against it: "
        )?;
        let mut against: Vec<String> = self.wrong.iter().map(|it| format!("the {it}")).collect();
        if self.table.faults != 0 {
            against.push(match self.table.faults {
                1 => "an entry of the table".to_owned(),
                faults => format!("{faults} entries of the table"),
            });
        }
        if self.order != 0 {
            against.push("the size of another delta".to_owned());
        }
        match against.is_empty() {
            true => f.write_str("nothing)"),
            false => write!(f, "{})", against.join(", ")),
        }
    }
}

/// What table and file are like by a layout.
#[derive(Default)]
struct Quality {
    sound: u64,
    /// The entries that lead to no cluster or to that of another one.
    wrong: u64,
    /// All that is wrong, with entries behind the end of the disk.
    faults: u64,
    /// Whether there are clusters without an entry, or less than a cluster at the end of the file.
    has_gaps: bool,
}

impl Quality {
    fn of(delta: &OpenDelta, layout: &Layout) -> Quality {
        let check = TableCheck {
            path: &delta.path,
            file: &delta.file,
            layout,
            len: delta.len,
        };
        let mut quality = Quality::default();
        let mut unreadable = 0;
        let used = check.scan(
            |_| unreadable += 1,
            |_, _, place| match place {
                Ok(_) => quality.sound += 1,
                Err(_) => quality.wrong += 1,
            },
        );
        if layout.is_ploop {
            // A file that ends before the data begins has no more entries.
            let beyond = check.scan_beyond_disk(|_, _| quality.faults += 1);
            unreadable += u64::from(beyond.is_err() && delta.len >= layout.data_start);
        }
        quality.faults += quality.wrong + unreadable;
        let (data, cluster) = (
            delta.len.saturating_sub(layout.data_start),
            layout.cluster.bytes(),
        );
        quality.has_gaps = data % cluster != 0 || data / cluster > used.len();
        quality
    }
}

/// All that is known.
struct Evidence<'a> {
    deltas: &'a [&'a OpenDelta],
    descriptor: &'a Descriptor,
    chosen: Option<RepairGeometry>,
    /// Of each delta, those that it stands upon and those upon it, looked up once: there may be thousands.
    neighbours: Vec<Neighbours>,
}

/// By their places among the deltas.
#[derive(Clone, Default)]
struct Neighbours {
    below: Option<usize>,
    above: Vec<usize>,
}

impl<'a> Evidence<'a> {
    fn new(
        deltas: &'a [&'a OpenDelta],
        descriptor: &'a Descriptor,
        chosen: Option<RepairGeometry>,
    ) -> Evidence<'a> {
        let places: HashMap<Guid, usize> = deltas
            .iter()
            .enumerate()
            .map(|(place, delta)| (delta.guid, place))
            .collect();
        let mut neighbours = vec![Neighbours::default(); deltas.len()];
        for (place, delta) in deltas.iter().enumerate() {
            let parent = descriptor.parent(delta.guid);
            let below = parent.and_then(|parent| places.get(&parent).copied());
            neighbours[place].below = below;
            if let Some(below) = below {
                neighbours[below].above.push(place);
            }
        }
        Evidence {
            deltas,
            descriptor,
            chosen,
            neighbours,
        }
    }

    /// What is possible; only one, if all fits.
    fn hypotheses(&self) -> Vec<Hypothesis> {
        if let Some(chosen) = self.chosen {
            let best = |place: usize| self.best(place, chosen.version, chosen.cluster);
            return vec![Hypothesis {
                cluster: chosen.cluster,
                deltas: (0..self.deltas.len()).map(best).collect(),
            }];
        }
        let own = self.deltas.iter().find_map(|delta| delta.version());
        let mut versions = [FormatVersion::V1, FormatVersion::V2];
        versions.sort_by_key(|version| Some(*version) != own);
        let mut clusters = vec![self.descriptor.cluster];
        for delta in self.deltas {
            let said = ClusterSize::from_sectors(delta.number(at::CLUSTER).into());
            clusters.extend(said.ok().filter(|said| !clusters.contains(said)));
        }
        let mut found = Vec::new();
        for version in versions {
            for cluster in &clusters {
                let best = |place: usize| self.best(place, version, *cluster);
                let hypothesis = Hypothesis {
                    cluster: *cluster,
                    deltas: (0..self.deltas.len()).map(best).collect(),
                };
                if hypothesis.deltas.iter().all(Vec::is_empty) {
                    continue;
                }
                if hypothesis.fits() {
                    return vec![hypothesis];
                }
                found.push(hypothesis);
            }
        }
        if found.is_empty() && !self.deltas.is_empty() {
            found.push(Hypothesis {
                cluster: self.descriptor.cluster,
                deltas: self.deltas.iter().map(|_| Vec::new()).collect(),
            });
        }
        found
    }

    /// The candidates of a delta with the fewest damages.
    fn best(&self, place: usize, version: FormatVersion, cluster: ClusterSize) -> Vec<Candidate> {
        let delta = self.deltas[place];
        let Neighbours { below, above } = &self.neighbours[place];
        // In a chain, a size that is wrong stands between right ones.
        let others = below.iter().chain(above.first());
        let mut sizes = vec![delta.sectors(version), self.descriptor.size.sectors()];
        sizes.extend(others.map(|other| self.deltas[*other].sectors(version)));
        if let Some(chosen) = self.chosen.filter(|_| delta.guid == self.descriptor.top) {
            sizes = vec![chosen.size.sectors()];
        }
        let mut seen = BTreeSet::new();
        sizes.retain(|size| seen.insert(*size));
        let mut best: Vec<Candidate> = Vec::new();
        for sectors in sizes {
            let Ok(usual) = Header::new(version, cluster, Size::from_sectors(sectors)) else {
                continue;
            };
            let own = Header {
                first_block_sector: delta.number(at::FIRST_BLOCK),
                ..usual.clone()
            };
            let mut headers = vec![own];
            if headers[0] != usual {
                headers.push(usual.clone());
            }
            for header in headers {
                let is_far = header.first_block_sector > usual.first_block_sector;
                let least = best.first().map(Candidate::cost);
                let Some(candidate) = self.candidate(place, &header, is_far, least) else {
                    continue;
                };
                if candidate.fits() {
                    return vec![candidate];
                }
                if least.is_none_or(|least| candidate.cost() < least) {
                    best.clear();
                }
                best.push(candidate);
            }
        }
        best
    }

    /// A delta with this header. `None` where that cannot be, or costs more than `least` whatever the table is like.
    fn candidate(
        &self,
        place: usize,
        header: &Header,
        is_far: bool,
        least: Option<u64>,
    ) -> Option<Candidate> {
        let delta = self.deltas[place];
        let bytes = delta.with_geometry(header);
        let parsed = Header::parse(&bytes).ok()?;
        // A file that was cut short still has its right header.
        let is_own = delta.number(at::FIRST_BLOCK) == header.first_block_sector && !is_far;
        let ends = match is_own {
            true => Header::LEN as u64 + 4 * u64::from(parsed.entries()),
            false => parsed.data_start(),
        };
        if ends > delta.len {
            return None;
        }
        let mut wrong = changed_fields(&delta.bytes, &bytes, parsed.version);
        if delta.version().is_some() {
            for name in &mut wrong {
                if *name == SIGNATURE {
                    *name = OTHER_SIGNATURE;
                }
            }
        }
        if parsed.cluster != self.descriptor.cluster {
            wrong.push(DESCRIPTOR_CLUSTER);
        }
        if delta.guid == self.descriptor.top && parsed.size != self.descriptor.size {
            wrong.push(DESCRIPTOR_SIZE);
        }
        let size = |other: &usize| Some(self.deltas[*other].layout()?.size);
        let Neighbours { below, above } = &self.neighbours[place];
        let larger = below.iter().filter_map(size);
        let larger = larger.filter(|size| *size > parsed.size).count();
        let smaller = above.iter().filter_map(size);
        let order = larger + smaller.filter(|size| *size < parsed.size).count();
        let mut candidate = Candidate {
            header: parsed,
            bytes,
            wrong,
            table: Quality::default(),
            order: order as u64,
            is_far,
        };
        let is_possible = |candidate: &Candidate| least.is_none_or(|it| candidate.cost() <= it);
        if !is_possible(&candidate) {
            return None;
        }
        candidate.table = Quality::of(delta, &Layout::from(&candidate.header));
        is_possible(&candidate).then_some(candidate)
    }
}
