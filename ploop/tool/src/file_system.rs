//! The file system inside an image: ext2, ext3 and ext4, read without mounting it, as of what its journal has committed.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, PoisonError};

use fs_ext4::Filesystem;
use fs_ext4::acl::{self, AclEntry};
use fs_ext4::block_io::BlockDevice;
use fs_ext4::dir::{DirBlockIter, DirEntry};
use fs_ext4::error::Error as Ext4Error;
use fs_ext4::extent::{EXT4_EXT_MAX_DEPTH, EXT4_EXT_NODE_SIZE, Extent, ExtentHeader, ExtentIdx};
use fs_ext4::features::Incompat;
use fs_ext4::inode::{Inode, InodeFlags, S_IFMT};
use fs_ext4::superblock::{EXT4_MAGIC, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE};
use fs_ext4::xattr;
use fs_ext4::{jbd2, journal};
use ploop::Size;
use ploop::image::Disk;

use crate::cli::FileSystemState;
use crate::output::{Failure, Output, Result};
use crate::stored_attributes::{self, Attribute};

/// The number of the root directory.
pub(crate) const ROOT: u32 = 2;

/// A file of libploop in the root directory, which the driver does not show either: how much of the disk a balloon takes.
const BALLOON: &[u8] = b".balloon-c3a5ae3d-ce7f-43c4-a1ea-c61e2b4504e8";

/// Followed by nothing that ends: as many as the kernel follows.
const MAX_LINKS: usize = 40;

/// The pieces of a file that are kept in memory: 24 bytes each.
const MAX_RUNS: usize = 4 << 20;

/// The part of a disk that has a file system, as a device that cannot be written: the journal is replayed in memory.
struct Part {
    disk: Disk,
    offset: u64,
    size: u64,
}

impl BlockDevice for Part {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> fs_ext4::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(Ext4Error::OutOfBounds);
        }
        let read = self.disk.read_at(buffer, self.offset + offset);
        let read = read.map_err(|error| Ext4Error::Io(std::io::Error::other(error)))?;
        // A partition may end behind the disk.
        buffer[read..].fill(0);
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.size
    }
}

/// Runs what reads a file system. Whatever a stranger has put in there, it ends with a failure at worst: a panic of the
/// library becomes one.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::set_hook(Box::new(|_| {}));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    let _ = std::panic::take_hook();
    result.unwrap_or_else(|_| {
        Err(Failure::Request(
            "the file system inside is damaged, in a way that cannot be read".to_owned(),
        ))
    })
}

/// A file system that was opened.
pub(crate) struct FileSystem {
    pub(crate) library: Filesystem,
    /// Where it begins on the disk.
    pub(crate) offset: u64,
    /// With `--salvage`, the directories that have entries which cannot be read. Without, these are errors.
    lost: Option<Mutex<BTreeSet<u32>>>,
}

/// A file of it, of whatever kind.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) number: u32,
    pub(crate) inode: Inode,
    raw: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Link,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

/// A part of a file that has data: where it is in the file, and on the device. All in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataRun {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) at: u64,
}

impl Kind {
    /// As the output has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::File => "file",
            Kind::Directory => "directory",
            Kind::Link => "link",
            Kind::CharDevice => "character device",
            Kind::BlockDevice => "block device",
            Kind::Fifo => "fifo",
            Kind::Socket => "socket",
        }
    }
}

impl Node {
    pub(crate) fn kind(&self) -> Option<Kind> {
        Some(match (self.inode.mode & S_IFMT) >> 12 {
            1 => Kind::Fifo,
            2 => Kind::CharDevice,
            4 => Kind::Directory,
            6 => Kind::BlockDevice,
            8 => Kind::File,
            10 => Kind::Link,
            12 => Kind::Socket,
            _ => return None,
        })
    }

    /// The permissions, with the set-user-ID, set-group-ID and sticky bits.
    pub(crate) fn permissions(&self) -> u32 {
        u32::from(self.inode.mode & !S_IFMT)
    }

    /// Whether its contents, or the names of a directory, are encrypted (fscrypt): no key is known here.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.inode.flags & InodeFlags::ENCRYPT.bits() != 0
    }

    /// Major and minor number of a device.
    pub(crate) fn device(&self) -> (u32, u32) {
        let word = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&self.inode.block[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        // The first word has the old, 16-bit form; where it is zero, the second has the new one.
        match (word(0), word(4)) {
            (0, new) => ((new >> 8) & 0xfff, (new & 0xff) | ((new >> 12) & 0xfff00)),
            (old, _) => ((old >> 8) & 0xff, old & 0xff),
        }
    }
}

impl FileSystem {
    pub(crate) fn open(state: &FileSystemState) -> Result<FileSystem> {
        let found = FileSystem::of_disk(&state.state.open()?, state.partition)?;
        Ok(FileSystem {
            lost: state.state.salvage.then(Mutex::default),
            ..found
        })
    }

    /// Says which directories have lost entries, and whether there are any.
    pub(crate) fn warn_of_lost(&self, output: &Output) -> bool {
        let Some(lost) = &self.lost else {
            return false;
        };
        let lost = lost.lock().unwrap_or_else(PoisonError::into_inner);
        for directory in lost.iter() {
            output.warning(format_args!(
                "directory {directory} has entries that cannot be read, and are left out"
            ));
        }
        !lost.is_empty()
    }

    /// Opens the file system of the partition that was asked for, or of the only one that has any.
    pub(crate) fn of_disk(disk: &Disk, partition: Option<u32>) -> Result<FileSystem> {
        let partitions = disk.partitions()?;
        let Some(number) = partition else {
            let whole = (0, disk.size());
            let parts = partitions.iter().map(|it| (it.offset, it.size));
            // That of a place that has a file system; otherwise that of the last place.
            let mut reason: Option<Ext4Error> = None;
            let mut opened = std::iter::once(whole).chain(parts).filter_map(|part| {
                let failed = |error| {
                    if reason.as_ref().is_none_or(is_absent) {
                        reason = Some(error);
                    }
                };
                FileSystem::open_part(disk, part).map_err(failed).ok()
            });
            let found = (opened.next(), opened.next());
            drop(opened);
            return match (found, reason) {
                ((Some(only), None), _) => Ok(only),
                ((Some(_), Some(_)), _) => Err(Failure::Request(
                    "several partitions have a file system; name one with --partition".to_owned(),
                )),
                ((None, _), Some(error)) if partitions.len() == 1 || !is_absent(&error) => {
                    Err(Failure::Request(no_file_system(&error)))
                }
                ((None, _), _) => Err(Failure::Request(
                    "there is no ext2, ext3 or ext4 file system on the disk".to_owned(),
                )),
            };
        };
        let part = crate::export::partition(disk, number)?;
        FileSystem::open_part(disk, part).map_err(|error| Failure::Request(no_file_system(&error)))
    }

    /// Opens the file system of a part of a disk.
    pub(crate) fn open_part(
        disk: &Disk,
        (offset, size): (u64, Size),
    ) -> fs_ext4::Result<FileSystem> {
        let part = Part {
            disk: disk.clone(),
            offset,
            size: size.bytes(),
        };
        // One has no inodes, which the library takes for damage.
        let mut superblock = [0; SUPERBLOCK_SIZE];
        part.read_at(SUPERBLOCK_OFFSET, &mut superblock)?;
        let is_there = superblock[0x38..0x3a] == EXT4_MAGIC.to_le_bytes();
        let journal_device = Incompat::JOURNAL_DEV.bits();
        if is_there && superblock[0x60] & journal_device as u8 != 0 {
            return Err(Ext4Error::UnsupportedIncompat(journal_device));
        }
        let library = Filesystem::mount(Arc::new(part))?;
        Ok(FileSystem {
            library,
            offset,
            lost: None,
        })
    }

    pub(crate) fn node(&self, number: u32) -> Result<Node> {
        let (inode, raw) = self
            .library
            .read_inode_verified(number)
            .map_err(|error| cannot(&format!("inode {number} cannot be read"), &error))?;
        Ok(Node { number, inode, raw })
    }

    /// The file at a path, which begins at the root with or without `/`. Symbolic links are followed, the last one only
    /// if `follow` says so; they stay inside the file system.
    pub(crate) fn find(&self, path: &Path, follow: bool) -> Result<Node> {
        let missing = || {
            Failure::Request(format!(
                "{}: there is no such file in the image",
                path.display()
            ))
        };
        let mut ancestors: Vec<u32> = vec![ROOT];
        let mut rest: Vec<Vec<u8>> = names(path);
        rest.reverse();
        let mut links = 0;
        let mut node = self.node(ROOT)?;
        while let Some(name) = rest.pop() {
            if name == b".." {
                if ancestors.len() > 1 {
                    ancestors.pop();
                }
                node = self.node(ancestors.last().copied().unwrap_or(ROOT))?;
                continue;
            }
            if node.kind() != Some(Kind::Directory) {
                return Err(missing());
            }
            let entries = self.all_entries(&node)?;
            let (_, number) = entries
                .into_iter()
                .find(|(it, _)| *it == name)
                .ok_or_else(missing)?;
            let found = self.node(number)?;
            if found.kind() == Some(Kind::Link) && (follow || !rest.is_empty()) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Failure::Request(format!(
                        "{}: there are too many symbolic links on the way",
                        path.display()
                    )));
                }
                let target = self.link(&found)?;
                if target.starts_with(b"/") {
                    ancestors.truncate(1);
                    node = self.node(ROOT)?;
                }
                rest.extend(
                    names(Path::new(OsStr::from_bytes(&target)))
                        .into_iter()
                        .rev(),
                );
                continue;
            }
            if found.kind() == Some(Kind::Directory) {
                ancestors.push(number);
            }
            node = found;
        }
        Ok(node)
    }

    /// The entries of a directory but `.`, `..` and the balloon of libploop, by name. Names that cannot be are refused.
    pub(crate) fn entries(&self, directory: &Node) -> Result<Vec<(Vec<u8>, u32)>> {
        let mut found = self.all_entries(directory)?;
        found.retain(|(name, _)| name != b"." && name != b"..");
        if directory.number == ROOT {
            found.retain(|(name, _)| name != BALLOON);
        }
        found.sort();
        Ok(found)
    }

    /// The path of a directory, by the entries `..` of it and those above. `None` where they do not lead to the root, or
    /// a name on the way is encrypted.
    pub(crate) fn path_of(&self, directory: u32) -> Result<Option<Vec<u8>>> {
        let mut names = Vec::new();
        let mut seen = HashSet::new();
        let mut number = directory;
        while number != ROOT {
            let node = self.node(number)?;
            if node.kind() != Some(Kind::Directory) || !seen.insert(number) {
                return Ok(None);
            }
            let entries = self.all_entries(&node)?;
            let Some((_, parent)) = entries.into_iter().find(|(name, _)| name == b"..") else {
                return Ok(None);
            };
            let above = self.node(parent)?;
            if above.kind() != Some(Kind::Directory) || above.is_encrypted() {
                return Ok(None);
            }
            let mut entries = self.entries(&above)?.into_iter();
            let Some((name, _)) = entries.find(|(_, it)| *it == number) else {
                return Ok(None);
            };
            names.push(name);
            number = parent;
        }
        let names = names.iter().rev();
        Ok(Some(
            names.flat_map(|it| [b"/", &it[..]].concat()).collect(),
        ))
    }

    fn all_entries(&self, directory: &Node) -> Result<Vec<(Vec<u8>, u32)>> {
        let number = directory.number;
        let failed =
            |error: Ext4Error| cannot(&format!("directory {number} cannot be read"), &error);
        let mut found = Vec::new();
        let mut add = |entry: DirEntry| {
            let name = entry.name;
            if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                let name = String::from_utf8_lossy(&name);
                return self.lose_entries(
                    number,
                    Failure::Request(format!(
                        "directory {number} has an entry with the impossible name {name:?}"
                    )),
                );
            }
            found.push((name, entry.inode));
            Ok(())
        };
        if directory.inode.has_inline_data() {
            match self.library.read_dir_ino(number) {
                Ok(entries) => entries.into_iter().try_for_each(&mut add)?,
                Err(error) => self.lose_entries(number, failed(error))?,
            }
            return Ok(found);
        }
        let has_type = self.library.sb.feature_incompat & Incompat::FILETYPE.bits() != 0;
        let block = u64::from(self.library.sb.block_size());
        let mut buffer = Vec::new();
        for run in self.data(directory)? {
            for start in (0..run.len).step_by(block as usize) {
                buffer.resize(block.min(run.len - start) as usize, 0);
                let read = self.library.dev.read_at(run.at + start, &mut buffer);
                read.map_err(failed)?;
                for entry in DirBlockIter::new(&buffer, has_type) {
                    match entry {
                        Ok(entry) => add(entry)?,
                        Err(error) => {
                            // Where the next one begins is not known; in the next block it is.
                            self.lose_entries(number, failed(error))?;
                            break;
                        }
                    }
                }
            }
        }
        Ok(found)
    }

    /// Goes on without entries of a directory, where the image is salvaged.
    fn lose_entries(&self, directory: u32, failure: Failure) -> Result<()> {
        let Some(lost) = &self.lost else {
            return Err(failure);
        };
        let mut lost = lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.insert(directory);
        Ok(())
    }

    /// The target of a symbolic link.
    pub(crate) fn link(&self, link: &Node) -> Result<Vec<u8>> {
        // Of these, the library reads no long ones.
        if let Some(target) = self.inline_data(link)? {
            return Ok(target);
        }
        self.library
            .read_link(link.number)
            .map_err(|error| cannot(&format!("link {} cannot be read", link.number), &error))
    }

    /// Where a file has data, in order; between are holes. Empty for one whose data is in its inode.
    pub(crate) fn data(&self, file: &Node) -> Result<Vec<DataRun>> {
        let failed = |error: Ext4Error| {
            cannot(
                &format!("the blocks of inode {} cannot be found", file.number),
                &error,
            )
        };
        let mut runs = DataRuns {
            size: file.inode.size,
            block: u64::from(self.library.sb.block_size()),
            budget: self.library.sb.blocks_count,
            runs: Vec::new(),
        };
        let inode = &file.inode;
        let result = if inode.has_inline_data() {
            Ok(())
        } else if inode.has_extents() {
            self.extents(&inode.block, None, 0..u64::from(u32::MAX) + 1, &mut runs)
        } else {
            self.indirect_blocks(&inode.block, &mut runs)
        };
        result.map_err(failed)?;
        Ok(runs.runs)
    }

    /// Adds the extents of a node (`struct ext4_extent_header` and what follows) and of those below. Each part of the
    /// tree has a range of the file of its own, so a tree with a loop is refused.
    fn extents(
        &self,
        node: &[u8],
        depth: Option<u16>,
        range: Range<u64>,
        runs: &mut DataRuns,
    ) -> fs_ext4::Result<()> {
        const DAMAGED: Ext4Error =
            Ext4Error::CorruptExtentTree("the extents overlap or are in no order");
        let header = ExtentHeader::parse(node)?;
        if depth.is_some_and(|depth| depth != header.depth) || header.depth > EXT4_EXT_MAX_DEPTH {
            return Err(Ext4Error::CorruptExtentTree(
                "the depths do not fit together",
            ));
        }
        let entries: Vec<&[u8]> = node
            .chunks_exact(EXT4_EXT_NODE_SIZE)
            .skip(1)
            .take(header.entries.into())
            .collect();
        let mut at = range.start;
        if header.depth == 0 {
            for entry in entries {
                let extent = Extent::parse(entry)?;
                let start = u64::from(extent.logical_block);
                let end = start + u64::from(extent.length);
                if start < at || end > range.end || extent.length == 0 {
                    return Err(DAMAGED);
                }
                at = end;
                if !extent.uninitialized {
                    runs.add(start, extent.physical_block, extent.length.into())?;
                }
            }
            return Ok(());
        }
        let entries = entries.into_iter().map(ExtentIdx::parse);
        let entries = entries.collect::<fs_ext4::Result<Vec<_>>>()?;
        let starts = entries.iter().skip(1).map(|it| u64::from(it.logical_block));
        for (entry, end) in entries.iter().zip(starts.chain([range.end])) {
            let start = u64::from(entry.logical_block);
            if start < at || end <= start || end > range.end {
                return Err(DAMAGED);
            }
            at = end;
            let block = self.library.read_block(entry.leaf_block)?;
            self.extents(&block, Some(header.depth - 1), start..end, runs)?;
        }
        Ok(())
    }

    /// Adds the blocks of a file of ext2 or ext3: twelve, and three trees with one, two and three levels.
    fn indirect_blocks(&self, table: &[u8; 60], runs: &mut DataRuns) -> fs_ext4::Result<()> {
        const DIRECT: u64 = 12;
        let mut at = 0;
        for (index, pointer) in pointers(table).enumerate() {
            let level = (index as u64).saturating_sub(DIRECT - 1);
            self.indirect_block(pointer, level as u32, &mut at, runs)?;
        }
        Ok(())
    }

    /// Adds what is below a pointer, and puts `at` behind it.
    fn indirect_block(
        &self,
        pointer: u32,
        level: u32,
        at: &mut u64,
        runs: &mut DataRuns,
    ) -> fs_ext4::Result<()> {
        let per_block = runs.block / 4;
        if pointer == 0 || *at * runs.block >= runs.size {
            *at += per_block.pow(level);
            return Ok(());
        }
        if level == 0 {
            runs.add(*at, pointer.into(), 1)?;
            *at += 1;
            return Ok(());
        }
        runs.take(1)?;
        let block = self.library.read_block(pointer.into())?;
        for pointer in pointers(&block) {
            self.indirect_block(pointer, level - 1, at, runs)?;
        }
        Ok(())
    }

    /// Which parts of the device have their contents from the journal, and not from the disk. In bytes.
    pub(crate) fn replayed(&self) -> Result<Vec<Range<u64>>> {
        let failed = |error: Ext4Error| cannot("the journal cannot be read", &error);
        let block = u64::from(self.library.sb.block_size());
        let Some(journal) = jbd2::read_superblock(&self.library).map_err(failed)? else {
            return Ok(Vec::new());
        };
        let plan = journal::walk(&self.library, &journal).map_err(failed)?;
        let parts = plan.writes.iter().map(|it| {
            let start = it.fs_block.saturating_mul(block);
            start..start.saturating_add(block)
        });
        Ok(parts.collect())
    }

    /// Reads data of a file from the device.
    pub(crate) fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        let read = self.library.dev.read_at(at, buffer);
        read.map_err(|error| cannot("the data of a file cannot be read", &error))
    }

    /// The data of a file that is stored in its inode.
    pub(crate) fn inline_data(&self, file: &Node) -> Result<Option<Vec<u8>>> {
        if !file.inode.has_inline_data() {
            return Ok(None);
        }
        // In the place of the table, and then in an attribute. What a file has beyond that are zeros.
        let mut data = file.inode.block.to_vec();
        for (name, value) in self.stored_attributes(file)? {
            if name == b"system.data" {
                data.extend_from_slice(&value);
            }
        }
        data.truncate(usize::try_from(file.inode.size).unwrap_or(usize::MAX));
        Ok(Some(data))
    }

    /// The extended attributes of a file, and its access control lists, which are stored as such.
    pub(crate) fn attributes(&self, file: &Node) -> Result<Attributes> {
        let failed = |error| cannot_read_attributes(file, &error);
        let mut attributes = Attributes::default();
        for (name, value) in self.stored_attributes(file)? {
            match &*name {
                b"system.posix_acl_access" => {
                    attributes.access = acl::decode(&value).map_err(failed)?;
                }
                b"system.posix_acl_default" => {
                    attributes.default = acl::decode(&value).map_err(failed)?;
                }
                // The rest of data that is stored in the inode.
                b"system.data" => {}
                _ => attributes.extended.push((name, value)),
            }
        }
        attributes.extended.sort();
        Ok(attributes)
    }

    fn stored_attributes(&self, file: &Node) -> Result<Vec<Attribute>> {
        let attributes = match xattr::read_all_resolved(&self.library, &file.inode, &file.raw) {
            Ok(found) => Ok(found
                .into_iter()
                .map(|it| (it.name.into_bytes(), it.value))
                .collect()),
            // Any user of the container can give a file such a name.
            Err(Ext4Error::Corrupt("xattr name not utf-8")) => {
                stored_attributes::read(&self.library, &file.inode, &file.raw)
            }
            Err(error) => Err(error),
        };
        attributes.map_err(|error| cannot_read_attributes(file, &error))
    }
}

/// The parts of a file that have data, as they are found. A sound file system has no more blocks for one than it has
/// blocks.
struct DataRuns {
    size: u64,
    block: u64,
    budget: u64,
    runs: Vec<DataRun>,
}

impl DataRuns {
    fn take(&mut self, blocks: u64) -> fs_ext4::Result<()> {
        self.budget = self.budget.checked_sub(blocks).ok_or(Ext4Error::Corrupt(
            "a file has more blocks than the file system",
        ))?;
        Ok(())
    }

    fn add(&mut self, logical: u64, physical: u64, count: u64) -> fs_ext4::Result<()> {
        self.take(count)?;
        let overflow = Ext4Error::InvalidBlock(physical);
        let offset = logical * self.block;
        let at = physical.checked_mul(self.block).ok_or(overflow)?;
        let len = self.size.saturating_sub(offset).min(count * self.block);
        let is_full = self.runs.len() == MAX_RUNS;
        match self.runs.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.offset + last.len == offset && last.at + last.len == at => {
                last.len += len;
            }
            _ if is_full => {
                return Err(Ext4Error::Unsupported(
                    "a file in more than 4 million pieces",
                ));
            }
            _ => self.runs.push(DataRun { offset, len, at }),
        }
        Ok(())
    }
}

fn pointers(block: &[u8]) -> impl Iterator<Item = u32> + '_ {
    block.chunks_exact(4).map(|bytes| {
        let mut pointer = [0; 4];
        pointer.copy_from_slice(bytes);
        u32::from_le_bytes(pointer)
    })
}

/// What a file has beside its permissions.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Attributes {
    /// By name: `user.…`, `security.…`, `trusted.…`.
    pub(crate) extended: Vec<Attribute>,
    pub(crate) access: Vec<AclEntry>,
    pub(crate) default: Vec<AclEntry>,
}

/// Directories that were entered: one that is met twice has a loop in it.
#[derive(Debug, Default)]
pub(crate) struct Visited(HashSet<u32>);

impl Visited {
    pub(crate) fn enter(&mut self, directory: u32, path: &Path) -> Result<()> {
        match self.0.insert(directory) {
            true => Ok(()),
            false => Err(Failure::Request(format!(
                "{}: this directory is in two places, so the file system is damaged",
                path.display()
            ))),
        }
    }
}

fn names(path: &Path) -> Vec<Vec<u8>> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.as_bytes().to_vec()),
            Component::ParentDir => Some(b"..".to_vec()),
            _ => None,
        })
        .collect()
}

fn cannot_read_attributes(file: &Node, error: &Ext4Error) -> Failure {
    let what = format!("the attributes of inode {} cannot be read", file.number);
    cannot(&what, error)
}

fn cannot(what: &str, error: &Ext4Error) -> Failure {
    Failure::Request(format!("file system: {what}: {error}"))
}

/// Whether an error of opening says that there is no file system.
fn is_absent(error: &Ext4Error) -> bool {
    matches!(error, Ext4Error::BadMagic { .. } | Ext4Error::OutOfBounds)
}

fn no_file_system(error: &Ext4Error) -> String {
    let reason = match error {
        error if is_absent(error) => {
            return "there is no ext2, ext3 or ext4 file system on the partition".to_owned();
        }
        Ext4Error::UnsupportedIncompat(bits) if bits & Incompat::JOURNAL_DEV.bits() != 0 => {
            "it is a journal device, which has the journal of a file system elsewhere and no files"
                .to_owned()
        }
        Ext4Error::UnsupportedIncompat(bits) => {
            format!("it has features that are not supported here: incompat {bits:#x}")
        }
        Ext4Error::UnsupportedRoCompat(bits) => {
            format!("it has features that are not supported here: ro_compat {bits:#x}")
        }
        // The library knows no more than that; there are two of these, and fast commits are the usual one.
        Ext4Error::Unsupported(reason) if reason.contains("journal") => {
            "its journal has to be replayed, and has fast commits or asynchronous commits, which are not supported here; \
             export the disk, and let e2fsck replay the journal"
                .to_owned()
        }
        error => error.to_string(),
    };
    format!("the file system inside cannot be read: {reason}")
}
