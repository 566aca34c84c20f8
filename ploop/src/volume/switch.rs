//! Going back to the state of another volume.

use std::path::{Path, PathBuf};

use super::make::{new_delta, upon};
use super::{Volume, call, layout, read, relation, require_standable};
use crate::change::Change;
use crate::ffi::{Call, descriptor_form};
use crate::image::recovery::files::FileRecord;
use crate::image::{Header, Volume as Relation};
use crate::parents::Parents;
use crate::{ErrorKind, Guid, Result, paths, side_files};

const SWITCH: Call = call("switch the volume");

impl Volume {
    /// Gives the volume the state of a read-only one, upon which it stands from then on (`ploop_volume_switch`): it gets a
    /// new, empty delta, and its own ones are removed **with all that was written to them**, its snapshots included.
    ///
    /// No device may have it, and no volume stand upon it. Needs root and no driver; takes a moment.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) where the volume has others upon it, and where the other
    /// one is not read-only or is the volume itself, [`Busy`](ErrorKind::Busy) while it is attached,
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) where another volume with a directory of this name stands upon the other
    /// one; [`Unsupported`](ErrorKind::Unsupported) for a volume that is read-only, and where a delta belongs to another image, too. After an error the
    /// volume is as it was, or it is switched, and some of its old deltas are left.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path();
    /// # use ploop::volume::{Volume, VolumePlace};
    /// # if !ploop::capabilities().has(ploop::Feature::Volumes) { return Ok(()) }
    /// # let param = ploop::CreateParam::new(dir.join("web/image.hds"), ploop::Size::from_mib(64));
    /// # let mut web = Volume::create(&param.fs(None))?;
    /// let monday = web.snapshot(&VolumePlace::new(dir.join("monday")))?;
    /// // … the volume is used …
    /// web.switch_to(&monday)?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn switch_to(&mut self, other: &Volume) -> Result<()> {
        let operation = SWITCH.name;
        let _lock = self.begin(operation)?;
        let own = self.directory().to_owned();
        let change = Change::begin(&self.image.image, &SWITCH)?;
        relation(operation, change.path(), &change.descriptor)?;
        require_standable(&change)?;
        if !layout::children(operation, &own)?.is_empty() {
            return change.refuse(
                ErrorKind::InvalidInput,
                "others stand upon the volume, and would change with it",
            );
        }
        let old = change.descriptor.clone();
        let guids: Vec<Guid> = old.images.iter().map(|image| image.guid).collect();
        if let Some(device) = change.devices_with(&guids).next() {
            return change.refuse_attached(device, "it is about to lose what it has");
        }
        change.require_of_no_other_image(&guids)?;
        for image in &old.images {
            change.require_delta_header(Some(image))?;
        }
        let to = other.directory();
        let below = read(operation, to)?;
        if to == own || !relation(operation, other.image.path(), &below)?.read_only {
            return change.refuse(
                ErrorKind::InvalidInput,
                "a volume goes to the state of another one that is read-only; make a snapshot of that",
            );
        }
        let header = below.top_image().map(|it| Header::read(&it.file));
        let Some(header) = header.transpose().map_err(|it| it.during(operation))? else {
            return change.refuse(ErrorKind::Corrupt, "the other volume has no top");
        };
        let file = new_delta(&own);
        let relation = Relation {
            parent: Some(to.to_owned()),
            snapshot: Some(below.top),
            read_only: false,
        };
        let mut new = upon(&below, relation, below.top, file.clone(), &header);
        new.max_delta_size = old.max_delta_size;
        let (form, path) = (descriptor_form(), change.path());
        let _to = Parents::lock(operation, form, path, &new, change.timeout(), true)?;
        let old_files: Vec<PathBuf> = old.images.iter().map(|it| it.file.clone()).collect();

        let moves = || old.stands_upon().into_iter().chain([to]);
        for other in moves() {
            layout::register_move(operation, &own, other)?;
        }
        layout::register(operation, to, &own)?;
        // What is not needed after an interruption, whichever descriptor is there.
        let files = old_files.iter().map(PathBuf::as_path).chain([&*file]);
        let record = FileRecord::make(operation, path, files)?;
        layout::make_delta(operation, &file, &header)?;
        change.replace_descriptor(&new)?;
        if let Some(above) = old.stands_upon().filter(|above| *above != to) {
            layout::unregister(operation, above, &own)?;
        }
        for other in moves() {
            layout::unregister(operation, &own, other)?;
        }
        for file in &old_files {
            layout::remove_file(operation, file)?;
        }
        drop(record);
        for file in old_files.iter().chain([&file]) {
            side_files::remove_statistics(file);
        }
        crate::durability::sync_directories(
            operation,
            old_files
                .iter()
                .map(|file| -> &Path { paths::directory_of(file) }),
        )
    }
}
