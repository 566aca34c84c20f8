//! Changing the format from version 1 to version 2: what `ploop_change_fmt_version` does.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::OfflineImage;
use super::change::OfflineChange;
use crate::image::file;
use crate::image::header::Header;
use crate::image::recovery::upgrade::{copy_data, set_header};
use crate::image::table::{PAGE, Page, Table, entry_offset};
use crate::{Error, FormatVersion, Result, durability, side_files};

impl OfflineImage {
    /// Changes all deltas of the image to format v2 (`ploop_change_fmt_version`), which can hold more than 2 TiB. Only
    /// the tables are written, not the data. Does nothing where they have it already.
    ///
    /// Old kernels know v1 only; Virtuozzo 7 upgrades images when it mounts them, and 9 knows v2 only.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use ploop::image::{self, CreateOptions, Header};
    /// use ploop::{FormatVersion, Size};
    ///
    /// let file = dir.path().join("root.hds");
    /// let options = CreateOptions::new().format(FormatVersion::V1);
    /// let mut image = image::create(&file, Size::from_mib(64), &options)?;
    /// image.upgrade()?;
    /// assert_eq!(Header::read(&file)?.version, FormatVersion::V2);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Corrupt`](crate::ErrorKind::Corrupt) where a delta is damaged;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where the file of a delta has several names;
    /// [`NoSpace`](crate::ErrorKind::NoSpace) for the copies of the tables; and those that [all
    /// operations](OfflineImage#what-is-refused) have. After an error or an interruption, the deltas are marked and the
    /// copies of their tables (`.idx`) are beside them; then the image cannot be read until the next operation, of this
    /// type or of libploop, takes the change back.
    pub fn upgrade(&mut self) -> Result<()> {
        let mut change = OfflineChange::begin(self, "change the format version of")?;
        change.merge_temporary_snapshots(&mut |_| {})?;
        let operation = change.operation();
        let raw_base = |image| change.is_raw_base(image);
        let images = change.descriptor.images.iter();
        let images: Vec<_> = images.filter(|image| !raw_base(image)).collect();
        change.require_sound(images.iter().copied())?;
        let mut deltas = Vec::new();
        for image in images {
            let header = Header::read(&image.file).map_err(|error| error.during(operation))?;
            if header.version == FormatVersion::V1 {
                change.require_own_file(image)?;
                deltas.push((&*image.file, header));
            }
        }
        if deltas.is_empty() {
            return Ok(());
        }
        // libploop's own order: it looks at the base alone.
        let base = change.descriptor.base().map(|base| &*base.file);
        deltas.sort_by_key(|(file, _)| Some(*file) != base);
        let copies: Vec<PathBuf> = deltas
            .iter()
            .map(|(file, _)| side_files::table_copy(file))
            .collect();
        let _record = change.record(copies.iter().map(PathBuf::as_path))?;
        for ((file, header), copy) in deltas.iter().zip(&copies) {
            if let Err(error) = save_table(file, header, copy) {
                for copy in &copies {
                    let _ = fs::remove_file(copy);
                }
                let what = "the copy of the table cannot be made";
                return Err(Error::io(operation, what, error).with_path(copy));
            }
        }
        let directories = copies.iter().map(|copy| side_files::directory_of(copy));
        durability::sync_directories(operation, directories)?;
        for (file, header) in &deltas {
            set_header(operation, file, header.clone(), true)?;
        }
        for (file, header) in &deltas {
            convert_table(operation, file, header)?;
        }
        for (file, header) in deltas {
            let mut header = header;
            header.version = FormatVersion::V2;
            set_header(operation, file, header, false)?;
        }
        change.remove_files(&copies)
    }
}

/// Copies the header and the table.
fn save_table(delta: &Path, header: &Header, copy: &Path) -> std::io::Result<()> {
    match fs::remove_file(copy) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let from = File::open(delta)?;
    let to = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(copy)?;
    to.set_len(header.data_start())?;
    copy_data(&from, &to, 0, header.data_start())?;
    to.sync_all()
}

/// Makes cluster numbers of the table's sector numbers, and syncs them.
fn convert_table(operation: &'static str, path: &Path, header: &Header) -> Result<()> {
    let failed = |error: Error| error.during(operation).with_path(path);
    let (reader, _) = file::open(operation, path).map_err(failed)?;
    let table = Table::new(header.entries());
    let written = |error| {
        let what = "the table cannot be written";
        Error::io(operation, what, error).with_path(path)
    };
    let writer = File::options().write(true).open(path).map_err(written)?;
    for number in 0..header.entries().div_ceil(PAGE) {
        let page = table.page_uncached(&reader, number).map_err(failed)?;
        let Page::Entries(entries) = page else {
            continue;
        };
        let entries = entries.iter();
        let bytes = entries.flat_map(|entry| (entry / header.cluster.sectors()).to_le_bytes());
        let bytes: Vec<u8> = bytes.collect();
        writer
            .write_all_at(&bytes, entry_offset(number * PAGE))
            .map_err(written)?;
    }
    writer.sync_data().map_err(written)
}
