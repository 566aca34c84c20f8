//! Every public data type goes through JSON and comes back, and those that other programs read have
//! the form they expect.
#![cfg(all(feature = "libploop", feature = "serde"))]

use std::fmt::Debug;

use ploop::image::{Geometry, Header, Image, ImageKind, Snapshot};
use ploop::{
    ClusterSize, Code, ComponentName, CreateFlags, CreateParam, Descriptor, DiscardStat,
    FormatVersion, FsInfo, FsType, Guid, ImageInfo, ImageMode, MergeParam, MergeTarget, MountFlags,
    MountParam, Mounted, Ploop, ReplaceFlag, ReplaceParam, ReplaceTarget, ResizeMode, ResizeParam,
    Size, SnapshotParam, SwitchFlag, TemporarySnapshotParam,
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
    shape(FormatVersion::V1, json!("V1"));
    shape(FormatVersion::V2, json!("V2"));
    shape(Code::NOSNAP, json!(43));
    shape(ResizeMode::Online, json!("Online"));
    shape(ImageKind::Compressed, json!("compressed"));
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
    shape(
        DiscardStat {
            data_size: Size::from_kib(1),
            ploop_size: Size::from_kib(2),
            image_size: Size::from_kib(3),
            balloon_size: Size::ZERO,
        },
        json!({ "data_size": 1024, "ploop_size": 2048, "image_size": 3072, "balloon_size": 0 }),
    );
    refused::<FsInfo>(json!({ "block_size": 4096 }));
    refused::<ImageInfo>(json!({ "blocks": -1, "block_size": 1, "version": 1 }));
}

#[test]
fn a_descriptor() {
    let base: Guid = "{0123abcd-4567-89ab-cdef-0123456789ab}".parse().unwrap();
    let image = |guid, name: &str| Image {
        guid,
        file: format!("/vz/{name}").into(),
        kind: ImageKind::Compressed,
    };
    let shot = |guid, parent| Snapshot {
        guid,
        parent,
        temporary: false,
    };
    shape(
        Descriptor {
            size: Size::from_mib(10),
            cluster: ClusterSize::DEFAULT,
            mode: ImageMode::Expanded,
            max_delta_size: None,
            geometry: Geometry {
                cylinders: 40,
                heads: 16,
                sectors: 32,
            },
            images: vec![image(base, "root.hds"), image(Guid::TOP, "top")],
            snapshots: vec![shot(base, Guid::NONE), shot(Guid::TOP, base)],
            top: Guid::TOP,
            encryption: None,
        },
        json!({
            "size": 10_485_760,
            "cluster": 1_048_576,
            "mode": "expanded",
            "max_delta_size": null,
            "geometry": { "cylinders": 40, "heads": 16, "sectors": 32 },
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

#[test]
fn what_was_read_from_a_real_image() {
    let dir = tempfile::tempdir().unwrap();
    let param = CreateParam::new(dir.path().join("root.hds"), Size::from_mib(2)).fs(None);
    let mut ploop = Ploop::create(&param).unwrap();
    ploop.snapshot().unwrap();
    round_trip(ploop.descriptor().unwrap());
    round_trip(ploop.image_info().unwrap());
    round_trip(Header::read(ploop.top_delta_file().unwrap()).unwrap());
}
