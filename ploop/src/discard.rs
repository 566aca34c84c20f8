//! Giving back the space that the file system in an image no longer uses.

use std::path::Path;

use crate::change::{Change, DescriptorWrite};
use crate::ffi::{DiscardArgs, LINE, LockedImage, StopInt};
use crate::sysfs::Device;
use crate::temporary_mount::TemporaryMount;
use crate::{Code, Descriptor, Error, ErrorKind, Ploop, Result, Size, device, kernel};

/// Ends a discard early, from any thread. Clones share one flag. libploop reads it while it works, as an `int`: so it is not
/// the `AtomicBool` that ends what this crate does by itself.
///
/// ```
/// use ploop::StopFlag;
///
/// let flag = StopFlag::new();
/// flag.clone().stop();
/// assert!(flag.is_stopped());
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct StopFlag(StopInt);

impl StopFlag {
    /// A flag that is not set.
    #[must_use]
    pub fn new() -> StopFlag {
        StopFlag::default()
    }

    /// Ends the discard after the current round. A flag that is set stays set.
    pub fn stop(&self) {
        self.0.set();
    }

    /// Whether the flag is set.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.is_set()
    }
}

/// What [`Ploop::discard`] does.
#[derive(Debug, Clone, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[must_use]
pub struct DiscardParam {
    min_length: Size,
    to_free: Option<Size>,
    automount: bool,
    defrag: bool,
    #[cfg_attr(feature = "serde", serde(skip))]
    stop: Option<StopFlag>,
}

impl DiscardParam {
    /// All that can be freed, in extents of at least a cluster, of a mounted image.
    pub fn new() -> DiscardParam {
        DiscardParam::default()
    }

    /// The smallest extent to give back; never less than a cluster. ext4 refuses more than a group of
    /// blocks has, 128 MiB with blocks of 4 KiB.
    pub fn min_length(mut self, size: Size) -> DiscardParam {
        self.min_length = size;
        self
    }

    /// Stop after so much, at least a cluster.
    pub fn to_free(mut self, size: Size) -> DiscardParam {
        self.to_free = Some(size);
        self
    }

    /// Mount the image meanwhile, if it is not mounted.
    pub fn automount(mut self, automount: bool) -> DiscardParam {
        self.automount = automount;
        self
    }

    /// Run `/usr/sbin/e4defrag2` first, if it is there.
    pub fn defrag(mut self, defrag: bool) -> DiscardParam {
        self.defrag = defrag;
        self
    }

    /// End early when this flag is set.
    pub fn stop(mut self, flag: &StopFlag) -> DiscardParam {
        self.stop = Some(flag.clone());
        self
    }
}

/// How much of an image is used, and how much could be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct DiscardStat {
    /// What the file system uses.
    pub data_size: Size,
    /// The size of the file system, without the balloon.
    pub ploop_size: Size,
    /// The size of the image file.
    pub image_size: Size,
    /// The size of the balloon.
    pub balloon_size: Size,
    /// Whether the driver gives back by itself what the file system discards, without libploop moving clusters. `None`
    /// with libploop 1 and before 7.0.253, which do not say.
    #[cfg_attr(feature = "serde", serde(default))]
    pub native_discard: Option<bool>,
}

impl Ploop {
    /// Gives back to the host what the file system no longer uses (`ploop_discard`): trims the file
    /// system, and moves the clusters at the image's end into the gaps.
    ///
    /// Needs the driver and root. Takes long; [`DiscardParam::stop`] ends it. libploop sends a signal to every
    /// process where it cannot fork here. A system call filter of its process prevents that, or where the kernel has
    /// none (OpenVZ 6) a PID namespace, with which an unmount cannot interrupt `e4defrag2`. The trim process that
    /// libploop forks runs the exit handlers of the program. Only one discard runs at a time in a process.
    ///
    /// First ends a discard whose program was killed.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for less than a cluster to free and for an image that is attached
    /// without its file system, [`NotMounted`](ErrorKind::NotMounted) for one that is not attached without
    /// [`automount`](DiscardParam::automount),
    /// [`Unsupported`](ErrorKind::Unsupported) on a system with neither system call filters nor PID
    /// namespaces, [`Other`](ErrorKind::Other) where its trim process was killed,
    /// [`Busy`](ErrorKind::Busy) while another operation of the driver goes on,
    /// and with libploop 7 where the image is attached under a [component name](Ploop::component),
    /// [`Unsupported`](ErrorKind::Unsupported) also for a file system that is mounted without its balloon,
    /// [`NoDriver`](ErrorKind::NoDriver). What was given back before an error stays so.
    ///
    /// ```no_run
    /// # let mut image = ploop::Ploop::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// use ploop::{DiscardParam, Size, StopFlag};
    ///
    /// let flag = StopFlag::new();
    /// let alarm = flag.clone();
    /// std::thread::spawn(move || {
    ///     std::thread::sleep(std::time::Duration::from_secs(60));
    ///     alarm.stop();
    /// });
    /// image.discard(&DiscardParam::new().to_free(Size::from_gib(1)).stop(&flag))?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn discard(&mut self, param: &DiscardParam) -> Result<()> {
        let change = Change::begin(&self.image, &LockedImage::DISCARD)?;
        let cluster = Size::from(change.descriptor.cluster);
        if let Some(size) = param.to_free.filter(|size| *size < cluster) {
            return change.refuse(
                ErrorKind::InvalidInput,
                format!("{size} to free is less than a cluster of {cluster}"),
            );
        }
        if let Some(device) = change.found_device() {
            require_mounted(change.operation(), change.path(), &device.path())?;
        }
        change.require_of_no_other_image(&[change.descriptor.top])?;
        change.require_attachable(change.descriptor.top)?;
        if param.automount && change.found_device().is_none() {
            kernel::require_tools_to_attach(change.operation(), &[])?;
        }
        let leftover = TemporaryMount::beside(&change.descriptor);
        let attach = change.attach_first(self.component());
        let attach = attach.filter(|_| param.automount);
        let args = DiscardArgs {
            min_length: param.min_length.bytes(),
            to_free: param.to_free.map_or(0, Size::bytes),
            automount: param.automount,
            attach: attach.as_ref(),
            defrag: param.defrag,
            stop: param.stop.as_ref().map(|flag| &flag.0),
        };
        let device = change.found_device().map(Device::path);
        let result = change.run(DescriptorWrite::Maybe, |locked| {
            locked.discard(&args, device.as_deref())
        });
        if result.is_err() {
            leftover.remove();
        }
        result
    }

    /// How much of a mounted image is used (`ploop_discard_get_stat`). Needs the driver and root.
    ///
    /// # Errors
    ///
    /// [`NotMounted`](ErrorKind::NotMounted) for an image that is not attached,
    /// [`InvalidInput`](ErrorKind::InvalidInput) for one that is attached without its file system, [`Unsupported`](ErrorKind::Unsupported)
    /// with libploop 7 for one that is attached under a [component name](Ploop::component).
    ///
    /// ```no_run
    /// # let image = ploop::Ploop::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// let stat = image.discard_stat()?;
    /// println!("{} of {} are data", stat.data_size, stat.image_size);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn discard_stat(&self) -> Result<DiscardStat> {
        let locked = self.image.lock(&LockedImage::DISCARD_STAT)?;
        let descriptor = locked.descriptor()?;
        self.require_findable(locked.operation(), &descriptor)?;
        let Some(device) = device::running_device(&locked, &descriptor)? else {
            // libploop fails without a word.
            return Err(Error::new(
                ErrorKind::NotMounted,
                locked.operation(),
                "the image is not attached; mount it first",
            )
            .with_path(locked.path()));
        };
        require_mounted(locked.operation(), locked.path(), &device.path())?;
        let numbers = locked.discard_stat()?;
        Ok(DiscardStat {
            data_size: Size::from_bytes(numbers.data),
            ploop_size: Size::from_bytes(numbers.ploop),
            image_size: Size::from_bytes(numbers.image),
            balloon_size: Size::from_bytes(numbers.balloon),
            native_discard: numbers.native,
        })
    }

    /// libploop 7 does not find a device that has a component name: it would attach the image once more.
    fn require_findable(&self, operation: &'static str, descriptor: &Descriptor) -> Result<()> {
        let (Some(component), Some(base)) = (self.component(), descriptor.base()) else {
            return Ok(());
        };
        if LINE.discards_by_component || device::find(&base.file, Some(component))?.is_none() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            operation,
            format!("the image is attached under the component name {component}, under which this version of libploop does not find it; unmount it, and mount it without a name"),
        )
        .with_path(self.path()))
    }
}

/// Refuses an image that is attached without its file system, which libploop 7 would mount for the time.
fn require_mounted(operation: &'static str, image: &Path, device: &Path) -> Result<()> {
    if device::mount_point(device)?.is_some() {
        return Ok(());
    }
    let why = "the image is attached without its file system; mount it with a target";
    let error = Error::new(ErrorKind::InvalidInput, operation, why);
    Err(error.with_path(image).with_code(Code::PARAM.get()))
}
