//! `diff`: what changed between two states, of the disk or of its files.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use ploop::Size;
use ploop::image::Disk;
use serde::Serialize;

use crate::changed_parts::ChangedParts;
use crate::cli::Diff;
use crate::file_changes::{self, Difference, FileChange, Found, Status, Trees};
use crate::file_system::{FileSystem, guarded};
use crate::list::{FileState, printable};
use crate::long_list::{LongTable, print_json};
use crate::output::{Failure, Output, Result};
use crate::source::Source;

pub(crate) fn run(diff: &Diff, output: &Output) -> Result {
    let source = Source::find(&diff.source)?;
    let earlier = source.open(Some(diff.from), diff.in_use)?;
    let later = source.open(diff.to, diff.in_use)?;
    if diff.files {
        return guarded(|| files(diff, &earlier, &later, output));
    }
    let changes = later.changes_since(&earlier);
    if output.is_json() {
        print_json(changes.map(|change| Ok(change?)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = LongTable::new(output, ["OFFSET", "LENGTH"], &[0, 1]);
    let mut total = Size::from_bytes(0);
    for change in changes {
        let change = change?;
        total += Size::from_bytes(change.len);
        table.push([change.offset.to_string(), change.len.to_string()])?;
    }
    if table.is_empty() {
        output.line("The two states are equal.")?;
        return Ok(ExitCode::SUCCESS);
    }
    table.finish()?;
    output.line(format_args!("{total:.2} changed"))?;
    Ok(ExitCode::SUCCESS)
}

/// `diff --files`.
fn files(diff: &Diff, earlier: &Disk, later: &Disk, output: &Output) -> Result {
    let open = |disk: &Disk, state: &str| {
        FileSystem::of_disk(disk, diff.partition)
            .map_err(|failure| Failure::Request(format!("in the {state} state: {failure}")))
    };
    let [before, now] = [open(earlier, "earlier")?, open(later, "later")?];
    let changed = changed_parts(&before, &now, earlier, later)?;
    let Found { changes, encrypted } = match &changed {
        Some(changed) if changed.is_empty() => Found::default(),
        changed => file_changes::find(&Trees {
            earlier: &before,
            later: &now,
            changed: changed.as_ref(),
        })?,
    };
    if output.is_json() {
        let changes = changes.iter().map(|it| entry(it, &before, &now));
        let changes: Vec<Entry> = changes.collect::<Result<_>>()?;
        output.json(&changes)?;
    } else {
        changes.iter().try_for_each(|it| output.line(line(it)))?;
    }
    for path in &encrypted {
        output.warning(format_args!(
            "{}: the names in this directory are encrypted, and the key is not in the image: what is in it was not compared",
            printable(&text(path))
        ));
    }
    Ok(match encrypted.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// In which parts the two file systems differ; `None` where one of them lies elsewhere on the disk.
fn changed_parts(
    before: &FileSystem,
    now: &FileSystem,
    earlier: &Disk,
    later: &Disk,
) -> Result<Option<ChangedParts>> {
    let offset = now.offset;
    if before.offset != offset {
        return Ok(None);
    }
    let mut changed = ChangedParts::default();
    for extent in later.changes_since(earlier) {
        let extent = extent?;
        let end = extent.offset + extent.len;
        if end > offset {
            changed.push(extent.offset.saturating_sub(offset)..end - offset);
        }
    }
    // The journals change what the blocks have.
    changed.extend(before.replayed()?);
    changed.extend(now.replayed()?);
    Ok(Some(changed))
}

/// An element of what `diff --files --json` prints.
#[derive(Serialize)]
struct Entry {
    status: &'static str,
    /// The later path; of a removed file, the earlier one. Bytes that are not UTF-8 are replaced.
    path: String,
    /// The earlier path, where it was another one.
    from: Option<String>,
    changes: Vec<&'static str>,
    /// Null for an added file.
    before: Option<FileState>,
    /// Null for a removed file.
    after: Option<FileState>,
}

fn entry(change: &FileChange, before: &FileSystem, now: &FileSystem) -> Result<Entry> {
    let from = match (&change.earlier, &change.later) {
        (Some((from, _)), Some((to, _))) if from != to => Some(text(from)),
        _ => None,
    };
    let states: [Result<_>; 2] =
        [(before, &change.earlier), (now, &change.later)].map(|(file_system, name)| {
            let node = name.as_ref().map(|(_, number)| file_system.node(*number));
            Ok(node.transpose()?.as_ref().map(FileState::of))
        });
    let [before, after] = states;
    Ok(Entry {
        status: match change.status {
            Status::Added => "added",
            Status::Removed => "removed",
            Status::Moved => "moved",
            Status::Changed => "changed",
            Status::Retyped => "retyped",
        },
        path: text(change.path()),
        from,
        changes: change.differences.iter().map(|it| word(*it)).collect(),
        before: before?,
        after: after?,
    })
}

/// As `git diff --name-status` has it, and in what the file differs.
fn line(change: &FileChange) -> String {
    let path = printable(&text(change.path()));
    let mut line = match (change.status, &change.earlier) {
        (Status::Moved, Some((from, _))) => format!("R\t{}\t{path}", printable(&text(from))),
        (Status::Moved, None) | (Status::Added, _) => format!("A\t{path}"),
        (Status::Removed, _) => format!("D\t{path}"),
        (Status::Changed, _) => format!("M\t{path}"),
        (Status::Retyped, _) => format!("T\t{path}"),
    };
    let words: Vec<&str> = change.differences.iter().map(|it| word(*it)).collect();
    if !words.is_empty() {
        line += &format!("\t{}", words.join(","));
    }
    line
}

fn word(difference: Difference) -> &'static str {
    match difference {
        Difference::Kind => "type",
        Difference::Content => "content",
        Difference::Target => "target",
        Difference::Device => "device",
        Difference::Size => "size",
        Difference::Mode => "mode",
        Difference::Owner => "owner",
        Difference::Mtime => "mtime",
        Difference::Attributes => "xattrs",
    }
}

fn text(path: &[u8]) -> String {
    Path::new(OsStr::from_bytes(path)).display().to_string()
}
