//! Operations that need the driver, on a machine that has none: each says so, and leaves the image as
//! it was. On a machine with a driver these tests are shown as ignored.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use ploop::{
    CreateParam, DiscardParam, Error, ErrorKind, ImageMode, MountParam, Ploop, ReplaceParam,
    ReplaceTarget, ResizeMode, ResizeParam, Size, TemporarySnapshotParam, copy, device, fs_info,
};

mod filled_image;
#[path = "fixture/line.rs"]
mod line;

use filled_image::{FilledImage, names_in};

type Test = fn(&mut FilledImage) -> Result<(), Error>;

fn main() -> ExitCode {
    let tests: &[(&str, ErrorKind, Test)] = &[
        ("mount", ErrorKind::NoDriver, |filled| {
            filled.ploop.mount(&MountParam::new()).map(drop)
        }),
        ("mount_on_a_target", ErrorKind::NoDriver, |filled| {
            let target = tempfile::tempdir().unwrap();
            let param = MountParam::new().target(target.path()).fsck(true);
            filled.ploop.mount(&param).map(drop)
        }),
        ("mount_under_a_component", ErrorKind::NoDriver, |filled| {
            let param = MountParam::new().component("name".parse()?);
            let result = filled.ploop.mount(&param).map(drop);
            // What failed gave the handle no name.
            assert_eq!(filled.ploop.component(), None);
            result
        }),
        ("mount_a_snapshot", ErrorKind::NoDriver, |filled| {
            let guid = filled.snapshot();
            let param = MountParam::new().snapshot(guid).read_only(true);
            filled.ploop.mount(&param).map(drop)
        }),
        ("mount_guard", ErrorKind::NoDriver, |filled| {
            filled.ploop.mount_guard(&MountParam::new()).map(drop)
        }),
        ("umount", ErrorKind::NotMounted, |filled| {
            let result = filled.ploop.umount();
            assert!(result.as_ref().unwrap_err().is_not_mounted());
            result
        }),
        ("umount_a_device", ErrorKind::NoDriver, |_| {
            device::umount("/dev/ploop0")
        }),
        ("resize_online", ErrorKind::NoDriver, |filled| {
            filled.ploop.resize(Size::from_mib(8), ResizeMode::Online)
        }),
        ("resize_offline", ErrorKind::NoDriver, |filled| {
            filled.ploop.resize(Size::from_mib(8), ResizeMode::Offline)
        }),
        ("resize_to_the_minimum", ErrorKind::NoDriver, |filled| {
            let param = ResizeParam::to_minimum(ResizeMode::Offline);
            filled.ploop.resize_with(&param)
        }),
        ("create_with_a_file_system", ErrorKind::NoDriver, |_| {
            let dir = tempfile::tempdir().unwrap();
            let param = CreateParam::new(dir.path().join("root.hds"), Size::from_mib(512));
            let result = Ploop::create(&param).map(drop);
            assert!(names_in(dir.path()).is_empty());
            result
        }),
        ("fs_info", ErrorKind::NoDriver, |filled| {
            fs_info(filled.xml()).map(drop)
        }),
        ("temporary_snapshot", ErrorKind::NoDriver, |filled| {
            let param = TemporarySnapshotParam::new("backup".parse()?);
            filled.ploop.temporary_snapshot(&param).map(drop)
        }),
        ("replace_by_level", ErrorKind::InvalidInput, |filled| {
            let elsewhere = tempfile::tempdir().unwrap();
            let copy = elsewhere.path().join("copy");
            fs::copy(filled.path("root.hds"), &copy).unwrap();
            let param = ReplaceParam::new(&copy, ReplaceTarget::Level(0));
            filled.ploop.replace(&param)
        }),
        ("discard", ErrorKind::NotMounted, |filled| {
            filled.ploop.discard(&DiscardParam::new())
        }),
        ("discard_with_a_mount", ErrorKind::NoDriver, |filled| {
            filled.ploop.discard(&DiscardParam::new().automount(true))
        }),
        ("discard_stat", ErrorKind::NotMounted, |filled| {
            filled.ploop.discard_stat().map(drop)
        }),
        ("send", ErrorKind::NoDriver, |_| {
            let (output, _input) = UnixStream::pair().unwrap();
            copy::send("/dev/ploop0", &output, None)
        }),
        ("mount_point", ErrorKind::NotFound, |_| {
            device::mount_point("/dev/ploop0").map(drop)
        }),
        ("top_delta", ErrorKind::NoDriver, |_| {
            device::top_delta("/dev/ploop0").map(drop)
        }),
    ];
    let arguments = Arguments::from_args();
    let present = ploop::kernel::is_driver_present();
    if present {
        eprintln!("without_driver: all ignored, a ploop driver is loaded");
    }
    let trials = tests
        .iter()
        .map(|(name, kind, test)| {
            Trial::test(*name, move || refused(*kind, *test)).with_ignored_flag(present)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn refused(kind: ErrorKind, test: Test) -> Result<(), Failed> {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.write([(1, 1), (20, 2)]);
    let before = files(&filled);
    let error = test(&mut filled).unwrap_err();
    if error.kind() != kind {
        return Err(format!("{:?}, not {kind:?}: {error}", error.kind()).into());
    }
    let advice = error.advice().unwrap_or_default();
    if kind == ErrorKind::NoDriver && !advice.contains("ploop::load_kernel_modules()") {
        return Err(format!("no advice: {error}").into());
    }
    let mut after = files(&filled);
    // A snapshot was made on the way.
    if filled.states.len() == 1 {
        assert_eq!(names(&before), names(&after));
        after.retain(|name, contents| before.get(name) != Some(contents));
        assert!(after.is_empty(), "{:?} changed", names(&after));
    }
    filled.verify();
    Ok(())
}

fn files(filled: &FilledImage) -> BTreeMap<String, Vec<u8>> {
    let read = |name: String| {
        let mut contents = fs::read(filled.path(&name)).unwrap();
        if name == "root.hds" {
            // What the header says of use and emptiness may change on the way: a temporary snapshot
            // that cannot be attached is merged again.
            contents[44..48].fill(0);
            contents[52..56].fill(0);
        }
        (name, contents)
    };
    filled.names().into_iter().map(read).collect()
}

fn names(files: &BTreeMap<String, Vec<u8>>) -> Vec<&String> {
    files.keys().collect()
}
