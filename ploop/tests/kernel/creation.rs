//! Images of every kind with a file system, and what is left where none could be made.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use ploop::image::Disk;
use ploop::image::{Header, Partition, PartitionKind};
use ploop::{
    ClusterSize, Code, CreateFlags, CreateParam, ErrorKind, FormatVersion, ImageMode, MountParam,
    Ploop, ResizeMode, Size, device, fs_info,
};

use crate::NEEDS;
use crate::container::{Container, SIZE, assert_detached, partition, refused, tool};
use crate::fixture::harness::{Need, Test};
use crate::fixture::line::{is_7, refuses_full_deltas};
use crate::fixture::mounts;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            an_image_has_a_partition_with_a_file_system,
            version_1_with_small_clusters,
            a_preallocated_image,
            a_raw_image,
            a_disk_without_partition,
            an_image_without_a_file_system_is_mounted_without_a_target,
            file_system_blocks_of_other_sizes,
            inode_tables_are_initialised_at_once,
            room_for_the_journal,
            mke2fs_makes_the_journal_in_so_many_blocks;
        &[Need::Driver, Need::Root, Need::Mounts] =>
            no_room_for_the_journal,
            tmpfs_is_refused;
    ]
}

/// A file through a mount, a snapshot and a second mount.
fn exercise(container: &mut Container, image: &mut Ploop) {
    assert_detached(image);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("before", 3 << 20);
    guard.snapshot().unwrap();
    container.write("after", 2 << 20);
    container.verify(&["after", "before"]);
    guard.umount().unwrap();
    container.verify_image(image, &["after", "before"]);
}

fn partitions(container: &Container) -> Vec<Partition> {
    Disk::open(container.descriptor())
        .unwrap()
        .partitions()
        .unwrap()
}

fn an_image_has_a_partition_with_a_file_system() {
    let (mut container, mut image) = Container::new(SIZE);
    assert_eq!(container.beside(), ["DiskDescriptor.xml", "root.hdd"]);
    let descriptor = image.descriptor().unwrap();
    assert_eq!(
        (descriptor.size, descriptor.mode),
        (SIZE, ImageMode::Expanded)
    );
    assert_eq!(descriptor.cluster, ClusterSize::DEFAULT);
    let header = Header::read(container.base()).unwrap();
    assert_eq!(header.version, FormatVersion::V2);
    assert!(!header.in_use);
    let partitions = partitions(&container);
    assert_eq!(partitions.len(), 1, "{partitions:?}");
    assert!(matches!(partitions[0].kind, PartitionKind::Gpt { .. }));
    assert_eq!(partitions[0].offset, 1 << 20);
    // Empty but for what mkfs writes.
    let used = fs::metadata(container.base()).unwrap().blocks() * 512;
    assert!(used < 160 << 20, "{used}");
    assert_eq!(fs_info(image.path()).unwrap().block_size, 4096);
    exercise(&mut container, &mut image);
    // What is there is left alone.
    let before = fs::read(container.descriptor()).unwrap();
    let again = Ploop::create(&CreateParam::new(container.base(), SIZE));
    refused(again, ErrorKind::AlreadyExists, Code::PARAM);
    assert_eq!(fs::read(container.descriptor()).unwrap(), before);
    container.verify_image(&mut image, &["after", "before"]);
}

fn version_1_with_small_clusters() {
    let cluster = ClusterSize::from_bytes(64 << 10).unwrap();
    let (mut container, mut image) = Container::made(SIZE, |param| {
        param.format(FormatVersion::V1).cluster(cluster)
    });
    let header = Header::read(container.base()).unwrap();
    assert_eq!(
        (header.version, header.cluster),
        (FormatVersion::V1, cluster)
    );
    assert_eq!(image.image_info().unwrap().version, 1);
    exercise(&mut container, &mut image);
    let top = Header::read(image.top_delta_file().unwrap()).unwrap();
    assert_eq!((top.version, top.cluster), (FormatVersion::V1, cluster));
    // It grows as well.
    image
        .resize(Size::from_mib(512), ResizeMode::Offline)
        .unwrap();
    assert_eq!(image.descriptor().unwrap().size, Size::from_mib(512));
    container.verify_image(&mut image, &["after", "before"]);
}

fn a_preallocated_image() {
    if refuses_full_deltas(Path::new(env!("CARGO_TARGET_TMPDIR"))) {
        let (_, error) = Container::refused(SIZE, |param| param.mode(ImageMode::Preallocated));
        assert_eq!(error.code(), Some(Code::PLOOPFMT.get()), "{error}");
        return;
    }
    let (mut container, mut image) =
        Container::made(SIZE, |param| param.mode(ImageMode::Preallocated));
    let allocated = || fs::metadata(container.base()).unwrap().blocks() * 512;
    assert!(allocated() >= SIZE.bytes(), "{}", allocated());
    exercise(&mut container, &mut image);
    assert_eq!(image.descriptor().unwrap().mode, ImageMode::Preallocated);
}

fn a_raw_image() {
    let (mut container, mut image) = Container::made(SIZE, |param| param.mode(ImageMode::Raw));
    let len = |container: &Container| fs::metadata(container.base()).unwrap().len();
    assert_eq!(len(&container), SIZE.bytes());
    let info = image.image_info().unwrap();
    assert_eq!((info.version, info.size()), (0, SIZE));
    if container.is_refused_as_raw(&mut image) {
        return;
    }
    let mut guard = image.mount_guard(&container.param()).unwrap();
    let top = device::top_delta(&guard.mounted().device).unwrap();
    assert_eq!((top.file, &*top.format), (container.base(), "raw"));
    container.write("base", 1 << 20);
    // A delta above it, merged into it while it runs.
    let snapshot = guard.snapshot().unwrap();
    container.write("delta", 2 << 20);
    guard.delete_snapshot(snapshot).unwrap();
    container.verify(&["base", "delta"]);
    assert_eq!(guard.descriptor().unwrap().images.len(), 1);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["base", "delta"]);
    assert_eq!(len(&container), SIZE.bytes());
    assert_eq!(image.descriptor().unwrap().mode, ImageMode::Raw);
}

fn a_disk_without_partition() {
    let (mut container, mut image) = Container::made(SIZE, |param| param.without_partition(true));
    assert_eq!(partitions(&container), []);
    let guard = image.mount_guard(&container.param()).unwrap();
    let device = guard.mounted().device.clone();
    assert_eq!(
        device::partition_by_mount_point(container.target()).unwrap(),
        Some(device.clone())
    );
    assert_eq!(
        device::by_mount_point(container.target()).unwrap(),
        Some(device.clone())
    );
    assert_eq!(
        device::mount_point(&device).unwrap(),
        Some(container.target())
    );
    guard.umount().unwrap();
    exercise(&mut container, &mut image);
}

fn file_system_blocks_of_other_sizes() {
    for bytes in [1024, 2048] {
        let (mut container, mut image) = Container::made(SIZE, |param| param.fs_block_size(bytes));
        let info = fs_info(image.path()).unwrap();
        assert_eq!(info.block_size, u64::from(bytes));
        assert!(info.size() < SIZE && info.free() > Size::from_mib(100));
        exercise(&mut container, &mut image);
    }
}

/// Block groups whose inode table mkfs has written to, of all.
fn initialised(image: &mut Ploop) -> (usize, usize) {
    let guard = image
        .mount_guard(&MountParam::new().read_only(true))
        .unwrap();
    let device = partition(&guard.mounted().device);
    let text = tool("dumpe2fs", &[device.to_str().unwrap()]);
    guard.umount().unwrap();
    let groups = text
        .lines()
        .filter(|line| line.starts_with("Group ") && line.contains("(Blocks "));
    let (done, open): (Vec<&str>, Vec<&str>) =
        groups.partition(|line| line.contains("ITABLE_ZEROED"));
    (done.len(), done.len() + open.len())
}

fn inode_tables_are_initialised_at_once() {
    let (_container, mut lazy) = Container::new(SIZE);
    let (done, all) = initialised(&mut lazy);
    assert!(done < all, "{done} of {all}");
    let (mut container, mut image) =
        Container::made(SIZE, |param| param.flags(CreateFlags::NO_LAZY));
    let (done, all) = initialised(&mut image);
    assert_eq!(done, all);
    exercise(&mut container, &mut image);
}

/// The smallest size works, and so does one that is rounded up to it. What is a cluster below is refused, and
/// nothing is left of it.
fn room_for_the_journal() {
    const KIB: u64 = 1 << 10;
    // The partition of libploop 7 begins at 1 MiB at least.
    let more = |clusters| if is_7() { clusters } else { 0 };
    for (cluster, block, without_partition, smallest) in [
        (32 * KIB, 4096, false, (8451 + more(31)) * 32 * KIB),
        (1024 * KIB, 4096, false, 267 * 1024 * KIB),
        (8192 * KIB, 4096, false, 36 * 8192 * KIB),
        (32 * KIB, 1024, false, (8260 + more(31)) * 32 * KIB),
        (512 * KIB, 2048, true, 523 * 512 * KIB),
    ] {
        let change = |param: CreateParam| {
            param
                .cluster(ClusterSize::from_bytes(cluster).unwrap())
                .fs_block_size(block)
                .without_partition(without_partition)
        };
        let (container, error) = Container::refused(Size::from_bytes(smallest - cluster), change);
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::InvalidInput, Some(Code::PARAM.get())),
            "{error}"
        );
        let named = format!("({smallest} bytes)");
        assert!(error.message().contains(&named), "{smallest}: {error}");
        assert_eq!(container.beside(), [""; 0]);
        assert_eq!(device::find(container.base(), None).unwrap(), None);

        let rounded = Size::from_bytes(smallest - cluster + 512);
        for size in [Size::from_bytes(smallest), rounded] {
            let (mut container, mut image) = Container::made(size, change);
            assert_eq!(image.image_info().unwrap().size().bytes(), smallest);
            exercise(&mut container, &mut image);
        }
    }
    // Without a file system it is another matter.
    let (container, _) = Container::made(Size::from_mib(1), |param| param.fs(None));
    assert_eq!(container.beside(), ["DiskDescriptor.xml", "root.hdd"]);
}

fn an_image_without_a_file_system_is_mounted_without_a_target() {
    let (container, mut image) = Container::made(SIZE, |param| param.fs(None));
    let error = image.mount(&container.param()).unwrap_err();
    let advice = error.advice().unwrap_or_default();
    assert!(advice.contains("without a target"), "{error}");
    assert!(!image.is_mounted().unwrap());
    let mounted = image.mount(&MountParam::new()).unwrap();
    assert!(mounted.device.exists());
    image.umount().unwrap();
}

/// The rule is that of the mke2fs which is here, to the 4 KiB in which it counts.
fn mke2fs_makes_the_journal_in_so_many_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    for (block, blocks) in [(4096, 67_588), (2048, 133_642), (1024, 264_228)] {
        for (blocks, works) in [(blocks, true), (blocks - 4096 / block, false)] {
            let disk = fs::File::create(&file).unwrap();
            disk.set_len(blocks * block).unwrap();
            // As libploop calls it.
            let output = Command::new("mkfs.ext4")
                .args([
                    "-q",
                    "-F",
                    "-j",
                    "-Jsize=128",
                    "-i16384",
                    &format!("-b{block}"),
                ])
                .arg(format!(
                    "-Elazy_itable_init=1,resize={}",
                    ((16u64 << 40) / block).min(u32::MAX.into())
                ))
                .arg(&file)
                .output()
                .unwrap();
            assert_eq!(
                output.status.success(),
                works,
                "{blocks} of {block}: {output:?}"
            );
            if works {
                tool("e2fsck", &["-fn", file.to_str().unwrap()]);
            }
        }
    }
}

/// Where mke2fs has been told to make the journal larger, its words come with what to do.
fn no_room_for_the_journal() {
    mounts::private(|| {
        let directory = tempfile::tempdir().unwrap();
        let configuration = directory.path().join("mke2fs.conf");
        fs::write(
            &configuration,
            "[defaults]\nbase_features = sparse_super,filetype,resize_inode\n[fs_types]\next4 = {\nfeatures = has_journal,fast_commit,extent,64bit\n}\n",
        )
        .unwrap();
        mounts::bind(&configuration, Path::new("/etc/mke2fs.conf")).unwrap();
        let smallest = if is_7() { 8482 } else { 8451 };
        let (container, error) = Container::refused(Size::from_kib(smallest * 32), |param| {
            param.cluster(ClusterSize::MIN)
        });
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Tool, Some(Code::MKFS.get())),
            "{error}"
        );
        assert!(
            error
                .advice()
                .unwrap_or_default()
                .contains("make the image larger"),
            "{error}"
        );
        let words = error.output().unwrap_or_default();
        assert!(words.contains("ournal size too big"), "{words}");
        assert_eq!(container.beside(), [""; 0]);
        assert_eq!(device::find(container.base(), None).unwrap(), None);
    });
}

fn tmpfs_is_refused() {
    mounts::private(|| {
        let (container, _) = Container::refused(Size::from_mib(1), |param| param);
        let target = container.target();
        mounts::tmpfs(&target, 400 << 20);
        let error = Ploop::create(&CreateParam::new(target.join("root.hdd"), SIZE)).unwrap_err();
        assert!(
            matches!(error.code(), Some(1 | 3)),
            "old kernels cannot open it, others cannot attach it: {error}"
        );
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    });
}
