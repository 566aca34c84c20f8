//! Attaching an image to a device, and mounting what is in it.

use std::fs;
use std::path::{Path, PathBuf};

use bitflags::bitflags;

use crate::canonical::CanonicalDescriptor;
use crate::change::{Change, DescriptorWrite, is_v1, require_known_flags};
use crate::ffi::{self, CPath, CText, LockedImage, MountArgs, WriteSignalsBlocked};
use crate::identity::Identity;
use crate::image::Image;
use crate::sysfs::Device;
use crate::{
    ComponentName, Error, ErrorKind, Feature, Guid, ImageMode, Ploop, Result, device, paths,
    recovery,
};

/// libploop builds the options in 1024 bytes, together with those for quota and balloon, and cuts off
/// what does not fit.
const MAX_DATA: usize = 900;

bitflags! {
    /// How the file system is mounted.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    pub struct MountFlags: u32 {
        /// Do not update access times. The only flag libploop 1.15 passes on.
        const NOATIME = libc::MS_NOATIME as u32;
    }
}

bitflags! {
    /// How `fsck.ext4` checks the file system, for [`MountParam::fsck_flags`].
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    pub struct FsckFlags: u32 {
        /// Mend what can be mended without a question (`-p`).
        const PREEN = ffi::FSCK_PREEN;
        /// Check a file system that says it is clean, too (`-f`). Since libploop 7.0.158; see [`Feature::FsckFlags`].
        const FORCE = ffi::FSCK_FORCE;
        /// Answer each question with yes (`-y`): mend whatever it takes, and lose what has to be lost. Since libploop
        /// 7.0.158; see [`Feature::FsckFlags`].
        const FORCE_REPAIR = ffi::FSCK_FORCE_REPAIR;
        /// Change nothing (`-n`): a mount of a file system with errors fails. Since libploop
        /// 7.0.265; see [`Feature::ReadOnlyFsck`].
        const RO = ffi::FSCK_RO;

        // Bits that a later libploop may know are kept.
        const _ = !0;
    }
}

impl FsckFlags {
    /// Those that libploop 7.0.280 knows.
    const KNOWN: FsckFlags = FsckFlags::MODES.union(FsckFlags::FORCE);

    /// What tells `fsck.ext4` how to go about errors. It takes one of them; without one it would ask.
    const MODES: FsckFlags = FsckFlags::PREEN
        .union(FsckFlags::FORCE_REPAIR)
        .union(FsckFlags::RO);

    /// That libploop passes on what these flags say. Three of them together are more arguments than it has room for.
    fn require_usable(self, change: &Change<'_>) -> Result<()> {
        let (operation, path) = (change.operation(), change.path());
        require_known_flags(operation, path, self, FsckFlags::KNOWN)?;
        if self.intersects(FsckFlags::FORCE | FsckFlags::FORCE_REPAIR) {
            Feature::FsckFlags.require(operation, path)?;
        }
        if self.contains(FsckFlags::RO) {
            Feature::ReadOnlyFsck.require(operation, path)?;
        }
        let modes = (self & FsckFlags::MODES).bits().count_ones();
        if self.is_empty() || modes == 1 {
            return Ok(());
        }
        change.refuse(
            ErrorKind::InvalidInput,
            "a file system check takes exactly one of PREEN, FORCE_REPAIR and RO, with FORCE or without",
        )
    }
}

/// What [`Ploop::mount`] does.
///
/// ```
/// use ploop::{MountFlags, MountParam};
///
/// let param = MountParam::new().target("/vz/mnt/101").fsck(true).flags(MountFlags::NOATIME);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[must_use]
pub struct MountParam {
    #[cfg_attr(feature = "serde", serde(with = "crate::stored::paths"))]
    target: Option<PathBuf>,
    snapshot: Option<Guid>,
    read_only: bool,
    fsck: bool,
    fsck_flags: Option<FsckFlags>,
    no_probe: bool,
    upgrade_format: bool,
    quota: bool,
    flags: MountFlags,
    data: Option<String>,
    component: Option<ComponentName>,
}

impl MountParam {
    /// Attaches the top delta, for reading and writing, and mounts nothing.
    pub fn new() -> MountParam {
        MountParam::default()
    }

    /// The directory on which the ext4 file system is mounted.
    pub fn target(mut self, directory: impl AsRef<Path>) -> MountParam {
        self.target = Some(directory.as_ref().to_owned());
        self
    }

    /// Attach this snapshot, and not the top. One with children must be mounted read-only.
    pub fn snapshot(mut self, guid: Guid) -> MountParam {
        self.snapshot = Some(guid);
        self
    }

    /// Attach and mount read-only.
    pub fn read_only(mut self, read_only: bool) -> MountParam {
        self.read_only = read_only;
        self
    }

    /// Run `fsck.ext4 -p` first, with or without a target.
    pub fn fsck(mut self, fsck: bool) -> MountParam {
        self.fsck = fsck;
        self
    }

    /// Run `fsck.ext4` first, with these options. Without any there is no check. This replaces [`fsck`](MountParam::fsck).
    ///
    /// [`PREEN`](FsckFlags::PREEN) alone is what `fsck(true)` does, with every version of libploop.
    pub fn fsck_flags(mut self, flags: FsckFlags) -> MountParam {
        self.fsck_flags = Some(flags);
        self
    }

    /// Do not have the kernel read the partition table (`partprobe`): it does that by itself, unless partitions were
    /// changed behind its back. Spares a moment.
    ///
    /// Since libploop 7.0.274; see [`Feature::NoProbe`].
    pub fn no_probe(mut self, no_probe: bool) -> MountParam {
        self.no_probe = no_probe;
        self
    }

    fn checks(&self) -> FsckFlags {
        let preen = match self.fsck {
            true => FsckFlags::PREEN,
            false => FsckFlags::empty(),
        };
        self.fsck_flags.unwrap_or(preen)
    }

    /// Rewrite an image of format v1 to v2 first (default: no), as libploop 7 does since 7.0.251 with each mount that can
    /// write, if it is not told otherwise. This crate tells it otherwise: an image stays as it is, so that a host with
    /// libploop 1 and a driver without large disks can still mount it.
    ///
    /// Nothing is rewritten before the image was mounted once as it is. There is no way back but a copy. Older versions
    /// of libploop do not rewrite, and the mount fails with [`Unsupported`](ErrorKind::Unsupported); so it does for
    /// [a snapshot](MountParam::snapshot), a read-only mount, one under a [component name](MountParam::component), a raw
    /// base, and where snapshots on another branch would keep the old format.
    ///
    /// An image of format v2 is mounted as without this.
    pub fn upgrade_format(mut self, upgrade: bool) -> MountParam {
        self.upgrade_format = upgrade;
        self
    }

    /// Mount with journalled quota.
    pub fn quota(mut self, quota: bool) -> MountParam {
        self.quota = quota;
        self
    }

    /// How the file system is mounted.
    pub fn flags(mut self, flags: MountFlags) -> MountParam {
        self.flags = flags;
        self
    }

    /// More options for the file system, separated by commas; at most 900 bytes.
    pub fn data(mut self, data: &str) -> MountParam {
        self.data = Some(data.to_owned());
        self
    }

    /// Attach under this name, to tell several attachments of one image apart.
    /// [`Ploop::component`] keeps it for the operations that follow.
    pub fn component(mut self, component: ComponentName) -> MountParam {
        self.component = Some(component);
        self
    }
}

/// What [`Ploop::mount`] has attached and mounted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Mounted {
    /// The device, as `/dev/ploop12345`.
    #[cfg_attr(feature = "serde", serde(with = "crate::stored::paths"))]
    pub device: PathBuf,
    /// What `fsck.ext4` exited with, where it was asked for: 0 for clean, 1 or 2 for mended.
    pub fsck: Option<i32>,
    /// The mount point, where there is one.
    #[cfg_attr(feature = "serde", serde(default, with = "crate::stored::paths"))]
    pub target: Option<PathBuf>,
}

impl Ploop {
    /// Attaches the image to a device and mounts its file system, if a target is given
    /// (`ploop_mount_image`).
    ///
    /// Needs the driver and root. libploop checks all deltas first, and *mends* them: it clears the in-use mark that
    /// a crash has left, cuts off what lies behind the last whole cluster, and on ext4 fills the holes of sparse
    /// files. Afterwards it merges temporary snapshots that are no longer in use. The mount outlives the handle and
    /// the process; the mount of a [`mount_guard`](Ploop::mount_guard) ends with the guard. Takes as long as
    /// checking, mending and merging the deltas, and checking the file system if asked for.
    ///
    /// # Errors
    ///
    /// [`Busy`](ErrorKind::Busy) where the image is attached already under this name, or one of its deltas is in use,
    /// [`NoSnapshot`](ErrorKind::NoSnapshot), [`InvalidInput`](ErrorKind::InvalidInput) for a target that is no
    /// directory or that libploop could not handle (see [the manual](crate::manual::_11_trust_and_paths#paths)), for
    /// options that are too long, and for a snapshot with children that is not read-only;
    /// [`Corrupt`](ErrorKind::Corrupt) for a damaged delta, or where the file system check failed (code
    /// [`FSCK`](crate::Code::FSCK)); [`NoDriver`](ErrorKind::NoDriver), [`Tool`](ErrorKind::Tool). After an error
    /// nothing is attached that was not before.
    ///
    /// ```no_run
    /// # let mut image = ploop::Ploop::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// use ploop::MountParam;
    ///
    /// let mounted = image.mount(&MountParam::new().target("/vz/mnt/101").fsck(true))?;
    /// println!("{} is on /vz/mnt/101", mounted.device.display());
    /// image.umount()?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn mount(&mut self, param: &MountParam) -> Result<Mounted> {
        let before = self.component().cloned();
        if param.component.is_some() {
            self.set_component(param.component.clone());
        }
        let result = self
            .mount_with_component(param)
            .map_err(|error| error.of_image(self.path()));
        if result.is_err() {
            if let Some(component) = self.component() {
                device::clear_component_name(component);
            }
            self.set_component(before);
        }
        result
    }

    fn mount_with_component(&mut self, param: &MountParam) -> Result<Mounted> {
        let change = Change::begin(&self.image, &LockedImage::MOUNT)?;
        let operation = change.operation();
        require_known_flags(operation, change.path(), param.flags, MountFlags::all())?;
        let fsck = param.checks();
        fsck.require_usable(&change)?;
        if param.no_probe {
            Feature::NoProbe.require(operation, change.path())?;
        }
        let target = param
            .target
            .as_deref()
            .map(|target| mount_point(&change, target))
            .transpose()?;
        let data = param
            .data
            .as_deref()
            .map(|data| CText::new(operation, "mount data", data))
            .transpose()?;
        let data_len = param.data.as_ref().map_or(0, String::len);
        if data_len > MAX_DATA {
            return change.refuse(
                ErrorKind::InvalidInput,
                format!(
                    "the mount data is {data_len} bytes long; libploop has room for {MAX_DATA}"
                ),
            );
        }
        let descriptor = &change.descriptor;
        let guid = param.snapshot.unwrap_or(descriptor.top);
        change.require_snapshot(guid)?;
        // libploop attaches one upon which others stand read-only, whatever it is told.
        let volume = descriptor.volume.as_ref();
        let read_only = param.read_only || volume.is_some_and(|it| it.read_only);
        if descriptor.children(guid).next().is_some() && !read_only {
            return change.refuse(
                ErrorKind::InvalidInput,
                format!(
                    "{guid} has children, which a write to it would damage; mount it read-only"
                ),
            );
        }
        if param.upgrade_format {
            let chain = descriptor.chain(guid);
            let chain: Vec<Guid> = chain.iter().map(|image| image.guid).collect();
            change.require_of_no_other_image(&chain)?;
        } else if !read_only {
            change.require_of_no_other_image(&[guid])?;
        }
        change.require_attachable(guid)?;
        // libploop looks for one of the same name, and mends a delta that another one writes to before the
        // driver refuses it (A16).
        for device in change.devices_with_top(guid) {
            if device.writes() || !read_only {
                change.require_found_by_libploop(device)?;
            }
        }
        let snapshot = device::device_of_snapshot(&change.devices, change.component(), descriptor);
        if let Some(device) = snapshot {
            return change.refuse_attached(device, "a snapshot of the image is mounted there");
        }
        change.require_identified_writer(guid)?;
        let fsck_tools: &[&str] = if fsck.is_empty() { &[] } else { &["fsck.ext4"] };
        match param.no_probe {
            true => crate::kernel::require_tools_or_driver(|| change.require_tools(fsck_tools))?,
            false => crate::kernel::require_tools_to_attach(operation, fsck_tools)?,
        }
        crate::kernel::require_driver(operation, change.path())?;
        let upgrade_format = param.upgrade_format && change.has_v1(guid);
        if upgrade_format {
            require_upgradable(&change, param)?;
        }
        // Where no delta is named, libploop may rewrite them to format v2.
        let named = param
            .snapshot
            .or_else(|| ffi::upgrades_v1_at_mount().then_some(guid));
        let c_guid = named.map(CText::guid);
        let args = MountArgs {
            target: target.as_ref(),
            guid: c_guid.as_ref(),
            data: data.as_ref(),
            read_only,
            flags: param.flags.bits() as i32,
            quota: param.quota,
            fsck: fsck.bits() as i32,
            no_probe: param.no_probe,
            upgrade_format,
        };
        let chain: Vec<Image> = descriptor.chain(guid).into_iter().cloned().collect();
        let path = change.path().to_owned();
        let reply = change
            .run(DescriptorWrite::Maybe, |locked| {
                let mut result = locked.mount(&args);
                if upgrade_format && result.is_ok() && chain.iter().any(is_v1) {
                    let why = "libploop has mounted the image, and has not rewritten it to format v2; it is detached again";
                    let error = Error::new(ErrorKind::Unsupported, operation, why);
                    result = Err(error.with_path(&path));
                }
                result
            })
            .map_err(already_attached)?;
        Ok(Mounted {
            device: reply.device,
            fsck: (!fsck.is_empty()).then_some(reply.fsck),
            target: param.target.clone(),
        })
    }

    /// Unmounts the file system and detaches the device (`ploop_umount_image`), of the handle's
    /// [component](Ploop::component).
    ///
    /// Needs the driver and root. An operation that was interrupted is finished first. A merge that was interrupted
    /// may leave a delta, which [`leftovers`](Ploop::leftovers) names. libploop 1 tries for six seconds to unmount a
    /// busy file system, and for a minute to detach a busy device; libploop 7 takes a minute for each, or what
    /// [`set_umount_timeout`](Ploop::set_umount_timeout) was told.
    ///
    /// # Errors
    ///
    /// [`NotMounted`](ErrorKind::NotMounted) (see [`Error::is_not_mounted`]),
    /// [`Busy`](ErrorKind::Busy) while files in it are open ([`Error::output`] has what `lsof` says of the programs, if
    /// that is installed), and where something else is mounted on top of it,
    /// [`Unsupported`](ErrorKind::Unsupported) where a link or the like has the name of a file that
    /// libploop writes beside the image. After an error the image is still attached. Its file system may be unmounted
    /// already, where the device is busy: the same call goes on from there.
    ///
    /// ```no_run
    /// # let mut image = ploop::Ploop::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// match image.umount() {
    ///     Err(error) if error.is_not_mounted() => {}
    ///     other => other?,
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn umount(&mut self) -> Result<()> {
        let _write_signals = WriteSignalsBlocked::begin();
        let mut locked = self.image.lock(&LockedImage::UMOUNT)?;
        let read = locked.descriptor_file()?;
        let (file, devices) = recovery::finish(&locked, read)?;
        // The note of the file system is written, the mount point beside the base removed.
        let descriptor = &file.descriptor;
        locked.lock_parents(descriptor).map_err(|error| {
            let error = error.of_image(self.image.path());
            error.with_advice("where it is mounted, `device::umount` unmounts its device")
        })?;
        let deltas = descriptor.images.iter().map(|image| image.file.as_path());
        paths::require_own_side_files(locked.operation(), locked.path(), deltas)?;
        let running = match device::running_device_among(&devices, &locked, descriptor) {
            Ok(Some(device)) => {
                device::require_harmless_mount_point(locked.operation(), &device)?;
                Some(device)
            }
            Ok(None) => {
                let snapshot = device::device_of_snapshot(&devices, locked.component(), descriptor);
                // And one that was left by an init that was killed.
                let has_it = |device: &&Device| {
                    device
                        .component
                        .starts_with(ComponentName::ONE_CALL.as_bytes())
                        && descriptor.base().is_some_and(|base| {
                            Identity::of(&base.file).is_ok_and(|file| device.has(file))
                        })
                };
                if let Some(device) = snapshot.or_else(|| devices.iter().find(has_it)) {
                    return device::umount(device.path());
                }
                None
            }
            // One that has the deltas and does not run (A15): nothing is mounted from it.
            Err(error) if error.kind() == ErrorKind::Busy => None,
            Err(error) => return Err(error),
        };
        let (canonical, _) = CanonicalDescriptor::of(locked.operation(), locked.path(), file)?;
        locked.put_in_place(&canonical, false)?;
        match (locked.umount(), running) {
            // libploop 7.0.95 and 7.0.96 do not find a device whose top is not that of the descriptor.
            (Err(error), Some(device)) if error.is_not_mounted() => {
                device::umount(device).map_err(|error| error.during("unmount"))
            }
            (unmounted, _) => unmounted,
        }
    }

    /// Whether the image is attached to a running device (`ploop_is_mounted`), without a component
    /// name. Its file system need not be mounted: [`device::mount_point`](crate::device::mount_point)
    /// tells.
    ///
    /// Read from the descriptor and sysfs, with the answer of `ploop_is_mounted` for a handle that was just opened.
    /// Without the driver the answer is no. Waits for the image's lock.
    ///
    /// # Errors
    ///
    /// As [`Ploop::descriptor`]; [`Busy`](ErrorKind::Busy) where a program was killed and left the image on a device
    /// that does not run; unmounting frees it.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let image = ploop::Ploop::create(&param.fs(None))?;
    /// assert!(!image.is_mounted()?);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn is_mounted(&self) -> Result<bool> {
        let locked = self.image.lock(&LockedImage::IS_MOUNTED)?;
        let descriptor = device::descriptor(&locked)?;
        Ok(device::running_device(&locked, &descriptor)?.is_some())
    }
}

/// Makes an error `Busy` where the image is attached already: libploop's code is that of any failed mount.
fn already_attached(error: Error) -> Error {
    let attached = error.code() == Some(crate::Code::MOUNT.get())
        && error.message().contains("already used by device");
    if attached {
        let message = error.message().to_owned();
        return error.meaning(ErrorKind::Busy, message);
    }
    error
}

/// Requires that libploop would rewrite the whole image to format v2.
fn require_upgradable(change: &Change<'_>, param: &MountParam) -> Result<()> {
    let descriptor = &change.descriptor;
    let chain = descriptor.chain(descriptor.top);
    let elsewhere = descriptor.images.iter().find(|image| {
        let is_in_chain = chain.iter().any(|other| other.guid == image.guid);
        !is_in_chain && is_v1(image)
    });
    let why = if !ffi::upgrades_v1_at_mount() {
        "this version of libploop does not rewrite images; it mounts format v1 as it is".to_owned()
    } else if param.snapshot.is_some() || param.read_only || !change.component().is_empty() {
        "an image is only rewritten where its top is mounted for writing, without a component name"
            .to_owned()
    } else if descriptor.mode == ImageMode::Raw {
        "libploop does not rewrite deltas upon a raw base".to_owned()
    } else if let Some(image) = elsewhere {
        format!(
            "libploop rewrites the chain of the top alone, and {}, which stands on it, would stay of format v1; delete it first",
            image.guid
        )
    } else if !crate::kernel::is_large_disk_supported() {
        "the driver does not support large disks, and so not format v2".to_owned()
    } else {
        return Ok(());
    };
    change.refuse(
        ErrorKind::Unsupported,
        format!("the image is of format v1, and was to be rewritten to v2: {why}"),
    )
}

/// Checks a mount point: a directory that libploop can give to a shell when it is busy, and that does not hide the
/// image's own files.
pub(crate) fn mount_point(change: &Change<'_>, target: &Path) -> Result<CPath> {
    let operation = change.operation();
    let resolved = paths::existing_directory(operation, target, "the mount point")?;
    paths::require_harmless_to_shell(operation, &resolved)?;
    // The kernel would be asked about the image through what is hidden then.
    if let Some(hidden) = ["/proc", "/sys", "/dev"]
        .into_iter()
        .find(|path| Path::new(path).starts_with(&resolved))
    {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            operation,
            format!(
                "a mount here would hide {hidden}, and the image could not be unmounted again; choose another directory"
            ),
        )
        .with_path(target));
    }
    let mount_point = Identity::of(&resolved).ok();
    let deltas = change.descriptor.images.iter().map(|image| &*image.file);
    for file in [change.path()].into_iter().chain(deltas) {
        let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
        if mount_point.is_some()
            && file
                .ancestors()
                .skip(1)
                .any(|it| Identity::of(it).ok() == mount_point)
        {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                operation,
                format!(
                    "a mount here would hide {}, which belongs to the image, and the image could not be unmounted again; choose another directory",
                    file.display()
                ),
            )
            .with_path(target));
        }
    }
    CPath::new(operation, &resolved)
}
