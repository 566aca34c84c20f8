//! `ls`: the files of a directory, as `ls -l` shows them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::List;
use crate::file_system::{FileSystem, Kind, Node};
use crate::long_list::{LongTable, print_json};
use crate::output::{Failure, Output, Result};

/// An element of what `ls --json` prints.
#[derive(Serialize)]
struct Entry {
    /// Bytes that are not UTF-8 are replaced.
    name: String,
    #[serde(flatten)]
    state: FileState,
    /// Of a symbolic link.
    target: Option<String>,
    /// Of a device.
    device: Option<(u32, u32)>,
}

/// What a file is like, in JSON.
#[derive(Serialize)]
pub(crate) struct FileState {
    kind: &'static str,
    /// The permissions, with the set-ID and sticky bits.
    mode: u32,
    links: u16,
    uid: u32,
    gid: u32,
    size: u64,
    /// Seconds since 1970, UTC.
    mtime: i64,
    mtime_nsec: u32,
    inode: u32,
}

impl FileState {
    pub(crate) fn of(node: &Node) -> FileState {
        let inode = &node.inode;
        FileState {
            kind: node.kind().map_or("unknown", Kind::name),
            mode: node.permissions(),
            links: inode.links_count,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
            mtime: inode.mtime,
            mtime_nsec: inode.mtime_nsec,
            inode: node.number,
        }
    }
}

pub(crate) fn run(list: &List, output: &Output) -> Result {
    let file_system = FileSystem::open(&list.file_system)?;
    let root = Path::new("/").to_owned();
    let paths = if list.files.is_empty() {
        vec![root]
    } else {
        list.files.clone()
    };
    // What is not there is said before anything is printed.
    let mut nodes = Vec::new();
    for path in &paths {
        nodes.push((path, file_system.find(path, false)?));
    }
    let is_single = paths.len() == 1;
    let entries = nodes
        .into_iter()
        .flat_map(|(path, node)| entries(&file_system, path, node, is_single));
    if output.is_json() {
        print_json(entries)?;
        return Ok(status(&file_system, output));
    }
    let header = ["MODE", "LINKS", "UID", "GID", "SIZE", "MODIFIED", "NAME"];
    let mut table = LongTable::new(output, header, &[1, 2, 3, 4]);
    for entry in entries {
        table.push(row(&entry?))?;
    }
    if !table.is_empty() {
        table.finish()?;
    }
    Ok(status(&file_system, output))
}

fn status(file_system: &FileSystem, output: &Output) -> ExitCode {
    match file_system.warn_of_lost(output) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// What is listed of a path: the file, or those in a directory. Each is read when it is its turn.
fn entries<'a>(
    file_system: &'a FileSystem,
    path: &'a Path,
    node: Node,
    is_single: bool,
) -> Box<dyn Iterator<Item = Result<Entry>> + 'a> {
    if node.kind() != Some(Kind::Directory) {
        return Box::new(std::iter::once(entry(file_system, path, &node)));
    }
    if node.is_encrypted() {
        return Box::new(std::iter::once(Err(Failure::Request(format!(
            "{}: the names in this directory are encrypted, and the key is not in the image",
            path.display()
        )))));
    }
    let names = match file_system.entries(&node) {
        Ok(names) => names,
        Err(failure) => return Box::new(std::iter::once(Err(failure))),
    };
    Box::new(names.into_iter().map(move |(name, number)| {
        let node = file_system.node(number)?;
        let name = Path::new(OsStr::from_bytes(&name));
        match is_single {
            true => entry(file_system, name, &node),
            false => entry(file_system, &path.join(name), &node),
        }
    }))
}

fn entry(file_system: &FileSystem, path: &Path, node: &Node) -> Result<Entry> {
    let kind = node.kind();
    let target = match kind {
        Some(Kind::Link) if !node.is_encrypted() => {
            let target = file_system.link(node)?;
            Some(String::from_utf8_lossy(&target).into_owned())
        }
        _ => None,
    };
    Ok(Entry {
        name: path.display().to_string(),
        state: FileState::of(node),
        target,
        device: matches!(kind, Some(Kind::CharDevice | Kind::BlockDevice)).then(|| node.device()),
    })
}

fn row(entry: &Entry) -> [String; 7] {
    let state = &entry.state;
    let size = match entry.device {
        Some((major, minor)) => format!("{major}, {minor}"),
        None => state.size.to_string(),
    };
    let name = match &entry.target {
        Some(target) => format!("{} -> {}", printable(&entry.name), printable(target)),
        None => printable(&entry.name),
    };
    [
        mode_text(state),
        state.links.to_string(),
        state.uid.to_string(),
        state.gid.to_string(),
        size,
        date(state.mtime),
        name,
    ]
}

/// In UTC: the time zone of the image is not known.
fn date(seconds: i64) -> String {
    match time::OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(it) => format!(
            "{:04}-{:02}-{:02} {:02}:{:02}",
            it.year(),
            u8::from(it.month()),
            it.day(),
            it.hour(),
            it.minute()
        ),
        Err(_) => seconds.to_string(),
    }
}

/// Without control characters, which the root user of a container could use to write over the terminal.
pub(crate) fn printable(name: &str) -> String {
    name.chars()
        .flat_map(|it| match it.is_control() {
            true => it.escape_default().collect::<Vec<_>>(),
            false => vec![it],
        })
        .collect()
}

/// As `ls -l` has it: `drwxr-xr-t`.
fn mode_text(state: &FileState) -> String {
    let mode = state.mode;
    let kind = match state.kind {
        "file" => '-',
        "directory" => 'd',
        "link" => 'l',
        "character device" => 'c',
        "block device" => 'b',
        "fifo" => 'p',
        "socket" => 's',
        _ => '?',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
        });
    }
    text
}
