//! What each operation passes to libploop: which function it calls, and every parameter, by the names and offsets of the
//! C description.

use std::fs::{self, File};
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ploop::image::Header;
use ploop::{
    ClusterSize, ComponentName, CreateFlags, CreateParam, DiscardParam, ErrorKind, FormatVersion,
    Guid, ImageMode, InitParam, MergeParam, MergeTarget, MountFlags, MountParam, Ploop,
    ReplaceFlag, ReplaceParam, ReplaceTarget, ResizeMode, ResizeParam, Size, SnapshotParam,
    StopFlag, SwitchFlag, TemporarySnapshotParam, device, init_device, sys,
};

use crate::fixture::disk::{self, SIZE};
use crate::fixture::harness::Test;
use crate::fixture::mounts;
use crate::fixture::written_image::Delta;
use crate::stub::{self, NEEDS};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        stub::NEEDS_DEVICE =>
            discard_stat,
            umount_of_a_device,
            init_of_a_device;
        NEEDS =>
            mount,
            mount_without_parameters,
            umount,
            resize,
            snapshot,
            temporary_snapshot,
            switch,
            delete,
            merge,
            replace,
            convert,
            max_delta_size,
            discard,
            fs_info,
            create,
            create_descriptor,
            init,
            devices_by_mount_point,
            max_size,
            top_delta_of_a_device,
            every_handle_is_closed_and_has_its_path;
    ]
}

/// A directory, and an image in it with two snapshots.
fn image() -> (tempfile::TempDir, Ploop, Vec<Guid>) {
    let dir = tempfile::tempdir().unwrap();
    let (image, guids) = stub::image(dir.path(), FormatVersion::V2, 2);
    (dir, image, guids)
}

fn name(text: &str) -> ComponentName {
    ComponentName::new(text).unwrap()
}

fn text(path: &Path) -> Option<&str> {
    Some(path.to_str().unwrap())
}

/// So that the crate does not refuse what needs the driver.
const DRIVER: &str = "access code 0\n";

fn script(lines: &str) {
    stub::script(&format!("{DRIVER}{lines}"));
}

fn mount() {
    let (dir, mut image, guids) = image();
    let target = dir.path().join("ä b").with_file_name("mnt-ä");
    fs::create_dir(&target).unwrap();
    script(
        "ploop_mount_image out param.device /dev/ploop12345\n\
         ploop_mount_image out param.fsck_rc 1\n",
    );
    let param = MountParam::new()
        .target(&target)
        .snapshot(guids[0])
        .read_only(true)
        .fsck(true)
        .quota(true)
        .flags(MountFlags::NOATIME)
        .data("errors=panic,ä")
        .component(name("backup"));
    let mounted = image.mount(&param).unwrap();
    assert_eq!(mounted.device, Path::new("/dev/ploop12345"));
    assert_eq!(mounted.fsck, Some(1));
    assert_eq!(mounted.target.as_deref(), Some(&*target));
    let call = stub::call("ploop_mount_image");
    assert_eq!(call.code, Some(0));
    assert_eq!(call.component(), Some("backup"));
    assert_eq!(
        call.bytes("param").len(),
        size_of::<sys::ploop_mount_param>()
    );
    assert_eq!(call.text("param.target"), text(&target));
    assert_eq!(call.text("param.guid"), Some(&*guids[0].to_string()));
    assert_eq!(call.text("param.mount_data"), Some("errors=panic,ä"));
    assert_eq!(call.number("param.ro"), 1);
    assert_eq!(call.number("param.quota"), 1);
    assert_eq!(
        call.number("param.flags"),
        i64::from(MountFlags::NOATIME.bits())
    );
    assert_ne!(call.number("param.fsck"), 0);
    let named = [
        "target",
        "guid",
        "mount_data",
        "ro",
        "quota",
        "flags",
        "fsck",
        "fsck_flags",
    ];
    call.assert_rest_is_zero("param", &named);
}

fn mount_without_parameters() {
    let (_dir, mut image, _) = image();
    script("ploop_mount_image out param.device /dev/ploop1\n");
    let mounted = image.mount(&MountParam::new()).unwrap();
    assert_eq!((mounted.fsck, mounted.target), (None, None));
    let call = stub::call("ploop_mount_image");
    assert_eq!(call.component(), None);
    for member in ["param.target", "param.mount_data", "param.fstype"] {
        assert!(call.is_null(member), "{member}");
    }
    // Without it libploop would rewrite an image of format v1.
    assert_eq!(call.text("param.guid"), Some(&*Guid::TOP.to_string()));
    call.assert_rest_is_zero("param", &["guid"]);
}

fn umount() {
    let (_dir, mut image, _) = image();
    image.set_component(Some(name("backup")));
    script("ploop_umount_image code 0\n");
    image.umount().unwrap();
    assert_eq!(stub::call("ploop_umount_image").component(), Some("backup"));
}

fn umount_of_a_device() {
    let (_dir, image, _) = image();
    stub::with_device(image, |_| {
        script("ploop_umount code 0\n");
        device::umount("/dev/ploop7").unwrap();
        let call = stub::call("ploop_umount");
        assert_eq!(call.text("device"), Some("/dev/ploop7"));
        assert!(call.is_null("di"));
    });
}

fn resize() {
    let (_dir, mut image, _) = image();
    script("ploop_resize_image code 0\n");
    let param = ResizeParam::to(Size::from_mib(20), ResizeMode::Online).mount_namespace(4711);
    image.resize_with(&param).unwrap();
    let call = stub::call("ploop_resize_image");
    assert_eq!(call.number("param.size"), 20 << 11);
    assert_eq!(call.number("param.offline_resize"), 0);
    assert_eq!(call.number("param.mntns_pid"), 4711);
    call.assert_rest_is_zero("param", &["size", "mntns_pid"]);
    script("ploop_resize_image code 0\n");
    image
        .resize_with(&ResizeParam::to_minimum(ResizeMode::Offline))
        .unwrap();
    let call = stub::call("ploop_resize_image");
    assert_eq!(call.number("param.offline_resize"), 1);
    call.assert_rest_is_zero("param", &["offline_resize"]);
}

fn snapshot() {
    let (dir, mut image, _) = image();
    script("");
    let guid = image.snapshot().unwrap();
    let call = stub::call("ploop_create_snapshot");
    assert_eq!(call.text("param.guid"), Some(&*guid.to_string()));
    call.assert_rest_is_zero("param", &["guid"]);
    let directory = dir.path().join("dir");
    fs::create_dir(&directory).unwrap();
    let guid: Guid = "{11111111-2222-3333-4444-AAAAAAAAAAAA}".parse().unwrap();
    script("");
    let param = SnapshotParam::new().guid(guid).directory(&directory);
    assert_eq!(image.snapshot_with(&param).unwrap(), guid);
    let call = stub::call("ploop_create_snapshot");
    let lower = "{11111111-2222-3333-4444-aaaaaaaaaaaa}";
    assert_eq!(call.text("param.guid"), Some(lower));
    assert_eq!(call.text("param.snap_dir"), text(&directory));
    call.assert_rest_is_zero("param", &["guid", "snap_dir"]);
    let top = image.top_delta_file().unwrap();
    assert!(top.starts_with(&directory), "{}", top.display());
}

fn temporary_snapshot() {
    let (dir, mut image, _) = image();
    let (target, directory) = (dir.path().join("mnt"), dir.path().join("dir"));
    fs::create_dir(&target).unwrap();
    fs::create_dir(&directory).unwrap();
    for hold in [true, false] {
        script("ploop_create_temporary_snapshot out param.device /dev/ploop7\n");
        let guid = Guid::generate();
        let param = TemporarySnapshotParam::new(name("backup"))
            .guid(guid)
            .target(&target)
            .directory(&directory)
            .hold(hold);
        let made = image.temporary_snapshot(&param).unwrap();
        assert_eq!(made.guid, guid);
        assert_eq!(made.device, Path::new("/dev/ploop7"));
        // What C opened has come over to this process: the stub opens the null device.
        let holder = made.holder.map(|holder| {
            let path = format!("/proc/self/fd/{}", holder.as_raw_fd());
            fs::read_link(path).unwrap()
        });
        assert_eq!(holder.as_deref(), hold.then_some(Path::new("/dev/null")));
        let call = stub::call("ploop_create_temporary_snapshot");
        assert_eq!(call.text("param.guid"), Some(&*guid.to_string()));
        assert_eq!(call.text("param.component_name"), Some("backup"));
        assert_eq!(call.text("param.target"), text(&target));
        assert_eq!(call.text("param.snap_dir"), text(&directory));
        assert_eq!(call.is_null("holder_fd"), !hold);
        let named = ["guid", "component_name", "target", "snap_dir"];
        call.assert_rest_is_zero("param", &named);
    }
}

fn switch() {
    let (_dir, mut image, guids) = image();
    script("");
    image.switch_snapshot(guids[0]).unwrap();
    let call = stub::call("ploop_switch_snapshot_ex");
    assert_eq!(call.text("param.guid"), Some(&*guids[0].to_string()));
    call.assert_rest_is_zero("param", &["guid"]);
    script("");
    let kept = image
        .switch_snapshot_with(guids[1], SwitchFlag::SKIP_DESTROY)
        .unwrap()
        .unwrap();
    let call = stub::call("ploop_switch_snapshot_ex");
    // Without a name for it two deltas would be the top (27).
    assert_eq!(call.text("param.guid_old"), Some(&*kept.to_string()));
    let flag = i64::from(sys::PLOOP_SNAP_SKIP_TOPDELTA_DESTROY);
    assert_eq!(call.number("param.flags"), flag);
    call.assert_rest_is_zero("param", &["guid", "guid_old", "flags"]);
    let descriptor = image.descriptor().unwrap();
    assert!(descriptor.snapshot(kept).is_some());
}

fn delete() {
    let (dir, mut image, guids) = image();
    script("");
    image.delete_snapshot(guids[0]).unwrap();
    let call = stub::call("ploop_delete_snapshot");
    assert_eq!(call.text("guid"), Some(&*guids[0].to_string()));
    assert_eq!(image.descriptor().unwrap().images.len(), 2);
    // The top, too, is named: C's own function for that looks for it before it has read the descriptor.
    script("");
    image.delete_top_delta().unwrap();
    let call = stub::call("ploop_delete_snapshot");
    assert_eq!(call.text("guid"), Some(disk::TOP));
    assert_eq!(image.descriptor().unwrap().images.len(), 1);
    assert!(!dir.path().join("root.hds.2").exists());
}

fn merge() {
    let (dir, mut image, guids) = image();
    script("");
    let new = dir.path().join("new.hds");
    let param = MergeParam::new(MergeTarget::Snapshot(guids[1]));
    image.merge(&param).unwrap();
    let call = stub::call("ploop_merge_snapshot");
    assert_eq!(call.text("param.guid"), Some(&*guids[1].to_string()));
    call.assert_rest_is_zero("param", &["guid"]);
    script("ploop_merge_snapshot code 38\n");
    let param = MergeParam::new(MergeTarget::Top).new_delta(&new);
    image.merge(&param).unwrap_err();
    let call = stub::call("ploop_merge_snapshot");
    assert_eq!(call.text("param.guid"), Some(disk::TOP));
    assert_eq!(call.text("param.new_delta"), text(&new));
    call.assert_rest_is_zero("param", &["guid", "new_delta"]);
}

fn replace() {
    let (dir, mut image, guids) = image();
    let (old, new) = (dir.path().join("root.hds.1"), dir.path().join("new.hds"));
    for flags in [ReplaceFlag::empty(), ReplaceFlag::KEEP_NAME] {
        let old = match flags.is_empty() {
            true => old.clone(),
            false => dir.path().join("new.hds"),
        };
        let new = match flags.is_empty() {
            true => new.clone(),
            false => dir.path().join("newer.hds"),
        };
        fs::copy(&old, &new).unwrap();
        script("");
        let param = ReplaceParam::new(&new, ReplaceTarget::File(old)).flags(flags);
        image.replace(&param).unwrap();
        let call = stub::call("ploop_replace_image");
        assert_eq!(call.text("param.file"), text(&new));
        // By GUID: C looks a name up in one directory and uses it in another.
        assert_eq!(call.text("param.guid"), Some(&*guids[1].to_string()));
        assert_eq!(call.number("param.flags"), i64::from(flags.bits()));
        call.assert_rest_is_zero("param", &["file", "guid", "flags"]);
    }
}

fn convert() {
    let (_dir, mut image, _) = image();
    script("");
    image.convert(ImageMode::Preallocated).unwrap();
    let call = stub::call("ploop_convert_image");
    let mode = i64::from(sys::PLOOP_EXPANDED_PREALLOCATED_MODE);
    assert_eq!((call.number("mode"), call.number("flags")), (mode, 0));
}

fn max_delta_size() {
    let (_dir, mut image, _) = image();
    script("");
    image.set_max_delta_size(Size::from_sectors(77)).unwrap();
    assert_eq!(stub::call("ploop_set_max_delta_size").number("size"), 77);
    script("");
    image.set_max_delta_size(None).unwrap();
    assert_eq!(stub::call("ploop_set_max_delta_size").number("size"), 0);
}

fn discard() {
    let (_dir, mut image, _) = image();
    script("ploop_discard code 0\n");
    let stop = StopFlag::new();
    let param = DiscardParam::new()
        .min_length(Size::from_mib(2))
        .to_free(Size::from_mib(3))
        .automount(true)
        .defrag(true)
        .stop(&stop);
    image.discard(&param).unwrap();
    let call = stub::call("ploop_discard");
    assert_eq!(call.number("param.minlen_b"), 2 << 20);
    assert_eq!(call.number("param.to_free"), 3 << 20);
    assert_eq!(call.number("param.automount"), 1);
    assert_eq!(call.number("param.defrag"), 1);
    assert!(!call.is_null("param.stop"));
    let named = ["minlen_b", "to_free", "automount", "defrag", "stop"];
    call.assert_rest_is_zero("param", &named);
    script("ploop_discard code 0\n");
    image.discard(&DiscardParam::new()).unwrap();
    let call = stub::call("ploop_discard");
    assert!(call.is_null("param.stop"));
    call.assert_rest_is_zero("param", &[]);
}

/// Each number comes from the member of its name. C writes a structure that has grown within the line.
fn discard_stat() {
    let (_dir, image, _) = image();
    let lines = "ploop_discard_get_stat does writes_on\n";
    stub::with_device(image, |image| {
        script(&format!(
            "{lines}\
         ploop_discard_get_stat out pd_stat.data_size 1\n\
         ploop_discard_get_stat out pd_stat.ploop_size 2\n\
         ploop_discard_get_stat out pd_stat.image_size 3\n\
         ploop_discard_get_stat out pd_stat.balloon_size 4\n\
         ploop_discard_get_stat out pd_stat.native_discard 5\n",
        ));
        let stat = image.discard_stat().unwrap();
        let sizes = [
            stat.data_size,
            stat.ploop_size,
            stat.image_size,
            stat.balloon_size,
        ];
        assert_eq!(sizes, [1, 2, 3, 4].map(Size::from_bytes));
        let call = stub::call("ploop_discard_get_stat");
        assert_eq!(
            call.bytes("pd_stat").len(),
            size_of::<sys::ploop_discard_stat>()
        );
    });
}

fn fs_info() {
    let (_dir, image, _) = image();
    script(
        "ploop_get_info_by_descr code 0\n\
         ploop_get_info_by_descr out info.fs_bsize 4096\n\
         ploop_get_info_by_descr out info.fs_blocks 5000000000\n\
         ploop_get_info_by_descr out info.fs_bfree 3\n\
         ploop_get_info_by_descr out info.fs_inodes 4\n\
         ploop_get_info_by_descr out info.fs_ifree 5\n",
    );
    let info = ploop::fs_info(image.path()).unwrap();
    let call = stub::call("ploop_get_info_by_descr");
    assert_eq!(info.block_size, 4096);
    assert_eq!((info.blocks, info.blocks_free), (5_000_000_000, 3));
    assert_eq!((info.inodes, info.inodes_free), (4, 5));
    assert_eq!(call.bytes("info").len(), size_of::<sys::ploop_info>());
}

/// An image of each kind, without a file system. What was made is read by the crate.
fn create() {
    for (number, mode) in [ImageMode::Expanded, ImageMode::Preallocated]
        .into_iter()
        .enumerate()
    {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("root-ä.hds");
        script("");
        let param = CreateParam::new(&file, SIZE)
            .mode(mode)
            .cluster(ClusterSize::from_bytes(128 << 10).unwrap())
            .flags(CreateFlags::NO_LAZY)
            .fs_block_size(2048)
            .without_partition(true)
            .format(FormatVersion::V1)
            .fs(None);
        let image = Ploop::create(&param).unwrap();
        let call = stub::call("ploop_create_image");
        let made = call.text("param.image").unwrap();
        assert!(made.starts_with(dir.path().to_str().unwrap()), "{made}");
        assert!(made.ends_with("/root-ä.hds"), "{made}");
        assert_eq!(
            call.number("param.size"),
            i64::try_from(SIZE.sectors()).unwrap()
        );
        assert_eq!(call.number("param.mode"), i64::try_from(number).unwrap());
        assert_eq!(call.number("param.blocksize"), 256);
        assert_eq!(call.number("param.fsblocksize"), 2048);
        assert_eq!(call.number("param.without_partition"), 1);
        assert_eq!(call.number("param.fmt_version"), 1);
        assert_eq!(
            call.number("param.flags"),
            i64::from(sys::PLOOP_CREATE_NOLAZY)
        );
        let named = [
            "image",
            "size",
            "mode",
            "blocksize",
            "fsblocksize",
            "without_partition",
            "fmt_version",
            "flags",
        ];
        call.assert_rest_is_zero("param", &named);
        assert_eq!(image.descriptor().unwrap().size, SIZE);
        assert_eq!(image.top_delta_file().unwrap(), file);
    }
    // A file system is named. It is made in an image that is bare at first, and attached under a name: then libploop
    // does not rewrite it to format v2.
    let dir = tempfile::tempdir().unwrap();
    script("ploop_init_image code 24\n");
    let param = CreateParam::new(dir.path().join("root.hds"), Size::from_gib(1));
    let error = Ploop::create(&param.format(FormatVersion::V1)).unwrap_err();
    assert_eq!(error.code(), Some(24), "{error}");
    assert!(stub::call("ploop_create_image").is_null("param.fstype"));
    let call = stub::call("ploop_init_image");
    assert_eq!(call.text("param.fstype"), Some("ext4"));
    assert!(call.component().unwrap().starts_with("create-"));
}

/// What [`init`] and [`init_of_a_device`] ask for.
fn init_param() -> InitParam {
    InitParam::new()
        .fs_label("data")
        .fs_block_size(1024)
        .without_partition(true)
        .flags(CreateFlags::NO_LAZY)
}

#[track_caller]
fn assert_is_init_param(call: &stub::Call) {
    assert_eq!(call.text("param.fstype"), Some("ext4"));
    assert_eq!(call.text("param.fslabel"), Some("data"));
    assert_eq!(call.number("param.fsblocksize"), 1024);
    assert_eq!(call.number("param.without_partition"), 1);
    let flags = i64::from(CreateFlags::NO_LAZY.bits());
    assert_eq!(call.number("param.flags"), flags);
}

fn init() {
    let dir = tempfile::tempdir().unwrap();
    script("");
    let file = dir.path().join("root.hds");
    let param = CreateParam::new(&file, Size::from_gib(1));
    let mut image = Ploop::create(&param.format(FormatVersion::V1).fs(None)).unwrap();
    script("ploop_init_image code 0\n");
    image.init(&init_param()).unwrap();
    let call = stub::call("ploop_init_image");
    assert_is_init_param(&call);
    // Under a name, as for a creation, so that libploop does not rewrite the image to format v2.
    assert!(call.component().is_some());
    assert_eq!(Header::read(&file).unwrap().version, FormatVersion::V1);
    script("ploop_init_image code 24\n");
    let error = image.init(&init_param()).unwrap_err();
    assert_eq!(error.code(), Some(24), "{error}");

    // Over data there is no file system made.
    let mut full = Delta::new(FormatVersion::V1, 1 << 20, 1 << 30);
    full.clusters.push((0, 1));
    full.write(&file);
    script("ploop_init_image code 0\n");
    let error = image.init(&init_param()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    stub::assert_not_called();
}

fn init_of_a_device() {
    let (_dir, image, _) = image();
    stub::with_device(image, |_| {
        let node = Path::new("/dev/ploop7");
        mounts::hide_devices();
        let device = File::create(node).unwrap();
        script("ploop_init_device code 0\n");
        let stopped = init_device(node, &init_param()).unwrap_err();
        assert_eq!(stopped.kind(), ErrorKind::NotMounted, "{stopped}");
        device.set_len(1 << 30).unwrap();
        init_device(node, &init_param()).unwrap();
        let call = stub::call("ploop_init_device");
        assert_eq!(call.text("device"), Some("/dev/ploop7"));
        assert_is_init_param(&call);

        for at in [0, 4095, (1 << 30) - 1] {
            device.write_all_at(&[1], at).unwrap();
            script("ploop_init_device code 0\n");
            let error = init_device(node, &init_param()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{at}: {error}");
            assert!(error.message().contains(&at.to_string()), "{error}");
            stub::assert_not_called();
            device.write_all_at(&[0], at).unwrap();
        }
        script("ploop_init_device code 24\n");
        let error = init_device(node, &init_param()).unwrap_err();
        assert_eq!(error.code(), Some(24), "{error}");
    });
}

fn create_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    script("");
    let param = disk::param(dir.path());
    let image = Ploop::create_descriptor(dir.path().join("a.xml"), &param).unwrap();
    let call = stub::call("ploop_create_dd");
    // In a directory of its own, from which it is moved.
    let made = call.text("ddxml").unwrap();
    assert!(made.starts_with(dir.path().to_str().unwrap()), "{made}");
    assert!(made.ends_with("/DiskDescriptor.xml"), "{made}");
    let made = call.text("param.image").unwrap();
    assert!(made.ends_with("/root.hds"), "{made}");
    assert_eq!(
        call.number("param.size"),
        i64::try_from(SIZE.sectors()).unwrap()
    );
    assert_eq!(image.top_delta_file().unwrap(), dir.path().join("root.hds"));
}

fn devices_by_mount_point() {
    script(
        "ploop_get_dev_by_mnt out buf /dev/ploop5\n\
         ploop_get_partition_by_mnt out buf /dev/ploop5p1\n",
    );
    let dir = tempfile::tempdir().unwrap();
    let target = &*dir.path().join("mnt-ä");
    fs::create_dir(target).unwrap();
    let device = device::by_mount_point(target).unwrap();
    assert_eq!(device.as_deref(), Some(Path::new("/dev/ploop5")));
    let partition = device::partition_by_mount_point(target).unwrap();
    assert_eq!(partition.as_deref(), Some(Path::new("/dev/ploop5p1")));
    for function in ["ploop_get_dev_by_mnt", "ploop_get_partition_by_mnt"] {
        assert_eq!(stub::call(function).text("path"), text(target));
    }
    script("ploop_get_dev_by_mnt code 1\nploop_get_partition_by_mnt code 1\n");
    assert_eq!(device::by_mount_point(target).unwrap(), None);
    assert_eq!(device::partition_by_mount_point(target).unwrap(), None);
}

fn max_size() {
    script("ploop_get_max_size out max 123456\n");
    let cluster = ClusterSize::from_bytes(64 << 10).unwrap();
    assert_eq!(
        ploop::kernel::max_size(cluster).unwrap(),
        Size::from_sectors(123_456)
    );
    assert_eq!(stub::call("ploop_get_max_size").number("blocksize"), 128);
}

fn top_delta_of_a_device() {
    script(
        "ploop_find_top_delta_name_and_format out image /ä/root.hds\n\
         ploop_find_top_delta_name_and_format out format ploop1\n",
    );
    let top = device::top_delta("/dev/ploop5").unwrap();
    assert_eq!(
        (top.file.as_path(), &*top.format),
        (Path::new("/ä/root.hds"), "ploop1")
    );
    let call = stub::call("ploop_find_top_delta_name_and_format");
    assert_eq!(call.text("device"), Some("/dev/ploop5"));
    assert!(call.number("image_size") >= 4096 && call.number("format_size") > 0);
}

/// One handle for each call, of the descriptor's own path for changes, closed whatever came of the call.
fn every_handle_is_closed_and_has_its_path() {
    let (dir, mut image, guids) = image();
    // By way of a link: C works on the file that the crate has checked.
    let link = dir.path().join("link.xml");
    std::os::unix::fs::symlink(image.path(), &link).unwrap();
    let mut linked = Ploop::open(&link).unwrap();
    script("ploop_merge_snapshot code 6\n");
    linked.snapshot().unwrap();
    image.merge(&MergeParam::new(MergeTarget::Top)).unwrap_err();
    image.switch_snapshot(guids[0]).unwrap();
    let calls = stub::calls();
    let of = |name: &str| calls.iter().filter(|call| call.function == name).count();
    assert_eq!(of("ploop_open_dd"), of("ploop_close_dd"));
    assert!(of("ploop_open_dd") >= 3);
    for function in [
        "ploop_create_snapshot",
        "ploop_switch_snapshot_ex",
        "ploop_merge_snapshot",
        "ploop_close_dd",
    ] {
        for call in stub::calls_of(function) {
            assert_eq!(call.handle(), disk::descriptor(dir.path()), "{function}");
        }
    }
    // Nothing stays open or locked.
    let lock = File::options()
        .write(true)
        .open(disk::lock_of(dir.path()))
        .unwrap();
    let free = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&lock, free).unwrap();
}
