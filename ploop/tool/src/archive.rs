//! `tar`: an archive of the file system inside, with all that belongs to its files.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{BufWriter, Read, Write};
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fs_ext4::acl::{AclEntry, AclTag};
use tar::{Builder, EntryType, Header};
use tempfile::NamedTempFile;

use crate::cli::Tar;
use crate::contents::Contents;
use crate::file_system::{DataRun, FileSystem, Kind, Node, Visited};
use crate::list::printable;
use crate::output::{Failure, Output, Result, raw_stdout};
use crate::progress::interrupt_flag;

/// The buffer of the output.
const BUFFER: usize = 1 << 20;
/// What is in an archive begins at a multiple of this.
const BLOCK: u64 = 512;
/// Less than this in holes is written as zeros: the map of a sparse file takes a block, too.
const MIN_HOLES: u64 = 64 << 10;
/// The largest size that a header holds, in octal.
const MAX_OCTAL_SIZE: u64 = 0o777_7777_7777;
const MAX_OCTAL_ID: u32 = 0o777_7777;

pub(crate) fn run(tar: &Tar, output: &Output) -> Result {
    let file_system = FileSystem::open(&tar.file_system)?;
    let root = vec![PathBuf::from("/")];
    let paths = if tar.files.is_empty() {
        &root
    } else {
        &tar.files
    };
    // What is not there is said before anything is written.
    let mut nodes = Vec::new();
    for path in paths {
        nodes.push((path, file_system.find(path, false)?));
    }
    // As tar(1) has it.
    let named = tar.output.as_deref().filter(|it| *it != Path::new("-"));
    let (out, partial, interrupted) = match named {
        None => {
            let out = raw_stdout()?;
            tar.file_system.state.require_other_output(&out)?;
            (out, None, None)
        }
        Some(path) => {
            let partial = PartialFile::create(path)?;
            // The standard output may be waited for, so there the first signal ends the process.
            (partial.reopen()?, Some(partial), Some(interrupt_flag()?))
        }
    };
    let mut archive = Archive {
        file_system: &file_system,
        builder: ManuallyDrop::new(Builder::new(BufWriter::with_capacity(BUFFER, out))),
        visited: Visited::default(),
        links: HashMap::new(),
        output,
        interrupted,
        has_begun: false,
        is_in_data: false,
        is_complete: false,
        left_out: false,
    };
    for (path, node) in nodes {
        archive.add_all(path, node)?;
    }
    archive.finish()?;
    let left_out = archive.left_out | file_system.warn_of_lost(output);
    if let Some(partial) = partial {
        partial.publish()?;
    }
    Ok(match left_out {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// The file of an archive, which gets its name when it is complete: half an archive is taken for a whole one.
struct PartialFile<'a> {
    file: NamedTempFile,
    path: &'a Path,
}

impl PartialFile<'_> {
    fn create(path: &Path) -> Result<PartialFile<'_>> {
        let cannot = |reason: &dyn std::fmt::Display| {
            Failure::Request(format!("{} cannot be made: {reason}", path.display()))
        };
        if path.symlink_metadata().is_ok() {
            return Err(cannot(&"a file of that name is there already"));
        }
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let name = path.file_name().ok_or_else(|| cannot(&"it has no name"))?;
        let prefix = [OsStr::new("."), name, OsStr::new(".")].join(OsStr::new(""));
        let file = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".partial")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory);
        let file = file.map_err(|error| cannot(&error))?;
        Ok(PartialFile { file, path })
    }

    fn reopen(&self) -> Result<File> {
        Ok(self.file.as_file().try_clone()?)
    }

    fn publish(self) -> Result<()> {
        match self.file.persist_noclobber(self.path) {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::Request(format!(
                "{} cannot be named: {}",
                self.path.display(),
                error.error
            ))),
        }
    }
}

struct Archive<'a, W: Write> {
    file_system: &'a FileSystem,
    /// Dropped, it would complete an archive that is not complete.
    builder: ManuallyDrop<Builder<W>>,
    visited: Visited,
    /// The first name of each file that has several.
    links: HashMap<u32, Vec<u8>>,
    output: &'a Output,
    interrupted: Option<Arc<AtomicBool>>,
    has_begun: bool,
    is_in_data: bool,
    is_complete: bool,
    /// Whether something is not in the archive.
    left_out: bool,
}

impl<W: Write> Drop for Archive<'_, W> {
    /// Programs take the end of the data for the end of an archive, if it comes after a whole entry. So one that is
    /// cut short ends with the header of something that does not follow.
    fn drop(&mut self) {
        if self.is_complete || !self.has_begun {
            return;
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_size(2 * BLOCK);
        header.set_cksum();
        let is_in_data = self.is_in_data;
        let out = self.builder.get_mut();
        // It is said already that not all could be written.
        let _ = match is_in_data {
            true => out.flush(),
            false => out.write_all(header.as_bytes()).and_then(|()| out.flush()),
        };
    }
}

impl<W: Write> Archive<'_, W> {
    /// The file system decides how deep it is, so this does not recurse.
    fn add_all(&mut self, path: &Path, node: Node) -> Result<()> {
        let mut name = b"./".to_vec();
        let relative = path.strip_prefix("/").unwrap_or(path);
        name.extend_from_slice(relative.as_os_str().as_bytes());
        while name.len() > 2 && name.ends_with(b"/") {
            name.pop();
        }
        let mut left = vec![(name, node.number)];
        while let Some((name, number)) = left.pop() {
            self.require_not_interrupted()?;
            let node = self.file_system.node(number)?;
            let is_directory = node.kind() == Some(Kind::Directory);
            if node.is_encrypted() {
                self.output.warning(format_args!(
                    "{}: this is encrypted, and the key is not in the image: it is not in the archive",
                    shown(&name)
                ));
                self.left_out = true;
                continue;
            }
            if is_directory {
                self.visited
                    .enter(node.number, Path::new(OsStr::from_bytes(&name)))?;
            }
            self.add(&name, &node)?;
            if is_directory {
                for (entry, number) in self.file_system.entries(&node)?.into_iter().rev() {
                    let mut path = name.clone();
                    if !path.ends_with(b"/") {
                        path.push(b'/');
                    }
                    path.extend_from_slice(&entry);
                    left.push((path, number));
                }
            }
        }
        Ok(())
    }

    fn require_not_interrupted(&self) -> Result<()> {
        match &self.interrupted {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(Failure::Request(
                "a signal has ended this, and no archive was made".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// Writes the end of the archive.
    fn finish(&mut self) -> Result<()> {
        self.builder.finish()?;
        self.builder.get_mut().flush()?;
        self.is_complete = true;
        Ok(())
    }

    fn add(&mut self, name: &[u8], node: &Node) -> Result<()> {
        let inode = &node.inode;
        let Some(kind) = node.kind() else {
            return Err(Failure::Request(format!(
                "inode {} is of no kind of file, so the file system is damaged",
                node.number
            )));
        };
        let mut entry = Entry::new(name, node);
        if kind != Kind::Directory && inode.links_count > 1 {
            if let Some(first) = self.links.get(&node.number) {
                entry.header.set_entry_type(EntryType::Link);
                entry.set_link(&first.clone());
                return self.write(entry, std::io::empty());
            }
            self.links.insert(node.number, name.to_vec());
        }
        let attributes = self.file_system.attributes(node)?;
        for (name, value) in &attributes.extended {
            entry.extend(&attribute_key(name), value);
        }
        for (key, list) in [
            ("SCHILY.acl.access", &attributes.access),
            ("SCHILY.acl.default", &attributes.default),
        ] {
            if !list.is_empty() {
                entry.extend(key.as_bytes(), acl_text(list).as_bytes());
            }
        }
        match kind {
            Kind::File => return self.add_file(entry, node),
            Kind::Directory => {
                entry.header.set_entry_type(EntryType::Directory);
                if !entry.name.ends_with(b"/") {
                    entry.name.push(b'/');
                }
            }
            Kind::Link => {
                entry.header.set_entry_type(EntryType::Symlink);
                let target = self.file_system.link(node)?;
                entry.set_link(&target);
            }
            Kind::CharDevice | Kind::BlockDevice => {
                let (major, minor) = node.device();
                entry.header.set_entry_type(match kind {
                    Kind::CharDevice => EntryType::Char,
                    _ => EntryType::Block,
                });
                entry.header.set_device_major(major)?;
                entry.header.set_device_minor(minor)?;
            }
            Kind::Fifo => entry.header.set_entry_type(EntryType::Fifo),
            // As in GNU tar: a socket is of no use without the program that has made it.
            Kind::Socket => {
                let name = shown(name);
                self.output
                    .warning(format_args!("{name}: sockets are not in archives"));
                return Ok(());
            }
        }
        self.write(entry, std::io::empty())
    }

    fn write(&mut self, entry: Entry, data: impl Read) -> Result<()> {
        self.has_begun = true;
        entry.write(&mut self.builder, data)
    }

    fn add_file(&mut self, mut entry: Entry, node: &Node) -> Result<()> {
        let size = node.inode.size;
        entry.header.set_entry_type(EntryType::Regular);
        if let Some(data) = self.file_system.inline_data(node)? {
            let zeros = std::io::repeat(0).take(size - (data.len() as u64).min(size));
            entry.set_size(size);
            return self.write(entry, data.chain(zeros));
        }
        let runs = self.file_system.data(node)?;
        let stored: u64 = runs.iter().map(|run| run.len).sum();
        let is_sparse = size - stored >= MIN_HOLES;
        let map = match is_sparse {
            true => sparse_map(&runs, size),
            false => Vec::new(),
        };
        let contents = Contents::new(self.file_system, &runs, 0..size);
        let contents = match is_sparse {
            true => contents.without_holes(),
            false => contents,
        };
        let len = match is_sparse {
            true => map.len() as u64 + stored,
            false => size,
        };
        match is_sparse {
            true => entry.set_sparse(size, len),
            false => entry.set_size(len),
        }
        self.write(entry, std::io::empty())?;
        self.is_in_data = len != 0;
        self.write_contents(&map, contents, len)?;
        self.is_in_data = false;
        Ok(())
    }

    /// Writes what follows the header of a file. The builder would do it in pieces of 8 KiB; pieces as large as the
    /// buffer of the output are not copied there.
    fn write_contents(&mut self, map: &[u8], contents: Contents<'_>, len: u64) -> Result<()> {
        self.builder.get_mut().write_all(map)?;
        let mut written = map.len() as u64;
        contents.for_each(|_, part| {
            self.require_not_interrupted()?;
            self.builder.get_mut().write_all(part)?;
            written += part.len() as u64;
            Ok(())
        })?;
        // Whoever reads the archive goes by the header.
        if written != len {
            return Err(Failure::Request(format!(
                "a file has {written} bytes of data and should have {len}, so the file system is damaged"
            )));
        }
        let rest = written.next_multiple_of(BLOCK) - written;
        let out = self.builder.get_mut();
        out.write_all(&[0; BLOCK as usize][..rest as usize])?;
        Ok(())
    }
}

/// The map of a sparse file in the form 1.0: numbers in lines, in whole blocks.
fn sparse_map(runs: &[DataRun], size: u64) -> Vec<u8> {
    let mut map = String::new();
    // A hole at the end is a part without length.
    let tail = runs.last().is_none_or(|run| run.offset + run.len < size);
    map += &format!("{}\n", runs.len() + usize::from(tail));
    for run in runs {
        map += &format!("{}\n{}\n", run.offset, run.len);
    }
    if tail {
        map += &format!("{size}\n0\n");
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK as usize), 0);
    map
}

/// An entry of the archive: a header, and a PAX header before it for what does not fit in.
struct Entry {
    header: Header,
    name: Vec<u8>,
    /// Keys are not always UTF-8.
    extensions: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    fn new(name: &[u8], node: &Node) -> Entry {
        let inode = &node.inode;
        let mut header = Header::new_ustar();
        header.set_mode(node.permissions());
        header.set_size(0);
        if let Some(header) = header.as_ustar_mut() {
            header.set_device_major(0);
            header.set_device_minor(0);
        }
        header.set_mtime(inode.mtime.max(0).unsigned_abs());
        header.set_uid(inode.uid.min(MAX_OCTAL_ID).into());
        header.set_gid(inode.gid.min(MAX_OCTAL_ID).into());
        let mut entry = Entry {
            header,
            name: name.to_vec(),
            extensions: Vec::new(),
        };
        for (key, id) in [("uid", inode.uid), ("gid", inode.gid)] {
            if id > MAX_OCTAL_ID {
                entry.extend(key.as_bytes(), id.to_string().as_bytes());
            }
        }
        if inode.mtime_nsec != 0 || inode.mtime < 0 {
            entry.extend(b"mtime", decimal(inode.mtime, inode.mtime_nsec).as_bytes());
        }
        entry
    }

    fn extend(&mut self, key: &[u8], value: &[u8]) {
        self.extensions.push((key.to_vec(), value.to_vec()));
    }

    fn set_size(&mut self, size: u64) {
        self.header.set_size(size);
        if size > MAX_OCTAL_SIZE {
            self.extend(b"size", size.to_string().as_bytes());
        }
    }

    /// `stored` is the length of the map and the data.
    fn set_sparse(&mut self, size: u64, stored: u64) {
        self.extend(b"GNU.sparse.major", b"1");
        self.extend(b"GNU.sparse.minor", b"0");
        self.extend(b"GNU.sparse.name", &self.name.clone());
        self.extend(b"GNU.sparse.realsize", size.to_string().as_bytes());
        self.set_size(stored);
        // What a program that does not know sparse files will call it.
        let at = self
            .name
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |at| at + 1);
        let mut name = self.name[..at].to_vec();
        name.extend_from_slice(b"GNUSparseFile.0/");
        name.extend_from_slice(&self.name[at..]);
        self.name = name;
    }

    fn set_link(&mut self, target: &[u8]) {
        // Not `set_link_name`, which changes some targets.
        let fits = self.header.set_link_name_literal(target).is_ok();
        if !fits || !target.is_ascii() {
            self.extend(b"linkpath", target);
        }
    }

    fn write(mut self, builder: &mut Builder<impl Write>, data: impl Read) -> Result<()> {
        let name = self.name.clone();
        let field = &mut self.header.as_old_mut().name;
        let fits = name.len() <= field.len();
        let short = &name[..name.len().min(field.len())];
        field.fill(0);
        field[..short.len()].copy_from_slice(short);
        if !fits || !name.is_ascii() {
            self.extend(b"path", &name);
        }
        self.header.set_cksum();
        if !self.extensions.is_empty() {
            let mut records = Vec::new();
            for (key, value) in &self.extensions {
                add_record(&mut records, key, value);
            }
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.set_size(records.len() as u64);
            header.set_cksum();
            builder.append(&header, &*records)?;
        }
        builder.append(&self.header, data)?;
        Ok(())
    }
}

/// Adds a record of a PAX header: its length, the key and the value. The length counts its own digits. Not by the
/// library, which has keys in UTF-8 only.
fn add_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // A space, an equals sign and the end of the line.
    let rest = key.len() + value.len() + 3;
    let mut len = rest;
    while len.to_string().len() + rest != len {
        len = len.to_string().len() + rest;
    }
    records.extend_from_slice(len.to_string().as_bytes());
    records.extend([b" ", key, b"=", value, b"\n"].concat());
}

/// The key of an extended attribute. As GNU tar has it: the first `=` ends a key.
fn attribute_key(name: &[u8]) -> Vec<u8> {
    let mut key = b"SCHILY.xattr.".to_vec();
    for byte in name {
        match byte {
            b'=' => key.extend_from_slice(b"%3D"),
            b'%' => key.extend_from_slice(b"%25"),
            byte => key.push(*byte),
        }
    }
    key
}

fn shown(name: &[u8]) -> String {
    printable(&String::from_utf8_lossy(name))
}

/// Seconds since 1970 with their fraction.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    let nanoseconds = nanoseconds.min(999_999_999);
    let (sign, seconds, nanoseconds) = match (seconds < 0, nanoseconds) {
        (false, _) => ("", seconds.unsigned_abs(), nanoseconds),
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        // The fraction counts upwards from the second before.
        (true, some) => ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - some),
    };
    match nanoseconds {
        0 => format!("{sign}{seconds}"),
        some => {
            let digits = format!("{some:09}");
            format!("{sign}{seconds}.{}", digits.trim_end_matches('0'))
        }
    }
}

/// As `getfacl` shows it, with numbers for users and groups.
fn acl_text(entries: &[AclEntry]) -> String {
    let lines: Vec<String> = entries
        .iter()
        .map(|entry| {
            let id = entry.id.map(|id| id.to_string()).unwrap_or_default();
            let who = match entry.tag {
                AclTag::UserObj | AclTag::User => "user",
                AclTag::GroupObj | AclTag::Group => "group",
                AclTag::Mask => "mask",
                AclTag::Other => "other",
            };
            let letter = |bit, letter| if entry.perm & bit != 0 { letter } else { '-' };
            let (r, w, x) = (letter(4, 'r'), letter(2, 'w'), letter(1, 'x'));
            format!("{who}:{id}:{r}{w}{x}")
        })
        .collect();
    lines.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_record_counts_itself() {
        for len in 0..1100 {
            let mut records = Vec::new();
            add_record(&mut records, b"k", &vec![b'v'; len]);
            let digits = records.iter().position(|it| *it == b' ').unwrap();
            let said = std::str::from_utf8(&records[..digits]).unwrap();
            assert_eq!(said, records.len().to_string());
        }
    }

    #[test]
    fn times_before_1970_have_their_fraction() {
        assert_eq!(decimal(0, 0), "0");
        assert_eq!(decimal(12, 340_000_000), "12.34");
        assert_eq!(decimal(-1, 0), "-1");
        // Half a second before 1970.
        assert_eq!(decimal(-1, 500_000_000), "-0.5");
        assert_eq!(decimal(-2, 1), "-1.999999999");
    }
}
