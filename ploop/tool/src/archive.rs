//! `tar`: an archive of the file system inside, with all that belongs to its files.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use fs_ext4::acl::{AclEntry, AclTag};
use tar::{Builder, EntryType, Header};

use crate::cli::Tar;
use crate::file_system::{Contents, DataRun, FileSystem, Kind, Node, Visited};
use crate::output::{Failure, Result, raw_stdout};

/// The buffer of the output, and the pieces in which files are read.
const BUFFER: usize = 1 << 20;
/// What is in an archive begins at a multiple of this.
const BLOCK: u64 = 512;
/// Less than this in holes is written as zeros: the map of a sparse file takes a block, too.
const MIN_HOLES: u64 = 64 << 10;
/// The largest size that a header holds, in octal.
const MAX_OCTAL_SIZE: u64 = 0o777_7777_7777;
const MAX_OCTAL_ID: u32 = 0o777_7777;

pub(crate) fn run(tar: &Tar) -> Result {
    let file_system = FileSystem::open(&tar.file_system)?;
    let out = match &tar.output {
        None => raw_stdout()?,
        Some(path) => File::create_new(path).map_err(|error| {
            Failure::Request(format!("{} cannot be made: {error}", path.display()))
        })?,
    };
    let mut archive = Archive {
        file_system: &file_system,
        builder: Builder::new(BufWriter::with_capacity(BUFFER, out)),
        visited: Visited::default(),
        links: HashMap::new(),
        buffer: vec![0; BUFFER],
    };
    let root = vec![PathBuf::from("/")];
    let paths = if tar.files.is_empty() {
        &root
    } else {
        &tar.files
    };
    let result = paths.iter().try_for_each(|path| archive.add_all(path));
    let result = result.and_then(|()| {
        let mut out = archive.builder.into_inner()?;
        out.flush()?;
        Ok(())
    });
    match (result, &tar.output) {
        (Ok(()), _) => Ok(ExitCode::SUCCESS),
        (Err(failure), None) => Err(failure),
        (Err(failure), Some(path)) => {
            // Half an archive is taken for a whole one.
            let _ = std::fs::remove_file(path);
            Err(failure)
        }
    }
}

struct Archive<'a, W: Write> {
    file_system: &'a FileSystem,
    builder: Builder<W>,
    visited: Visited,
    /// The first name of each file that has several.
    links: HashMap<u32, Vec<u8>>,
    /// For the contents of files.
    buffer: Vec<u8>,
}

impl<W: Write> Archive<'_, W> {
    /// The file system decides how deep it is, so this does not recurse.
    fn add_all(&mut self, path: &Path) -> Result<()> {
        let node = self.file_system.find(path, false)?;
        let mut name = b"./".to_vec();
        let relative = path.strip_prefix("/").unwrap_or(path);
        name.extend_from_slice(relative.as_os_str().as_bytes());
        while name.len() > 2 && name.ends_with(b"/") {
            name.pop();
        }
        let mut left = vec![(name, node.number)];
        while let Some((name, number)) = left.pop() {
            let node = self.file_system.node(number)?;
            let is_directory = node.kind() == Some(Kind::Directory);
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
                return entry.write(&mut self.builder, std::io::empty());
            }
            self.links.insert(node.number, name.to_vec());
        }
        let attributes = self.file_system.attributes(node)?;
        for (name, value) in &attributes.extended {
            entry.extend(&format!("SCHILY.xattr.{name}"), value);
        }
        for (key, list) in [
            ("SCHILY.acl.access", &attributes.access),
            ("SCHILY.acl.default", &attributes.default),
        ] {
            if !list.is_empty() {
                entry.extend(key, acl_text(list).as_bytes());
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
            Kind::Socket => return Ok(()),
        }
        entry.write(&mut self.builder, std::io::empty())
    }

    fn add_file(&mut self, mut entry: Entry, node: &Node) -> Result<()> {
        let size = node.inode.size;
        entry.header.set_entry_type(EntryType::Regular);
        if let Some(data) = self.file_system.inline_data(node)? {
            let zeros = std::io::repeat(0).take(size - (data.len() as u64).min(size));
            entry.set_size(size);
            return entry.write(&mut self.builder, data.chain(zeros));
        }
        let runs = self.file_system.data(node)?;
        let stored: u64 = runs.iter().map(|run| run.len).sum();
        let is_sparse = size - stored >= MIN_HOLES;
        let map = match is_sparse {
            true => sparse_map(&runs, size),
            false => Vec::new(),
        };
        let mut contents = Contents::new(self.file_system, &runs, 0..size);
        contents.with_holes = !is_sparse;
        let len = match is_sparse {
            true => map.len() as u64 + stored,
            false => size,
        };
        match is_sparse {
            true => entry.set_sparse(size, len),
            false => entry.set_size(len),
        }
        entry.write(&mut self.builder, std::io::empty())?;
        self.write_contents(&map, contents, len)
    }

    /// Writes what follows the header of a file. The builder would do it in pieces of 8 KiB; pieces as large as the
    /// buffer of the output are not copied there.
    fn write_contents(&mut self, map: &[u8], mut contents: Contents<'_>, len: u64) -> Result<()> {
        let out = self.builder.get_mut();
        out.write_all(map)?;
        let mut written = map.len() as u64;
        loop {
            match contents.read_part(&mut self.buffer)? {
                0 => break,
                part => {
                    out.write_all(&self.buffer[..part])?;
                    written += part as u64;
                }
            }
        }
        // Whoever reads the archive goes by the header.
        if written != len {
            return Err(Failure::Request(format!(
                "a file has {written} bytes of data and should have {len}, so the file system is damaged"
            )));
        }
        let rest = written.next_multiple_of(BLOCK) - written;
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
    extensions: Vec<(String, Vec<u8>)>,
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
                entry.extend(key, id.to_string().as_bytes());
            }
        }
        if inode.mtime_nsec != 0 || inode.mtime < 0 {
            entry.extend("mtime", decimal(inode.mtime, inode.mtime_nsec).as_bytes());
        }
        entry
    }

    fn extend(&mut self, key: &str, value: &[u8]) {
        self.extensions.push((key.to_owned(), value.to_vec()));
    }

    fn set_size(&mut self, size: u64) {
        self.header.set_size(size);
        if size > MAX_OCTAL_SIZE {
            self.extend("size", size.to_string().as_bytes());
        }
    }

    /// `stored` is the length of the map and the data.
    fn set_sparse(&mut self, size: u64, stored: u64) {
        self.extend("GNU.sparse.major", b"1");
        self.extend("GNU.sparse.minor", b"0");
        self.extend("GNU.sparse.name", &self.name.clone());
        self.extend("GNU.sparse.realsize", size.to_string().as_bytes());
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
            self.extend("linkpath", target);
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
            self.extend("path", &name);
        }
        self.header.set_cksum();
        if !self.extensions.is_empty() {
            let extensions = self.extensions.iter();
            builder.append_pax_extensions(extensions.map(|(key, value)| (&**key, &**value)))?;
        }
        builder.append(&self.header, data)?;
        Ok(())
    }
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
    fn times_before_1970_have_their_fraction() {
        assert_eq!(decimal(0, 0), "0");
        assert_eq!(decimal(12, 340_000_000), "12.34");
        assert_eq!(decimal(-1, 0), "-1");
        // Half a second before 1970.
        assert_eq!(decimal(-1, 500_000_000), "-0.5");
        assert_eq!(decimal(-2, 1), "-1.999999999");
    }
}
