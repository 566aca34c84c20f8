//! Every public data type goes through JSON and comes back, and those that other programs read have
//! the form they expect.
#![cfg(all(feature = "libploop", feature = "serde"))]

use std::ffi::OsStr;
use std::fmt::Debug;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ploop::image::{
    Disk, Extent, Finding, Header, Image, ImageKind, Issue, Report, Severity, Snapshot,
};
use ploop::volume::{VolumePlace, VolumeTree};
use ploop::{
    ClusterSize, Code, ComponentName, CreateFlags, CreateParam, Descriptor, DiscardParam,
    DiscardStat, EncryptParam, ErrorKind, Feature, FormatVersion, FsInfo, FsType, FsckFlags, Guid,
    ImageInfo, ImageMode, MergeParam, MergeTarget, MountFlags, MountParam, Mounted, Ploop,
    ReplaceFlag, ReplaceParam, ReplaceTarget, ResizeMode, ResizeParam, Size, SnapshotParam,
    SwitchFlag, TemporarySnapshotParam,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, from_value, json, to_value};

fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) -> Value {
    let text = serde_json::to_string(&value).unwrap();
    assert_eq!(serde_json::from_str::<T>(&text).unwrap(), value, "{text}");
    let json = to_value(&value).unwrap();
    assert_eq!(from_value::<T>(json.clone()).unwrap(), value);
    json
}

#[track_caller]
fn shape<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T, expected: Value) {
    assert_eq!(round_trip(value), expected);
}

#[track_caller]
fn refused<T: DeserializeOwned + Debug>(json: Value) {
    assert!(from_value::<T>(json.clone()).is_err(), "{json}");
}

const TOP: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";

#[test]
fn what_can_be_done() {
    let json = round_trip(ploop::capabilities());
    assert_eq!(json["library"]["soname"], ploop::sys::SONAME);
    assert!(json["tools"][0]["name"].is_string());
    shape(Feature::UmountTimeout, json!("umount_timeout"));
    shape(ErrorKind::NotTracked, json!("not_tracked"));
    for feature in Feature::ALL {
        round_trip(*feature);
    }
}

#[test]
fn volumes() {
    let place = VolumePlace::new("/vz/copy").images("/vz/fast");
    let json = json!({"directory": "/vz/copy", "images": "/vz/fast"});
    shape(place, json);
    let place: VolumePlace = from_value(json!({"directory": "/vz/copy"})).unwrap();
    assert_eq!(place, VolumePlace::new("/vz/copy"));
    refused::<VolumePlace>(json!({"directory": "/vz/copy", "image": "/vz/fast"}));
    let tree = json!({
        "directory": "/vz/monday",
        "children": [{"directory": "/vz/web", "children": []}],
    });
    let read: VolumeTree = from_value(tree.clone()).unwrap();
    assert_eq!(read.children[0].directory, Path::new("/vz/web"));
    shape(read, tree);
}

#[test]
fn small_values() {
    shape(Guid::TOP, json!(TOP));
    assert_eq!(
        from_value::<Guid>(json!("5FBAABE3-6958-40FF-92A7-860E329AAB41")).unwrap(),
        Guid::TOP
    );
    refused::<Guid>(json!("5fbaabe3"));
    refused::<Guid>(json!(5));
    shape(Size::from_mib(1), json!(1_048_576));
    shape(Size::MAX, json!(u64::MAX));
    refused::<Size>(json!(-1));
    shape(ClusterSize::DEFAULT, json!(1_048_576));
    refused::<ClusterSize>(json!(1000));
    shape("backup".parse::<ComponentName>().unwrap(), json!("backup"));
    refused::<ComponentName>(json!(""));
    refused::<ComponentName>(json!("x".repeat(64)));
    shape(ImageMode::Expanded, json!("expanded"));
    shape(ImageMode::Preallocated, json!("preallocated"));
    shape(ImageMode::Raw, json!("raw"));
    shape(FsType::Ext4, json!("ext4"));
    shape(FormatVersion::V1, json!(1));
    shape(FormatVersion::V2, json!(2));
    shape(Code::NOSNAP, json!(43));
    shape(ErrorKind::NoSpace, json!("no_space"));
    shape(ResizeMode::Online, json!("online"));
    shape(Severity::Warning, json!("warning"));
    shape(Issue::SharedCluster, json!("shared_cluster"));
    shape(ImageKind::Compressed, json!("compressed"));
}

/// As people write them in configuration files.
#[test]
fn numbers_may_be_texts() {
    for (text, size) in [
        ("10G", Size::from_gib(10)),
        ("4096", Size::from_bytes(4096)),
    ] {
        assert_eq!(from_value::<Size>(json!(text)).unwrap(), size);
    }
    assert_eq!(
        from_value::<ClusterSize>(json!("1 MiB")).unwrap(),
        ClusterSize::DEFAULT
    );
    for text in ["2", "v2", "V2"] {
        let version = from_value::<FormatVersion>(json!(text)).unwrap();
        assert_eq!(version, FormatVersion::V2);
    }
    refused::<Size>(json!("much"));
    refused::<Size>(json!(1.5));
    refused::<ClusterSize>(json!("3 MiB"));
    for other in [json!("v3"), json!(3), json!(1u64 << 32 | 1), json!(-1)] {
        refused::<FormatVersion>(other);
    }
    let error = from_value::<Size>(json!([])).unwrap_err().to_string();
    assert!(error.contains("a size such as \"10G\""), "{error}");
}

/// What a later version writes is read by this one.
#[test]
fn what_is_not_known_is_left_out() {
    let later = json!("power_failure");
    assert_eq!(from_value::<ErrorKind>(later).unwrap(), ErrorKind::Other);
    let mut info = to_value(FsInfo::default()).unwrap();
    info["later"] = json!([1]);
    assert_eq!(from_value::<FsInfo>(info).unwrap(), FsInfo::default());
    let report = json!({ "findings": [], "later": {} });
    assert_eq!(from_value::<Report>(report).unwrap(), Report::default());
    let mounted = json!({ "device": "/dev/ploop1", "later": true });
    let mounted = from_value::<Mounted>(mounted).unwrap();
    assert_eq!((mounted.fsck, mounted.target), (None, None));
    let finding = json!({ "severity": "note", "issue": "orphan", "message": "one" });
    let finding = from_value::<Finding>(finding).unwrap();
    assert_eq!((finding.file, finding.offset), (None, None));
}

/// Their bytes, where a text cannot have them.
#[test]
fn paths_that_are_not_utf_8() {
    let path = || Path::new(OsStr::from_bytes(b"/\xff"));
    let bytes = || json!([0x2f, 0xff]);
    let image = Image::new(Guid::TOP, path(), ImageKind::Plain);
    assert_eq!(round_trip(image)["file"], bytes());
    let mut report = Report::default();
    report.orphans = vec![path().to_owned(), "/b".into()];
    assert_eq!(round_trip(report)["orphans"], json!([bytes(), "/b"]));
    let finding =
        json!({ "severity": "note", "issue": "orphan", "message": "one", "file": bytes() });
    let finding = from_value::<Finding>(finding).unwrap();
    assert_eq!(finding.file.as_deref(), Some(path()));
    assert_eq!(round_trip(finding)["file"], bytes());
    let mounted = json!({ "device": bytes(), "fsck": null, "target": bytes() });
    shape(from_value::<Mounted>(mounted.clone()).unwrap(), mounted);

    let create = round_trip(CreateParam::new(path(), Size::from_gib(1)));
    assert_eq!(create["file"], bytes());
    assert_eq!(
        round_trip(MountParam::new().target(path()))["target"],
        bytes()
    );
    let merge = MergeParam::new(MergeTarget::All).new_delta(path());
    assert_eq!(round_trip(merge)["new_delta"], bytes());
    let target = ReplaceTarget::File(path().into());
    let replace = round_trip(ReplaceParam::new(path(), target));
    assert_eq!(replace["new_file"], bytes());
    assert_eq!(replace["target"], json!({ "file": bytes() }));
    let snapshot = round_trip(SnapshotParam::new().directory(path()));
    assert_eq!(snapshot["directory"], bytes());
    let param = TemporarySnapshotParam::new("name".parse().unwrap());
    let param = round_trip(param.directory(path()).target(path()));
    assert_eq!(
        (&param["directory"], &param["target"]),
        (&bytes(), &bytes())
    );
    refused::<MountParam>(json!({ "target": 5 }));
    refused::<MountParam>(json!({ "target": [256] }));
}

/// By name, so that a log can be read; what has no name is kept as a number.
#[test]
fn flags() {
    shape(CreateFlags::NO_LAZY, json!("NO_LAZY"));
    shape(CreateFlags::empty(), json!(""));
    shape(SwitchFlag::SKIP_DESTROY, json!("SKIP_DESTROY"));
    shape(SwitchFlag::SKIP_CREATE, json!("SKIP_CREATE"));
    shape(
        SwitchFlag::SKIP_CREATE | SwitchFlag::SKIP_DESTROY,
        json!("SKIP_DESTROY | SKIP_CREATE"),
    );
    shape(ReplaceFlag::KEEP_NAME, json!("KEEP_NAME"));
    shape(MountFlags::NOATIME, json!("NOATIME"));
    shape(SwitchFlag::from_bits_retain(0x10), json!("0x10"));
    refused::<SwitchFlag>(json!("SKIP_EVERYTHING"));
}

#[test]
fn what_images_are_like() {
    shape(
        FsInfo {
            block_size: 4096,
            blocks: 96_200,
            blocks_free: 90_001,
            inodes: 24_576,
            inodes_free: 24_565,
        },
        json!({
            "block_size": 4096,
            "blocks": 96_200,
            "blocks_free": 90_001,
            "inodes": 24_576,
            "inodes_free": 24_565,
        }),
    );
    shape(
        ImageInfo {
            blocks: 20480,
            block_size: 2048,
            version: 2,
        },
        json!({ "blocks": 20480, "block_size": 2048, "version": 2 }),
    );
    let mut stat =
        json!({ "data_size": 1024, "ploop_size": 2048, "image_size": 3072, "balloon_size": 0 });
    let read: DiscardStat = from_value(stat.clone()).unwrap();
    assert_eq!(read.ploop_size, Size::from_kib(2));
    // Of a time when there was no more.
    stat["native_discard"] = Value::Null;
    shape(read, stat);
    refused::<FsInfo>(json!({ "block_size": 4096 }));
    refused::<ImageInfo>(json!({ "blocks": -1, "block_size": 1, "version": 1 }));
}

#[test]
fn a_descriptor() {
    let base: Guid = "{0123abcd-4567-89ab-cdef-0123456789ab}".parse().unwrap();
    let image = |guid, file| Image::new(guid, file, ImageKind::Compressed);
    let mut descriptor = Descriptor::new(Size::from_mib(10), image(base, "/vz/root.hds"));
    descriptor.images.push(image(Guid::TOP, "/vz/top"));
    descriptor.snapshots.push(Snapshot::new(Guid::TOP, base));
    descriptor.top = Guid::TOP;
    shape(
        descriptor,
        json!({
            "size": 10_485_760,
            "cluster": 1_048_576,
            "mode": "expanded",
            "max_delta_size": null,
            "geometry": { "cylinders": 40, "heads": 16, "sectors_per_track": 32 },
            "images": [
                { "guid": base.to_string(), "file": "/vz/root.hds", "kind": "compressed" },
                { "guid": TOP, "file": "/vz/top", "kind": "compressed" },
            ],
            "snapshots": [
                {
                    "guid": base.to_string(),
                    "parent": "{00000000-0000-0000-0000-000000000000}",
                    "temporary": false,
                },
                { "guid": TOP, "parent": base.to_string(), "temporary": false },
            ],
            "top": TOP,
            "encryption": null,
        }),
    );
}

#[test]
fn what_operations_are_told() {
    let name: ComponentName = "name".parse().unwrap();
    let param = CreateParam::new("/vz/root.hds", Size::from_gib(1))
        .mode(ImageMode::Preallocated)
        .flags(CreateFlags::NO_LAZY)
        .format(FormatVersion::V1)
        .fs_block_size(1024)
        .without_partition(true);
    round_trip(param.clone());
    round_trip(param.fs(None));
    round_trip(MountParam::new());
    round_trip(
        EncryptParam::new("key")
            .wipe(true)
            .reencrypt(true)
            .data("a"),
    );
    assert_eq!(round_trip(EncryptParam::decrypt())["key"], Value::Null);
    let labelled = CreateParam::new("/vz/root.hds", Size::from_gib(1));
    round_trip(
        labelled
            .fs_label("data")
            .encryption_key("key")
            .flags(CreateFlags::SPARSE),
    );
    let repair = FsckFlags::FORCE_REPAIR | FsckFlags::FORCE;
    round_trip(MountParam::new().fsck_flags(repair).no_probe(true));
    round_trip(SnapshotParam::new().tracking(Guid::TOP));
    round_trip(TemporarySnapshotParam::new("a".parse().unwrap()).tracking(Guid::TOP));
    round_trip(
        MountParam::new()
            .target("/mnt")
            .snapshot(Guid::TOP)
            .read_only(true)
            .fsck(true)
            .quota(true)
            .flags(MountFlags::NOATIME)
            .data("discard")
            .component(name.clone()),
    );
    round_trip(SnapshotParam::new().guid(Guid::TOP).directory("/vz"));
    round_trip(TemporarySnapshotParam::new(name).target("/mnt").hold(false));
    for target in [
        MergeTarget::Top,
        MergeTarget::Snapshot(Guid::TOP),
        MergeTarget::Range {
            from: Guid::TOP,
            to: Guid::NONE,
        },
        MergeTarget::All,
    ] {
        round_trip(MergeParam::new(target).new_delta("/vz/new"));
    }
    for target in [
        ReplaceTarget::Guid(Guid::TOP),
        ReplaceTarget::File("/vz/old".into()),
        ReplaceTarget::Level(3),
    ] {
        round_trip(ReplaceParam::new("/vz/new", target).flags(ReplaceFlag::KEEP_NAME));
    }
    round_trip(ResizeParam::to(Size::from_gib(1), ResizeMode::Offline).mount_namespace(7));
    round_trip(ResizeParam::to_minimum(ResizeMode::Online));
    shape(
        from_value::<Mounted>(json!({
            "device": "/dev/ploop12345", "fsck": 0, "target": "/mnt"
        }))
        .unwrap(),
        json!({ "device": "/dev/ploop12345", "fsck": 0, "target": "/mnt" }),
    );
}

/// What is not said has the default of the constructor. What is not known is refused: a misspelt `read_only` must not
/// end in a mount for writing.
#[test]
fn what_operations_are_told_in_few_words() {
    #[track_caller]
    fn same<T: DeserializeOwned + PartialEq + Debug>(mut json: Value, expected: T) {
        assert_eq!(from_value::<T>(json.clone()).unwrap(), expected);
        json["readonly"] = json!(true);
        let error = from_value::<T>(json).unwrap_err().to_string();
        assert!(error.contains("unknown field `readonly`"), "{error}");
    }
    let size = Size::from_gib(1);
    same(
        json!({ "file": "/vz/root.hds", "size": size.bytes() }),
        CreateParam::new("/vz/root.hds", size),
    );
    same(
        json!({ "file": "/vz/root.hds", "size": size.bytes(), "fs": null }),
        CreateParam::new("/vz/root.hds", size).fs(None),
    );
    same(json!({}), MountParam::new());
    same(json!({}), SnapshotParam::new());
    let name: ComponentName = "backup".parse().unwrap();
    same(
        json!({ "component": "backup" }),
        TemporarySnapshotParam::new(name),
    );
    let target = to_value(MergeTarget::Top).unwrap();
    same(
        json!({ "target": target }),
        MergeParam::new(MergeTarget::Top),
    );
    let target = ReplaceTarget::Level(0);
    same(
        json!({ "new_file": "/vz/new", "target": to_value(&target).unwrap() }),
        ReplaceParam::new("/vz/new", target),
    );
    let mode = to_value(ResizeMode::Online).unwrap();
    same(
        json!({ "mode": mode, "size": size.bytes() }),
        ResizeParam::to(size, ResizeMode::Online),
    );
    same(
        json!({ "mode": mode, "size": null }),
        ResizeParam::to_minimum(ResizeMode::Online),
    );
    // A size that was forgotten is not the smallest.
    refused::<ResizeParam>(json!({ "mode": mode }));
    let json = to_value(from_value::<DiscardParam>(json!({})).unwrap()).unwrap();
    assert_eq!(json, to_value(DiscardParam::new()).unwrap());
}

#[test]
fn what_was_read_from_a_real_image() {
    let dir = tempfile::tempdir().unwrap();
    let param = CreateParam::new(dir.path().join("root.hds"), Size::from_mib(2)).fs(None);
    let mut ploop = Ploop::create(&param).unwrap();
    ploop.snapshot().unwrap();
    round_trip(ploop.descriptor().unwrap());
    round_trip(ploop.image_info().unwrap());
    let header = round_trip(Header::read(ploop.top_delta_file().unwrap()).unwrap());
    assert_eq!(header["version"], 1);
    assert_eq!(header["size"], 2 << 20);
    assert_eq!(header["first_block_sector"], 2048);
    round_trip(ploop::image::check(ploop.path()));
    let disk = Disk::open(ploop.path()).unwrap();
    let extents: Vec<Extent> = disk.extents().map(Result::unwrap).collect();
    round_trip(extents);
}
