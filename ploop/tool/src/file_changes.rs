//! Which files differ between two states of a file system, and in what.
//!
//! Both trees are walked at the same time, from the root down. Of a directory that is in one of them alone, its number and
//! the entries `..` tell whether it was moved; of other files, the numbers of all that are in one tree alone. Contents are
//! read only where their blocks lie elsewhere or in a part of the disk that has changed.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::changed_parts::ChangedParts;
use crate::file_system::{DataRun, FileSystem, Kind, Node, ROOT, Visited};
use crate::output::Result;

/// How much is compared at a time.
const BUFFER: usize = 256 << 10;

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Status {
    Removed,
    Moved,
    Changed,
    /// It is of another type.
    Retyped,
    Added,
}

/// In what a file differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Difference {
    Kind,
    Content,
    Target,
    Device,
    Size,
    Mode,
    Owner,
    Mtime,
    Attributes,
}

/// A file that differs. The numbers are those of its inodes.
#[derive(Debug)]
pub(crate) struct FileChange {
    pub(crate) status: Status,
    /// Its earlier path and inode, unless it was added.
    pub(crate) earlier: Option<(Vec<u8>, u32)>,
    /// Its later path and inode, unless it was removed.
    pub(crate) later: Option<(Vec<u8>, u32)>,
    pub(crate) differences: Vec<Difference>,
}

impl FileChange {
    /// The later path, or of a removed file the one that it had.
    pub(crate) fn path(&self) -> &[u8] {
        match (&self.later, &self.earlier) {
            (Some((path, _)), _) | (None, Some((path, _))) => path,
            (None, None) => b"",
        }
    }
}

/// The two states. `changed` are the parts in which their devices differ; `None` where nobody knows.
pub(crate) struct Trees<'a> {
    pub(crate) earlier: &'a FileSystem,
    pub(crate) later: &'a FileSystem,
    pub(crate) changed: Option<&'a ChangedParts>,
}

/// What differs, by path.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) changes: Vec<FileChange>,
    /// Directories whose names are encrypted: nothing is known of what is in them.
    pub(crate) encrypted: Vec<Vec<u8>>,
}

/// Finds all files that differ.
pub(crate) fn find(trees: &Trees<'_>) -> Result<Found> {
    let mut walk = Walk {
        trees,
        left: Vec::new(),
        entered: [Visited::default(), Visited::default()],
        changes: Vec::new(),
        encrypted: BTreeSet::new(),
        removed: Vec::new(),
        added: Vec::new(),
        contents: HashMap::new(),
    };
    walk.left.push(Step::Both {
        earlier: (Vec::new(), ROOT),
        later: (Vec::new(), ROOT),
        is_move: false,
    });
    while let Some(step) = walk.left.pop() {
        walk.perform(step)?;
    }
    walk.match_names()?;
    let mut changes = walk.changes;
    changes.sort_by(|a, b| (a.path(), a.status).cmp(&(b.path(), b.status)));
    Ok(Found {
        changes,
        encrypted: walk.encrypted.into_iter().collect(),
    })
}

/// A name of a file: a path, and the number of the inode.
type Name = (Vec<u8>, u32);

/// What is left to be done of the walk. The file system decides how deep it is, so this does not recurse.
enum Step {
    /// A directory that both have.
    Both {
        earlier: Name,
        later: Name,
        /// Whether its own name is another one, and not only that of a directory above.
        is_move: bool,
    },
    Earlier(Name),
    Later(Name),
}

struct Walk<'a> {
    trees: &'a Trees<'a>,
    left: Vec<Step>,
    /// Directories of the earlier and of the later state.
    entered: [Visited; 2],
    changes: Vec<FileChange>,
    encrypted: BTreeSet<Vec<u8>>,
    /// Names of files, but not of directories, that one state has alone.
    removed: Vec<Name>,
    added: Vec<Name>,
    /// What reading the contents of files with several names has shown.
    contents: HashMap<(u32, u32), bool>,
}

impl Walk<'_> {
    fn perform(&mut self, step: Step) -> Result<()> {
        let (earlier, later) = (self.trees.earlier, self.trees.later);
        match step {
            Step::Both {
                earlier: (from, number),
                later: (to, later_number),
                is_move,
            } => {
                let nodes = [earlier.node(number)?, later.node(later_number)?];
                self.entered[0].enter(number, as_path(&from))?;
                self.entered[1].enter(later_number, as_path(&to))?;
                let names = ((root(&from), number), (root(&to), later_number));
                self.compare(names, &nodes, is_move)?;
                if nodes.iter().any(Node::is_encrypted) {
                    self.encrypted.insert(root(&to));
                    return Ok(());
                }
                let entries = [earlier.entries(&nodes[0])?, later.entries(&nodes[1])?];
                self.pair(&from, &to, entries)
            }
            Step::Earlier((path, number)) => {
                let node = earlier.node(number)?;
                if node.kind() != Some(Kind::Directory) {
                    self.removed.push((path, number));
                    return Ok(());
                }
                if let Some(to) = self.trees.moved(number, &node)? {
                    let is_move = path != to;
                    self.left.push(Step::Both {
                        earlier: (path, number),
                        later: (to, number),
                        is_move,
                    });
                    return Ok(());
                }
                self.changes.push(FileChange {
                    status: Status::Removed,
                    earlier: Some((path.clone(), number)),
                    later: None,
                    differences: Vec::new(),
                });
                self.left_alone(0, &path, &node)
            }
            Step::Later((path, number)) => {
                let node = later.node(number)?;
                if node.kind() != Some(Kind::Directory) {
                    self.added.push((path, number));
                    return Ok(());
                }
                let moved = match earlier.node(number) {
                    Ok(old) => self.trees.moved(number, &old)?,
                    Err(_) => None,
                };
                if moved.is_some() {
                    // The earlier state has it, too, and there it is compared.
                    return Ok(());
                }
                self.changes.push(FileChange {
                    status: Status::Added,
                    earlier: None,
                    later: Some((path.clone(), number)),
                    differences: Vec::new(),
                });
                self.left_alone(1, &path, &node)
            }
        }
    }

    /// What is in a directory that one state has alone.
    fn left_alone(&mut self, side: usize, path: &[u8], node: &Node) -> Result<()> {
        self.entered[side].enter(node.number, as_path(path))?;
        if node.is_encrypted() {
            self.encrypted.insert(path.to_owned());
            return Ok(());
        }
        let (file_system, step): (_, fn(Name) -> Step) = match side {
            0 => (self.trees.earlier, Step::Earlier),
            _ => (self.trees.later, Step::Later),
        };
        for (name, number) in file_system.entries(node)? {
            self.left.push(step((join(path, &name), number)));
        }
        Ok(())
    }

    /// The entries of a directory that both have.
    fn pair(&mut self, from: &[u8], to: &[u8], entries: [Vec<(Vec<u8>, u32)>; 2]) -> Result<()> {
        let [earlier, later] = entries.map(|it| it.into_iter().peekable());
        let (mut earlier, mut later) = (earlier, later);
        loop {
            let order = match (earlier.peek(), later.peek()) {
                (None, None) => return Ok(()),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((one, _)), Some((other, _))) => one.cmp(other),
            };
            let mut next = |path: &[u8], side: usize| {
                let next = match side {
                    0 => earlier.next(),
                    _ => later.next(),
                };
                next.map(|(name, number)| (join(path, &name), number))
            };
            match order {
                std::cmp::Ordering::Less => {
                    self.left.extend(next(from, 0).map(Step::Earlier));
                }
                std::cmp::Ordering::Greater => {
                    self.left.extend(next(to, 1).map(Step::Later));
                }
                std::cmp::Ordering::Equal => {
                    if let (Some(one), Some(other)) = (next(from, 0), next(to, 1)) {
                        self.same_name(one, other)?;
                    }
                }
            }
        }
    }

    /// Two files with one name.
    fn same_name(&mut self, earlier: Name, later: Name) -> Result<()> {
        let nodes = [
            self.trees.earlier.node(earlier.1)?,
            self.trees.later.node(later.1)?,
        ];
        let [old, new] = &nodes;
        let is_directory = nodes
            .each_ref()
            .map(|it| it.kind() == Some(Kind::Directory));
        if is_same(old, new) && !is_directory[0] {
            return self.compare((earlier, later), &nodes, false);
        }
        let has_moved = match is_directory {
            _ if is_same(old, new) => false,
            [true, true] => {
                let now = self.trees.moved(old.number, old)?;
                let before = match self.trees.earlier.node(new.number) {
                    Ok(before) => self.trees.moved(new.number, &before)?,
                    Err(_) => None,
                };
                now.is_some() || before.is_some()
            }
            // One that was written anew under the old name is the same file to people, unless the old one is still there.
            [false, false] => {
                let now = self.trees.later.node(old.number);
                let before = self.trees.earlier.node(new.number);
                let is_there = |found: Result<Node>, it: &Node| {
                    found.is_ok_and(|found| found.inode.links_count > 0 && is_same(&found, it))
                };
                is_there(now, old) || is_there(before, new)
            }
            _ => true,
        };
        match is_directory {
            [true, true] if !has_moved => self.left.push(Step::Both {
                earlier,
                later,
                is_move: false,
            }),
            [false, false] if !has_moved => self.compare((earlier, later), &nodes, false)?,
            _ => {
                self.left.push(Step::Earlier(earlier));
                self.left.push(Step::Later(later));
            }
        }
        Ok(())
    }

    /// Finds out which of the names that one state has alone belong to one file.
    fn match_names(&mut self) -> Result<()> {
        let mut removed = std::mem::take(&mut self.removed);
        let mut added = std::mem::take(&mut self.added);
        removed.sort();
        added.sort();
        let mut by_inode: HashMap<u32, Vec<usize>> = HashMap::new();
        for (index, (_, number)) in added.iter().enumerate().rev() {
            by_inode.entry(*number).or_default().push(index);
        }
        let mut is_matched = vec![false; added.len()];
        let mut left = Vec::new();
        for (path, number) in removed {
            let node = self.trees.earlier.node(number)?;
            let found = by_inode.get_mut(&number).and_then(Vec::pop);
            if let Some((index, (to, _))) = found.map(|index| (index, &added[index])) {
                let now = self.trees.later.node(number)?;
                if is_same(&node, &now) {
                    is_matched[index] = true;
                    let is_move = path != *to;
                    let names = ((path, number), (to.clone(), number));
                    self.compare(names, &[node, now], is_move)?;
                    continue;
                }
                // The number was given to another file.
                by_inode.remove(&number);
            }
            left.push((path, number));
        }
        let added = added.into_iter().zip(is_matched);
        let mut added = added
            .filter(|(_, is_matched)| !is_matched)
            .map(|(name, _)| name)
            .peekable();
        for name in left {
            while let Some(added) = added.next_if(|it| it.0 < name.0) {
                self.push_added(added);
            }
            match added.next_if(|it| it.0 == name.0) {
                // The old file has another name, which it had before.
                Some(later) => {
                    let nodes = [
                        self.trees.earlier.node(name.1)?,
                        self.trees.later.node(later.1)?,
                    ];
                    self.compare((name, later), &nodes, false)?;
                }
                None => self.changes.push(FileChange {
                    status: Status::Removed,
                    earlier: Some(name),
                    later: None,
                    differences: Vec::new(),
                }),
            }
        }
        added.for_each(|name| self.push_added(name));
        Ok(())
    }

    fn push_added(&mut self, name: Name) {
        self.changes.push(FileChange {
            status: Status::Added,
            earlier: None,
            later: Some(name),
            differences: Vec::new(),
        });
    }

    /// Adds a file that both have, if it differs in anything.
    fn compare(
        &mut self,
        (earlier, later): (Name, Name),
        nodes: &[Node; 2],
        is_move: bool,
    ) -> Result<()> {
        let differences = self.differences(nodes)?;
        let status = match differences.first() {
            _ if is_move => Status::Moved,
            None => return Ok(()),
            Some(Difference::Kind) => Status::Retyped,
            Some(_) => Status::Changed,
        };
        self.changes.push(FileChange {
            status,
            earlier: Some(earlier),
            later: Some(later),
            differences,
        });
        Ok(())
    }

    fn differences(&mut self, nodes: &[Node; 2]) -> Result<Vec<Difference>> {
        let [old, new] = nodes;
        let (before, now) = (&old.inode, &new.inode);
        let kind = new.kind();
        let mut found = Vec::new();
        if old.kind() != kind {
            found.push(Difference::Kind);
        } else {
            match kind {
                Some(Kind::File) => {
                    if before.size != now.size {
                        found.extend([Difference::Content, Difference::Size]);
                    } else if !self.has_same_contents(nodes)? {
                        found.push(Difference::Content);
                    }
                }
                Some(Kind::Link)
                    if self.trees.earlier.link(old)? != self.trees.later.link(new)? =>
                {
                    found.push(Difference::Target);
                }
                Some(Kind::CharDevice | Kind::BlockDevice) if old.device() != new.device() => {
                    found.push(Difference::Device);
                }
                _ => {}
            }
        }
        if old.permissions() != new.permissions() {
            found.push(Difference::Mode);
        }
        if (before.uid, before.gid) != (now.uid, now.gid) {
            found.push(Difference::Owner);
        }
        if (before.mtime, before.mtime_nsec) != (now.mtime, now.mtime_nsec) {
            found.push(Difference::Mtime);
        }
        if self.trees.earlier.attributes(old)? != self.trees.later.attributes(new)? {
            found.push(Difference::Attributes);
        }
        Ok(found)
    }

    /// Whether two files of one size have the same contents.
    fn has_same_contents(&mut self, nodes: &[Node; 2]) -> Result<bool> {
        let key = (nodes[0].number, nodes[1].number);
        if let Some(known) = self.contents.get(&key) {
            return Ok(*known);
        }
        let (is_same, was_read) = self.trees.compare_contents(nodes)?;
        if was_read && nodes.iter().any(|it| it.inode.links_count > 1) {
            self.contents.insert(key, is_same);
        }
        Ok(is_same)
    }
}

impl Trees<'_> {
    /// Where a directory of the earlier state is in the later one. `None` where it is in only one of them.
    fn moved(&self, number: u32, earlier: &Node) -> Result<Option<Vec<u8>>> {
        let is_directory = |node: &Node| node.kind() == Some(Kind::Directory);
        let Ok(later) = self.later.node(number) else {
            // Nothing was ever there.
            return Ok(None);
        };
        let are_linked = earlier.inode.links_count > 0 && later.inode.links_count > 0;
        if !are_linked || !is_directory(earlier) || !is_same(earlier, &later) {
            return Ok(None);
        }
        match self.earlier.path_of(number)? {
            Some(_) => self.later.path_of(number),
            None => Ok(None),
        }
    }

    /// Whether two files of one size have the same contents, and whether any had to be read for that.
    fn compare_contents(&self, nodes: &[Node; 2]) -> Result<(bool, bool)> {
        let sides = [
            Source::of(self.earlier, &nodes[0])?,
            Source::of(self.later, &nodes[1])?,
        ];
        let size = nodes[0].inode.size;
        let mut buffers = [vec![], vec![]];
        let mut was_read = false;
        let mut at = 0;
        let mut runs = [0, 0];
        while at < size {
            let [one, other] = [0, 1].map(|side| sides[side].piece(at, &mut runs[side]));
            let mut end = one.end.min(other.end).min(size);
            match (&one.place, &other.place) {
                (Place::Hole, Place::Hole) => {
                    at = end;
                    continue;
                }
                (Place::Disk(place), Place::Disk(same)) if place == same => {
                    if let Some(changed) = self.changed {
                        let until = changed.unchanged_until(*place);
                        if until > *place {
                            at = end.min(at.saturating_add(until - place));
                            continue;
                        }
                    }
                }
                _ => {}
            }
            end = end.min(at + BUFFER as u64);
            was_read = true;
            for ((side, piece), buffer) in sides.iter().zip([one, other]).zip(&mut buffers) {
                buffer.resize((end - at) as usize, 0);
                side.read(&piece, buffer)?;
            }
            if buffers[0] != buffers[1] {
                return Ok((false, true));
            }
            at = end;
        }
        Ok((true, was_read))
    }
}

/// The contents of a file.
struct Source<'a> {
    file_system: &'a FileSystem,
    /// Those that are stored in the inode.
    inline: Option<Vec<u8>>,
    runs: Vec<DataRun>,
}

/// What a file has from an offset on, and up to which.
struct Piece {
    place: Place,
    end: u64,
}

enum Place {
    Hole,
    /// On the device.
    Disk(u64),
    /// In the inode, from an offset on.
    Inode(u64),
}

impl<'a> Source<'a> {
    fn of(file_system: &'a FileSystem, node: &Node) -> Result<Source<'a>> {
        let inline = file_system.inline_data(node)?;
        Ok(Source {
            file_system,
            runs: file_system.data(node)?,
            inline,
        })
    }

    /// `run` is the number of a run that does not begin behind the offset.
    fn piece(&self, at: u64, run: &mut usize) -> Piece {
        let inline = self.inline.as_ref().map_or(0, Vec::len) as u64;
        if at < inline {
            return Piece {
                place: Place::Inode(at),
                end: inline,
            };
        }
        let is_before = |it: &DataRun| it.offset + it.len <= at;
        while self.runs.get(*run).is_some_and(is_before) {
            *run += 1;
        }
        match self.runs.get(*run) {
            Some(run) if run.offset <= at => Piece {
                place: Place::Disk(run.at + (at - run.offset)),
                end: run.offset + run.len,
            },
            next => Piece {
                place: Place::Hole,
                end: next.map_or(u64::MAX, |next| next.offset),
            },
        }
    }

    fn read(&self, piece: &Piece, buffer: &mut [u8]) -> Result<()> {
        match piece.place {
            Place::Hole => buffer.fill(0),
            Place::Disk(at) => self.file_system.read_at(at, buffer)?,
            Place::Inode(at) => {
                let inline = self.inline.as_deref().unwrap_or_default();
                let rest = inline.get(at as usize..).unwrap_or_default();
                let len = rest.len().min(buffer.len());
                buffer[..len].copy_from_slice(&rest[..len]);
            }
        }
        Ok(())
    }
}

/// Whether a file is the same one, whatever it is named and whatever it has: of one kind, with one number, and made at the
/// same time. Programs that make file systems may leave the time and the generation out; the rest has to tell then.
fn is_same(earlier: &Node, later: &Node) -> bool {
    let (one, other) = (&earlier.inode, &later.inode);
    let made = |node: &Node| {
        let inode = &node.inode;
        (inode.generation, inode.crtime, inode.crtime_nsec)
    };
    let is_known = made(earlier) != (0, 0, 0);
    earlier.number == later.number
        && earlier.kind() == later.kind()
        && made(earlier) == made(later)
        && (is_known || (one.size, one.mtime) == (other.size, other.mtime))
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    [directory, b"/", name].concat()
}

/// The name of a directory; that of the root is empty until here.
fn root(path: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        b"/".to_vec()
    } else {
        path.to_vec()
    }
}

fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}
