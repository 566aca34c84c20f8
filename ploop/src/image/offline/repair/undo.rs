//! Undo files: written before a repair, and put back by [`OfflineImage::undo_repair`].

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use super::delta::FileChange;
use super::steps::{self, Changes};
use super::undo_format::{
    CHECKSUM, CONTENT, Content, CopiedCluster, ReadError, Undo, UndoFile, Writer, read,
};
use crate::image::atomic_file::AtomicFile;
use crate::image::descriptor;
use crate::image::header::at;
use crate::image::holes;
use crate::image::offline::OfflineImage;
use crate::image::write::WritableDelta;
use crate::lock::Purpose;
use crate::side_files::directory_of;
use crate::{Error, ErrorKind, Result, durability, paths, side_files, sysfs, trust};

/// Writes the undo file of changes that have not begun, and syncs it.
pub(super) fn write(
    operation: &'static str,
    target: &Path,
    changes: &Changes,
    report: &mut dyn FnMut(u64),
) -> Result<()> {
    let target = paths::of_new_file(operation, target)?;
    paths::require_no_side_file_name(operation, &target)?;
    let undo = AtomicFile::create(operation, &target)?;
    let failed = |error: io::Error| {
        Error::io(operation, "the undo file cannot be written", error).with_path(&target)
    };
    let mut writer = Writer::new(BufWriter::new(undo.file())).map_err(failed)?;
    let text = changes.new_descriptor.as_ref().map(String::as_bytes);
    writer
        .descriptor(
            &changes.old_descriptor,
            text.unwrap_or(&changes.old_descriptor),
        )
        .map_err(failed)?;
    for change in &changes.files {
        let file = steps::open(operation, change)?;
        save_change(&mut writer, change, &file, report).map_err(failed)?;
    }
    for path in &changes.removed {
        save_removed(&mut writer, path, report).map_err(failed)?;
    }
    let buffer = writer.finish().map_err(failed)?;
    drop(buffer);
    undo.file().sync_all().map_err(failed)?;
    let directory = undo.dir().to_owned();
    undo.publish(false)?;
    durability::sync_directory(&directory).map_err(failed)
}

type Out<'f> = BufWriter<&'f File>;

fn save_change(
    writer: &mut Writer<Out<'_>>,
    change: &FileChange,
    file: &File,
    report: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let metadata = file.metadata()?;
    let table_end = change.table_end.min(change.old_len);
    writer.file(&UndoFile {
        inode: metadata.ino(),
        old_len: change.old_len,
        new_len: change.new_len,
        longest: change.longest.max(change.old_len),
        table_end,
        table_checksum: checksum(file, 0, table_end, &[])?,
        path: change.path.as_os_str().as_bytes().to_vec(),
        ..UndoFile::default()
    })?;
    if let Some(header) = &change.header {
        writer.change(0, &header.old, &header.new)?;
    }
    for run in change.entry_runs() {
        for part in run.chunks(CONTENT / 4) {
            let old: Vec<u8> = part.iter().flat_map(|it| it.old.to_le_bytes()).collect();
            let new: Vec<u8> = part.iter().flat_map(|it| it.new.to_le_bytes()).collect();
            writer.change(part[0].offset, &old, &new)?;
        }
    }
    for copy in &change.copies {
        // What is behind the new end is saved below.
        let end = (copy.to + change.cluster)
            .min(change.old_len)
            .min(change.new_len);
        if copy.to < end {
            save_content(writer, file, copy.to, end - copy.to, report)?;
        }
        writer.copy(&CopiedCluster {
            offset: copy.to,
            len: change.cluster,
            checksum: cluster_checksum(file, copy.from, change)?,
            entry_offset: copy.entry.offset,
            entry: copy.entry.new.to_le_bytes(),
        })?;
    }
    if change.new_len < change.old_len {
        let (start, len) = (change.new_len, change.old_len - change.new_len);
        save_data(writer, file, start, len, report)?;
    }
    Ok(())
}

fn save_removed(
    writer: &mut Writer<Out<'_>>,
    path: &Path,
    report: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    writer.file(&UndoFile {
        was_removed: true,
        inode: metadata.ino(),
        old_len: metadata.len(),
        longest: metadata.len(),
        mode: metadata.mode() & 0o7777,
        owner: metadata.uid(),
        group: metadata.gid(),
        path: path.as_os_str().as_bytes().to_vec(),
        ..UndoFile::default()
    })?;
    save_data(writer, &file, 0, metadata.len(), report)
}

/// Saves a part of a file, but for its holes.
fn save_data(
    writer: &mut Writer<Out<'_>>,
    file: &File,
    start: u64,
    len: u64,
    report: &mut dyn FnMut(u64),
) -> io::Result<()> {
    for (start, len) in holes::data(file, start, len) {
        save_content(writer, file, start, len, report)?;
    }
    Ok(())
}

fn save_content(
    writer: &mut Writer<Out<'_>>,
    file: &File,
    start: u64,
    len: u64,
    report: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let mut buffer = vec![0; CONTENT.min(len as usize)];
    let end = start + len;
    let mut at = start;
    while at < end {
        let part = buffer.len().min((end - at) as usize);
        file.read_exact_at(&mut buffer[..part], at)?;
        writer.content(at, &buffer[..part])?;
        report(part as u64);
        at += part as u64;
    }
    Ok(())
}

/// The checksum of a cluster, with zeros where the file was cut short.
fn cluster_checksum(file: &File, offset: u64, change: &FileChange) -> io::Result<u64> {
    let mut bytes = vec![0; change.cluster as usize];
    let there = change.cluster.min(change.old_len.saturating_sub(offset));
    file.read_exact_at(&mut bytes[..there as usize], offset)?;
    Ok(CHECKSUM.checksum(&bytes))
}

/// The checksum of a part of a file, with other bytes in some places, which are in ascending order.
fn checksum(file: &File, start: u64, len: u64, others: &[(u64, &[u8])]) -> io::Result<u64> {
    let mut digest = CHECKSUM.digest();
    let mut buffer = vec![0; CONTENT.min(len as usize)];
    let end = start + len;
    let mut at = start;
    let mut next = 0;
    while at < end {
        let part = buffer.len().min((end - at) as usize);
        let bytes = &mut buffer[..part];
        file.read_exact_at(bytes, at)?;
        let stop = at + part as u64;
        while let Some((offset, other)) = others.get(next).filter(|(offset, _)| *offset < stop) {
            let from = at.max(*offset);
            let to = stop.min(offset + other.len() as u64);
            if from < to {
                let target = &mut bytes[(from - at) as usize..(to - at) as usize];
                target.copy_from_slice(&other[(from - offset) as usize..(to - offset) as usize]);
            }
            if offset + other.len() as u64 > stop {
                break;
            }
            next += 1;
        }
        digest.update(bytes);
        at = stop;
    }
    Ok(digest.finalize())
}

const OPERATION: &str = "undo repair";

impl OfflineImage {
    /// Takes a repair back, finished or killed, by the [undo file](super::RepairOptions::undo) that it has written: each
    /// byte of each file is as it was before, the length of the files, the descriptor, and files that were removed.
    /// Returns the files that were changed. What a repair has done to finish an operation that was interrupted earlier
    /// is not taken back.
    ///
    /// May be repeated after it was killed itself, or the host has lost power; until then the image reads at least what it
    /// has read before the repair. The undo file stays.
    ///
    /// ```no_run
    /// use ploop::image::{OfflineImage, RepairOptions};
    ///
    /// let mut image = OfflineImage::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// image.repair(&RepairOptions::new().undo("/backup/101.undo"), |_| {})?;
    /// image.undo_repair("/backup/101.undo")?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) where the undo file is that of another image;
    /// [`Corrupt`](ErrorKind::Corrupt) where it is damaged, or none; [`Unsupported`](ErrorKind::Unsupported) where
    /// the image was changed since the repair: by a mount, by an operation, or by copying it elsewhere. Nothing is changed
    /// then. Those of the locks and of devices are as for [all operations](OfflineImage#what-is-refused).
    pub fn undo_repair(&mut self, undo: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
        let undo_path = undo.as_ref();
        let _lock = self
            .lock
            .acquire(OPERATION, Purpose::Change, false, self.timeout())?;
        let path = self.path();
        let failed = |error: io::Error| {
            Error::io(OPERATION, "the undo file cannot be read", error).with_path(undo_path)
        };
        let file = File::open(undo_path).map_err(failed)?;
        let undo = read(BufReader::new(&file)).map_err(|error| match error {
            ReadError::Io(error) => failed(error),
            ReadError::Wrong(at, what) => Error::new(ErrorKind::Corrupt, OPERATION, what)
                .with_path(undo_path)
                .with_offset(at),
        })?;
        let targets = find_targets(path, &undo, undo_path, &file)?;
        let kept = undo.files.iter().filter(|it| !it.was_removed);
        let named: Vec<PathBuf> = kept.map(UndoFile::path).collect();
        let all = || named.iter().map(PathBuf::as_path);
        trust::require_no_other_writers(OPERATION, [path, undo_path].into_iter().chain(all()))?;
        paths::require_own_side_files(OPERATION, path, all())?;
        sysfs::require_unattached(OPERATION, path, all())?;
        for (saved, target) in undo.files.iter().zip(&targets) {
            if let Some(target) = target {
                require_unchanged(saved, target)?;
            }
        }
        let changed = put_back(path, &undo, &targets, &file)?;
        durability::sync_directories(OPERATION, [directory_of(path)])?;
        Ok(changed)
    }
}

impl UndoFile {
    fn path(&self) -> PathBuf {
        std::ffi::OsString::from_vec(self.path.clone()).into()
    }
}

fn refused(kind: ErrorKind, why: &str, path: &Path) -> Error {
    Error::new(kind, OPERATION, why).with_path(path)
}

const CHANGED: &str = "it was changed since the repair, which cannot be undone any more";

/// The files that are to be changed, open for writing; `None` for one that was removed. They are those that the descriptor
/// in place names, so that a foreign undo file changes no others.
fn find_targets(
    path: &Path,
    undo: &Undo,
    undo_path: &Path,
    undo_file: &File,
) -> Result<Vec<Option<File>>> {
    let text = descriptor::text(path).map_err(|error| error.during(OPERATION).with_path(path))?;
    if let Some((old, new)) = &undo.descriptor {
        if text != *old && text != *new {
            return Err(refused(ErrorKind::Unsupported, CHANGED, path));
        }
    }
    // The old one may contradict itself, as the repair has found it.
    let named: Vec<PathBuf> = match super::read(path).map_err(|error| error.during(OPERATION))? {
        Ok((_, file, _)) => {
            let images = file.descriptor.all_images();
            images.map(|image| image.file.clone()).collect()
        }
        Err(_) => Vec::new(),
    };
    let home = directory_of(path);
    let mut targets = Vec::new();
    for saved in &undo.files {
        let file = saved.path();
        let foreign = "the undo file is that of another image";
        if saved.was_removed {
            if file.parent() != Some(home) || saved.path.ends_with(b".xml") {
                return Err(refused(ErrorKind::InvalidInput, foreign, undo_path));
            }
            let is_there = fs::symlink_metadata(&file).is_ok();
            if is_there && !is_put_back(saved, &file, undo_file) {
                let why = "another file of this name is there by now";
                return Err(refused(ErrorKind::AlreadyExists, why, &file));
            }
            targets.push(None);
            continue;
        }
        if !named.contains(&file) {
            return Err(refused(ErrorKind::InvalidInput, foreign, undo_path));
        }
        let open = WritableDelta::open_file(&file).map_err(|error| error.during(OPERATION))?;
        let metadata = open.metadata().map_err(|error| {
            Error::io(OPERATION, "the file cannot be examined", error).with_path(&file)
        })?;
        // The number of the device may be another one after the host was started anew.
        if metadata.ino() != saved.inode || !metadata.is_file() {
            let why = "this is another file than the one that was repaired";
            return Err(refused(ErrorKind::Unsupported, why, &file));
        }
        if metadata.nlink() > 1 {
            let why = "the file has several names (hard links), and would change under all of them";
            return Err(refused(ErrorKind::Unsupported, why, &file));
        }
        targets.push(Some(open));
    }
    Ok(targets)
}

/// Requires that a file is as the repair has left it, or somewhere between that and how it was.
fn require_unchanged(saved: &UndoFile, file: &File) -> Result<()> {
    let path = saved.path();
    let failed =
        |error: io::Error| Error::io(OPERATION, "the file cannot be read", error).with_path(&path);
    let changed = || Err(refused(ErrorKind::Unsupported, CHANGED, &path));
    let len = file.metadata().map_err(failed)?.len();
    if len < saved.old_len.min(saved.new_len) || len > saved.longest || len < saved.table_end {
        return changed();
    }
    for change in &saved.changes {
        let mut now = vec![0; change.old.len()];
        file.read_exact_at(&mut now, change.offset)
            .map_err(failed)?;
        let known = change.old.iter().zip(&change.new);
        if !now
            .iter()
            .zip(known)
            .all(|(now, (old, new))| now == old || now == new)
        {
            return changed();
        }
    }
    let old: Vec<(u64, &[u8])> = saved
        .changes
        .iter()
        .map(|change| (change.offset, &change.old[..]))
        .collect();
    if checksum(file, 0, saved.table_end, &old).map_err(failed)? != saved.table_checksum {
        return changed();
    }
    for copy in &saved.copies {
        let mut entry = [0; 4];
        file.read_exact_at(&mut entry, copy.entry_offset)
            .map_err(failed)?;
        if entry != copy.entry {
            continue;
        }
        if copy.offset + copy.len > len
            || checksum(file, copy.offset, copy.len, &[]).map_err(failed)? != copy.checksum
        {
            return changed();
        }
    }
    // What was added and is no copy is zero.
    let mut at = saved.old_len;
    let mut copies = saved.copies.clone();
    copies.sort_by_key(|copy| copy.offset);
    let gaps = copies
        .iter()
        .map(|copy| (copy.offset, copy.offset + copy.len))
        .chain([(len, len)]);
    for (start, end) in gaps {
        if at < start && !is_zero(file, at, start.min(len)).map_err(failed)? {
            return changed();
        }
        at = at.max(end);
    }
    Ok(())
}

fn is_zero(file: &File, start: u64, end: u64) -> io::Result<bool> {
    for (start, len) in holes::data(file, start, end.saturating_sub(start)) {
        let mut bytes = vec![0; CONTENT.min(len as usize)];
        let mut at = start;
        while at < start + len {
            let part = bytes.len().min((start + len - at) as usize);
            file.read_exact_at(&mut bytes[..part], at)?;
            if !holes::is_zero(&bytes[..part]) {
                return Ok(false);
            }
            at += part as u64;
        }
    }
    Ok(true)
}

/// Puts all back, in the opposite order of the repair: so each moment is one that a repair has, too, and leaves nothing
/// worse than it was before.
fn put_back(
    path: &Path,
    undo: &Undo,
    targets: &[Option<File>],
    source: &File,
) -> Result<Vec<PathBuf>> {
    let files = || undo.files.iter().zip(targets).rev();
    for (saved, _) in files().filter(|(_, target)| target.is_none()) {
        put_back_removed(saved, &saved.path(), source)?;
    }
    let descriptor = undo.descriptor.as_ref().filter(|(old, new)| old != new);
    if let Some((old, _)) = descriptor {
        replace(path, old).map_err(|error| {
            Error::io(OPERATION, "the old descriptor cannot be put back", error).with_path(path)
        })?;
        durability::sync_directories(OPERATION, [directory_of(path)])?;
    }
    for (saved, target) in files() {
        if let Some(target) = target {
            put_back_file(saved, target, source)
                .map_err(|error| put_back_failed(&saved.path(), error))?;
        }
    }
    let files = undo.files.iter().map(UndoFile::path);
    Ok(files.chain(descriptor.map(|_| path.to_owned())).collect())
}

/// Replaces the descriptor by bytes that need not be a text.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = side_files::rewritten(path);
    descriptor::write(&new, bytes, Some(&fs::metadata(path)?))?;
    if let Err(error) = fs::rename(&new, path) {
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    File::open(path)?.sync_all()
}

/// What was cut off comes first, so that entries can lead there again. Where clusters were copied to, the old contents come
/// last: until then entries lead there.
fn put_back_file(saved: &UndoFile, file: &File, source: &File) -> io::Result<()> {
    let (cut_off, overwritten): (Vec<Content>, Vec<Content>) = saved
        .contents
        .iter()
        .partition(|content| content.offset >= saved.new_len);
    if file.metadata()?.len() < saved.old_len {
        file.set_len(saved.old_len)?;
    }
    write_contents(&cut_off, file, source)?;
    file.sync_all()?;
    let (header, entries) = match &saved.changes[..] {
        [header, entries @ ..] if header.offset == 0 => (Some(header), entries),
        entries => (None, entries),
    };
    if let Some(header) = header {
        for field in at::MARKS {
            if let Some(bytes) = header.old.get(field.clone()) {
                file.write_all_at(bytes, field.start as u64)?;
            }
        }
        file.sync_all()?;
    }
    for change in entries.iter().rev() {
        file.write_all_at(&change.old, change.offset)?;
    }
    file.sync_all()?;
    if let Some(header) = header {
        file.write_all_at(&header.old, 0)?;
        file.sync_all()?;
    }
    write_contents(&overwritten, file, source)?;
    file.set_len(saved.old_len)?;
    file.sync_all()
}

fn write_contents(contents: &[Content], file: &File, source: &File) -> io::Result<()> {
    let mut buffer = Vec::new();
    for content in contents {
        // Not longer than a record, which was read as a whole.
        buffer.resize(content.len as usize, 0);
        source.read_exact_at(&mut buffer, content.position)?;
        file.write_all_at(&buffer, content.offset)?;
    }
    Ok(())
}

/// Whether an undo that was killed has put a removed file back already.
fn is_put_back(saved: &UndoFile, path: &Path, source: &File) -> bool {
    let compare = || -> io::Result<bool> {
        let file = File::open(path)?;
        if !side_files::is_regular_file(path) || file.metadata()?.len() != saved.old_len {
            return Ok(false);
        }
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        for content in &saved.contents {
            expected.resize(content.len as usize, 0);
            found.resize(content.len as usize, 0);
            source.read_exact_at(&mut expected, content.position)?;
            file.read_exact_at(&mut found, content.offset)?;
            if expected != found {
                return Ok(false);
            }
        }
        Ok(true)
    };
    compare().unwrap_or(false)
}

fn put_back_removed(saved: &UndoFile, path: &Path, source: &File) -> Result<()> {
    if is_put_back(saved, path, source) {
        return Ok(());
    }
    let new = AtomicFile::create(OPERATION, path)?;
    let write = || -> io::Result<()> {
        let file = new.file();
        file.set_len(saved.old_len)?;
        write_contents(&saved.contents, file, source)?;
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (saved.owner, saved.group) {
            fchown(file, Some(saved.owner), Some(saved.group))?;
        }
        file.set_permissions(fs::Permissions::from_mode(saved.mode & 0o7777))?;
        file.sync_all()
    };
    write().map_err(|error| put_back_failed(path, error))?;
    new.publish(false)
}

fn put_back_failed(path: &Path, error: io::Error) -> Error {
    Error::io(OPERATION, "the file cannot be put back", error).with_path(path)
}
