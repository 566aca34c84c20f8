//! Changing how an image stores its clusters: what `ploop_convert_image` does, and back from raw.

use std::fs;

use super::OfflineImage;
use super::change::OfflineChange;
use super::delta::NewDelta;
use super::import::{Importer, allocate_all, require_no_header};
use super::size::whole_clusters;
use super::target::Target;
use crate::image::descriptor::{Descriptor, Image, ImageKind};
use crate::image::preallocate::preallocate;
use crate::image::{Disk, Header, Progress};
use crate::{Error, ErrorKind, ImageMode, Result, durability, side_files};

impl OfflineImage {
    /// Converts the base of an image, as `Ploop::convert` does (`ploop_convert_image`), and also from raw.
    ///
    /// * To [`Preallocated`](ImageMode::Preallocated): allocates every cluster of the base.
    /// * To [`Raw`](ImageMode::Raw): writes the base anew as a plain disk image; deltas above stay what they are. Needs
    ///   room for the whole disk beside the old base while it works.
    /// * From preallocated to [`Expanded`](ImageMode::Expanded): changes the descriptor alone.
    /// * From raw: writes the base anew, in whole clusters, with none for zeros if expanded. Where the base is the whole
    ///   image, the disk becomes as large as its clusters.
    ///
    /// Takes as long as reading and writing the base, and no time where the image has this mode already. `progress` is
    /// called on this thread after every few MiB of data.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = ploop::image::CreateOptions::new();
    /// # let size = ploop::Size::from_mib(64);
    /// # let mut image = ploop::image::create(dir.path().join("root.hds"), size, &options)?;
    /// image.convert(ploop::ImageMode::Raw, |progress| println!("{} copied", progress.copied))?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) where `<base>.tmp` is there, under which the new base is made;
    /// [`InvalidInput`](ErrorKind::InvalidInput) where the disk begins with the header of a delta, and is to become raw;
    /// [`Unsupported`](ErrorKind::Unsupported) where the file of the base has several names and is to be preallocated, or
    /// has a format extension (dirty bitmaps of backup programs), which would be lost;
    /// [`NoSpace`](ErrorKind::NoSpace); [`Corrupt`](ErrorKind::Corrupt) where the base is damaged;
    /// [`Cancelled`](ErrorKind::Cancelled) after [`set_cancel`](OfflineImage::set_cancel); and those that [all
    /// operations](OfflineImage#what-is-refused) have. After an error the image is as it was, possibly with more clusters
    /// allocated.
    pub fn convert(&mut self, mode: ImageMode, mut progress: impl FnMut(Progress)) -> Result<()> {
        let mut change = OfflineChange::begin(self, "convert")?;
        change.merge_temporary_snapshots(&mut progress)?;
        let old = change.descriptor.mode;
        if old == mode {
            return Ok(());
        }
        let Some(base) = change.descriptor.base().cloned() else {
            return change.refuse(ErrorKind::Corrupt, "the descriptor names no base");
        };
        let sound = change.require_sound([&base])?;
        match (old, mode) {
            (ImageMode::Raw, mode) => change.base_from_raw(&base, mode, &mut progress),
            (_, ImageMode::Raw) => {
                change.require_no_extension(&sound)?;
                change.base_to_raw(&base, &mut progress)
            }
            (_, mode) => {
                if mode == ImageMode::Preallocated {
                    change.require_own_file(&base)?;
                    preallocate(&base.file, true)
                        .map_err(|error| error.during(change.operation()))?;
                }
                let mut new = change.descriptor.clone();
                new.mode = mode;
                change.put(new)
            }
        }
    }
}

impl OfflineChange<'_> {
    fn base_to_raw(&mut self, base: &Image, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let operation = self.operation();
        let source = self.open_chain(std::slice::from_ref(base))?;
        let size = source.size();
        let new = self.new_base(base)?;
        allocate_all(operation, &base.file, new.file(), size)?;
        let file = new.file().try_clone().map_err(|error| {
            Error::io(operation, "the file cannot be opened again", error).with_path(&base.file)
        })?;
        let mut target = Target::of_raw(operation, &base.file, file, size);
        let total = target.reserve(&source)?;
        target.copy(self, &source, total, progress)?;
        target.finish()?;
        require_no_header(operation, new.file(), &base.file)?;
        let mut descriptor = self.descriptor.clone();
        descriptor.mode = ImageMode::Raw;
        for image in &mut descriptor.images {
            image.kind = ImageKind::Plain;
        }
        self.exchange_base(base, new, descriptor)
    }

    fn base_from_raw(
        &mut self,
        base: &Image,
        mode: ImageMode,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let operation = self.operation();
        let cluster = self.descriptor.cluster;
        let levels = self.open_levels(std::slice::from_ref(base))?;
        let disk = Disk::from_levels(levels, cluster).map_err(|error| error.during(operation))?;
        let mut descriptor = self.descriptor.clone();
        let mut size = disk.size();
        let version = self.version(size)?;
        if descriptor.images.len() == 1 {
            size = whole_clusters(operation, version, cluster, size)
                .map_err(|error| error.with_path(&base.file))?;
            descriptor.size = size;
        }
        let new = self.new_base(base)?;
        let header = Header::new(version, cluster, size)
            .map_err(|error| error.during(operation).with_path(&base.file))?;
        let importer = Importer::delta(operation, new.delta(&header)?);
        importer.copy_disk(&disk, size, self.cancel_flag(), progress)?;
        descriptor.mode = mode;
        for image in &mut descriptor.images {
            image.kind = ImageKind::Compressed;
        }
        self.exchange_base(base, new, descriptor)
    }

    /// A new base, which is made under the name that libploop uses for it.
    fn new_base(&self, base: &Image) -> Result<NewDelta> {
        self.require_of_no_other_image([&*base.file])?;
        let path = side_files::staged(&base.file);
        if fs::symlink_metadata(&path).is_ok() {
            let why = "the new base is made under this name, and a file is there; move it away";
            let error = Error::new(ErrorKind::AlreadyExists, self.operation(), why);
            return Err(error.with_path(path));
        }
        NewDelta::begin(self.operation(), &path, self.owner_of_base())
    }

    /// Puts a new base in the place of the old one, and then the descriptor that fits it. If this is cut short in
    /// between, the staged descriptor and the base show it.
    fn exchange_base(&mut self, base: &Image, new: NewDelta, descriptor: Descriptor) -> Result<()> {
        let operation = self.operation();
        let made = side_files::staged(&base.file);
        let _record = self.record([&*made])?;
        new.publish(false)?;
        if descriptor.mode == ImageMode::Preallocated {
            if let Err(error) = preallocate(&made, true) {
                let _ = fs::remove_file(&made);
                return Err(error.during(operation));
            }
        }
        let exchanged = self.stage(&descriptor).and_then(|()| {
            fs::rename(&made, &base.file).map_err(|error| {
                let what = "the new base cannot be put in the place of the old one";
                Error::io(operation, what, error).with_path(&base.file)
            })
        });
        if let Err(error) = exchanged {
            let _ = fs::remove_file(&made);
            self.unstage();
            return Err(error);
        }
        durability::sync_files(operation, [&*base.file])?;
        durability::sync_directories(operation, [side_files::directory_of(&base.file)])?;
        self.put_staged(descriptor)
    }
}
