//! A program that uses every name and shape other programs are compiled against. It is compiled, and
//! what needs no driver is run; a name or a type that changes breaks it.
#![cfg(feature = "libploop")]

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ploop::volume::{Volume, VolumePlace, VolumeTree};
use ploop::{
    ClusterSize, Code, ComponentName, CreateFlags, CreateParam, Descriptor, DiscardParam,
    DiscardStat, Error, ErrorKind, Feature, FormatVersion, FsInfo, FsType, Guid, ImageInfo,
    ImageMode, MergeParam, MergeTarget, MountFlags, MountGuard, MountParam, Mounted, Ploop,
    ReplaceFlag, ReplaceParam, ReplaceTarget, ResizeMode, Result, Size, SnapshotParam, StopFlag,
    SwitchFlag, TemporarySnapshot, TemporarySnapshotParam,
};

#[test]
fn offline() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let file: PathBuf = dir.path().join("root.hds");
    let xml: PathBuf = dir.path().join("DiskDescriptor.xml");

    let size: Size = "4M".parse()?;
    let param: CreateParam = CreateParam::new(&file, size)
        .mode(ImageMode::Expanded)
        .cluster(ClusterSize::DEFAULT)
        .flags(CreateFlags::NO_LAZY)
        .fs(None)
        .format(FormatVersion::V1)
        .fs_block_size(4096)
        .without_partition(true);
    let ploop: Ploop = Ploop::create(&param)?;
    ploop.close();
    // By anything that is a path.
    let _: Ploop = Ploop::open(xml.as_path())?;
    let _: Ploop = Ploop::open(xml.to_str().unwrap())?;
    let text: String = xml.to_str().unwrap().into();
    let _: Ploop = Ploop::open(text)?;
    let _: Ploop = Ploop::open(AsRef::<OsStr>::as_ref(&xml))?;
    let mut ploop = Ploop::open(xml.clone())?;

    let first: Guid = ploop.snapshot()?;
    let second: Guid = ploop.snapshot_with(&SnapshotParam::new().guid(Guid::generate()))?;
    ploop.switch_snapshot(first)?;
    let kept: Option<Guid> = ploop.switch_snapshot_with(first, SwitchFlag::SKIP_DESTROY)?;
    ploop.delete_snapshot(kept.unwrap())?;
    ploop.delete_snapshot(second)?;
    let none: Option<Guid> = ploop.switch_snapshot_with(first, SwitchFlag::empty())?;
    assert_eq!(none, None);
    let _: SwitchFlag = SwitchFlag::SKIP_CREATE;
    ploop.merge(&MergeParam::new(MergeTarget::Top))?;

    let copy = dir.path().join("copy.hds");
    std::fs::copy(&file, &copy).unwrap();
    let guid: ReplaceTarget = ReplaceTarget::Guid(Guid::TOP);
    let replace: ReplaceParam = ReplaceParam::new(&copy, guid).flags(ReplaceFlag::KEEP_NAME);
    ploop.replace(&replace)?;
    let _: ReplaceTarget = ReplaceTarget::File(copy);
    let _: ReplaceTarget = ReplaceTarget::Level(0);

    let mounted: bool = ploop.is_mounted()?;
    assert!(!mounted);
    let ImageInfo {
        blocks,
        block_size,
        version,
    } = ploop.image_info()?;
    let _: (u64, u32, u32) = (blocks, block_size, version);
    let top: PathBuf = ploop.top_delta_file()?;
    assert!(top.ends_with("root.hds"));

    let descriptor: Descriptor = ploop.descriptor()?;
    assert_eq!(descriptor.size, size);
    assert_eq!(descriptor.mode, ImageMode::Expanded);
    assert_eq!(descriptor.cluster, ClusterSize::DEFAULT);
    assert_eq!(descriptor.images.len(), 1);
    assert_eq!(descriptor.snapshots.len(), 1);
    let snapshot: Guid = ploop.snapshot()?;
    let elsewhere = tempfile::tempdir().unwrap();
    let _: Ploop = ploop.clone_descriptor(snapshot, elsewhere.path())?;
    ploop.delete_snapshot(snapshot)?;
    ploop.convert(ImageMode::Raw)?;
    ploop.set_max_delta_size(None)?;

    std::fs::write(dir.path().join(".statfs"), [0; 40]).unwrap();
    let FsInfo {
        block_size,
        blocks,
        blocks_free,
        inodes,
        inodes_free,
    } = ploop::fs_info(&xml)?;
    let numbers: [u64; 5] = [block_size, blocks, blocks_free, inodes, inodes_free];
    assert_eq!(numbers, [0; 5]);
    drop(ploop);

    ploop::log::set_verbose_level(ploop::log::NO_CONSOLE);
    ploop::log::set_log_level(3);
    ploop::log::set_log_file(None)?;
    ploop::log::set_log_file(Some(&dir.path().join("log")))?;
    ploop::log::set_log_file(None)?;
    Ok(())
}

#[test]
fn volumes() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let param = CreateParam::new(dir.path().join("web/image.hds"), Size::from_mib(4)).fs(None);
    let feature: Feature = Feature::Volumes;
    if !ploop::capabilities().has(feature) {
        let error = Volume::create(&param).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        return Ok(());
    }
    let mut web: Volume = Volume::create(&param)?;
    let directory: &Path = web.directory();
    let place: VolumePlace = VolumePlace::new(dir.path().join("monday")).images(directory);
    let mut monday: Volume = web.snapshot(&place)?;
    let read_only: bool = monday.is_read_only()?;
    assert!(read_only);
    let copy: Volume = monday.clone_to(&VolumePlace::new(dir.path().join("copy")))?;
    let VolumeTree {
        directory,
        children,
        ..
    } = monday.tree()?;
    let _: (PathBuf, &[VolumeTree]) = (directory, &children);
    assert_eq!(children.len(), 2);
    let size: Size = copy.size()?;
    assert!(!size.is_zero());
    web.switch_to(&monday)?;
    let image: &mut Ploop = web.image_mut();
    assert!(!image.is_mounted()?);
    copy.delete()?;
    Volume::open(dir.path().join("web"))?.delete()
}

#[test]
fn values() -> Result<()> {
    assert_eq!(Size::from_bytes(512), Size::from_sectors(1));
    assert_eq!(Size::from_kib(1024), Size::from_mib(1));
    assert_eq!(Size::from_gib(10), "10G".parse()?);
    assert_eq!(Size::from_gib(10).to_string(), "10 GiB");
    assert!(ClusterSize::from_bytes(3).is_err());
    assert_eq!(ClusterSize::MIN.bytes(), 32 << 10);
    assert_eq!(ClusterSize::MAX.bytes(), 64 << 20);
    for text in [
        "5FBAABE3-6958-40ff-92a7-860e329aab41",
        "{5fbaabe3-6958-40ff-92a7-860e329aab41}",
    ] {
        assert_eq!(text.parse::<Guid>()?, Guid::TOP);
    }
    assert_eq!(
        Guid::NONE.to_string(),
        "{00000000-0000-0000-0000-000000000000}"
    );
    let _: &uuid::Uuid = Guid::TOP.as_uuid();
    let name: ComponentName = "name".parse()?;
    assert_eq!(name.as_str(), "name");
    for mode in [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw] {
        assert_eq!(mode.to_string().parse::<ImageMode>()?, mode);
    }
    let _: FsType = FsType::Ext4;
    Ok(())
}

#[test]
fn errors() {
    let error: Error = Ploop::open("/no/such/file").unwrap_err();
    let kind: ErrorKind = error.kind();
    assert_eq!(kind, ErrorKind::NotFound);
    let code: Option<i32> = error.code();
    assert_eq!(code, Some(Code::DISKDESCR.get()));
    assert!(!error.is_not_mounted());
    let operation: &str = error.operation();
    let message: &str = error.message();
    assert!(!operation.is_empty() && !message.is_empty());
    let path: Option<&Path> = error.path();
    assert_eq!(path, Some(Path::new("/no/such/file")));
    let _: &(dyn std::error::Error + Send + Sync + 'static) = &error;
    let kinds = [
        ErrorKind::NotFound,
        ErrorKind::AlreadyExists,
        ErrorKind::InvalidInput,
        ErrorKind::NotMounted,
        ErrorKind::Busy,
        ErrorKind::Locked,
        ErrorKind::NoDriver,
        ErrorKind::NoSnapshot,
        ErrorKind::Corrupt,
        ErrorKind::Unsupported,
        ErrorKind::Cancelled,
        ErrorKind::Io,
        ErrorKind::Other,
    ];
    assert!(kinds.contains(&kind));
    // What goploop's `IsNotMounted` and `E_…` are for.
    assert_eq!(Code::DEV_NOT_MOUNTED.kind(), ErrorKind::NotMounted);
    assert_eq!(Code::from(43), Code::NOSNAP);
}

fn plain<T: std::fmt::Debug + Clone + PartialEq + Send + Sync + 'static>() {}

#[test]
fn state_is_plain_data() {
    plain::<FsInfo>();
    plain::<ImageInfo>();
    plain::<Descriptor>();
    plain::<DiscardStat>();
    plain::<VolumePlace>();
    plain::<VolumeTree>();
    plain::<Mounted>();
    plain::<Guid>();
    plain::<Size>();
    plain::<ClusterSize>();
    plain::<ComponentName>();
    plain::<ImageMode>();
    plain::<CreateFlags>();
    plain::<SwitchFlag>();
    plain::<ReplaceFlag>();
    plain::<MountFlags>();
    plain::<CreateParam>();
    plain::<MountParam>();
    plain::<ReplaceParam>();
    plain::<SnapshotParam>();
    plain::<MergeParam>();
}

/// What needs a driver: compiled, and called by nobody.
#[allow(dead_code)]
fn with_a_driver(ploop: &mut Ploop) -> Result<()> {
    ploop::load_kernel_modules()?;
    let param: MountParam = MountParam::new()
        .target("/mnt")
        .snapshot(Guid::TOP)
        .read_only(true)
        .fsck(true)
        .quota(true)
        .flags(MountFlags::NOATIME)
        .data("discard")
        .component("name".parse()?);
    let mounted: Mounted = ploop.mount(&param)?;
    let _: (PathBuf, Option<i32>) = (mounted.device.clone(), mounted.fsck);
    ploop.umount()?;
    ploop::device::umount(&mounted.device)?;

    let mut guard: MountGuard<'_> = ploop.mount_guard(&param)?;
    let _: &Ploop = &guard;
    let online: &mut Ploop = &mut guard;
    online.snapshot()?;
    guard.snapshot()?;
    guard.umount()?;

    ploop.resize(Size::from_gib(1), ResizeMode::Online)?;
    ploop.resize(Size::from_gib(1), ResizeMode::Offline)?;
    let temporary: TemporarySnapshot =
        ploop.temporary_snapshot(&TemporarySnapshotParam::new("backup".parse()?))?;
    ploop.delete_snapshot(temporary.guid)?;
    let flag: StopFlag = StopFlag::new();
    ploop.discard(&DiscardParam::new().stop(&flag))?;
    let _: DiscardStat = ploop.discard_stat()?;

    let _: Option<PathBuf> = ploop.device()?;
    let _: Vec<PathBuf> = ploop.devices()?;
    let _: Option<PathBuf> = ploop::device::by_mount_point("/mnt")?;
    let _: Option<PathBuf> = ploop::device::mount_point("/dev/ploop1")?;
    let _: FsInfo = ploop::device::fs_info("/dev/ploop1")?;
    let (output, feedback): (UnixStream, UnixStream) = UnixStream::pair().unwrap();
    ploop::copy::send(&mounted.device, &output, Some(feedback.as_fd()))?;
    ploop::copy::receive("/file", &output, None)?;

    ploop.set_lock_timeout(Some(Duration::from_secs(1)));
    ploop::lock::set_timeout(Duration::from_secs(1));
    let _: bool = ploop::kernel::is_driver_present();
    let _: bool = ploop::kernel::is_large_disk_supported();
    let _: Size = ploop::kernel::max_size(ClusterSize::DEFAULT)?;
    let _: &str = ploop::kernel::library_version();
    Ok(())
}

/// What needs no libploop either.
#[allow(dead_code)]
fn without_libploop() -> Result<()> {
    use ploop::image::{Disk, ExportOptions, Report};
    use std::io::{Read, Seek, SeekFrom};

    let descriptor: Descriptor = ploop::image::Descriptor::open("/xml")?;
    let disk: Disk = Disk::open("/xml")?;
    let _: Disk = Disk::open_image("/delta")?;
    let mut snapshot: Disk = Disk::open_snapshot("/xml", descriptor.top)?;
    snapshot.seek(SeekFrom::Start(0)).unwrap();
    snapshot.read_exact(&mut [0; 512]).unwrap();
    let _: usize = disk.read_at(&mut [0; 512], 0)?;
    let _: Size = disk.size();
    for extent in disk.extents() {
        let _: u64 = extent?.offset;
    }
    disk.export("/raw", &ExportOptions::new(), |_| {})?;
    let _: Report = ploop::image::check("/xml");
    Ok(())
}
