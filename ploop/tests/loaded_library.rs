//! The library that is loaded is of another line than the one that the program was built with: every call of libploop is
//! refused, and none is made. A small library that the dynamic linker loads first plays the other line.
#![cfg(feature = "libploop")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ploop::{
    ClusterSize, CreateParam, Error, ErrorKind, Guid, ImageMode, MergeParam, MergeTarget,
    MountParam, Ploop, Size, device, fs_info, kernel, sys,
};

/// The directory of an image, where this program runs with the other library.
const IMAGE: &str = "PLOOP_TEST_IMAGE";

/// A library that exports functions of these names. Each ends the program that calls it.
fn library(dir: &Path, names: &[String]) -> PathBuf {
    let (source, library) = (dir.join("other.c"), dir.join(sys::SONAME));
    let functions = names
        .iter()
        .map(|name| format!("void {name}(void) {{ abort(); }}\n"));
    let text: String = std::iter::once("void abort(void);\n".to_owned())
        .chain(functions)
        .collect();
    std::fs::write(&source, text).unwrap();
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .expect("this test needs a C compiler (cc)");
    assert!(status.success());
    library
}

/// All bytes of an image's files.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // The lock is taken before the library is called.
        .filter(|path| path.extension().is_none_or(|end| end != "lck"))
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

/// The functions of libploop that this program is linked to.
fn linked_functions() -> Vec<String> {
    let output = Command::new("nm")
        .args(["-D", "--undefined-only", "-j"])
        .arg(std::env::current_exe().unwrap())
        .output()
        .expect("this test needs nm (binutils)");
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter(|name| name.starts_with("ploop_"));
    names.map(str::to_owned).collect()
}

/// Runs a test of this program again with an image that libploop has made, and with a library: before libploop
/// (`LD_PRELOAD`), or in its place (`LD_LIBRARY_PATH`).
fn run_with(variable: &str, names: &[String], test: &str) {
    let (dir, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = image.path().join("root.hds");
    let param = CreateParam::new(file, Size::from_mib(16)).fs(None);
    let mut ploop = Ploop::create(&param).unwrap();
    ploop.snapshot().unwrap();
    let before = contents(image.path());

    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(
            variable,
            match variable {
                "LD_PRELOAD" => library(dir.path(), names),
                _ => library(dir.path(), names).parent().unwrap().to_owned(),
            },
        )
        .env(IMAGE, image.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(contents(image.path()), before);
}

/// Every call is refused, with an error that names both libraries.
fn all_calls_are_refused(image: &Path, loaded: &str) {
    let refused = |name: &str, result: Result<(), Error>| {
        let error = result.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
        let text = error.to_string();
        let built = format!("built for libploop {} ({})", sys::VERSION, sys::SONAME);
        assert!(
            text.contains(&built) && text.contains(loaded),
            "{name}: {text}"
        );
    };

    let empty = tempfile::tempdir().unwrap();
    let param = CreateParam::new(empty.path().join("root.hds"), Size::from_mib(16)).fs(None);
    refused("create", Ploop::create(&param).map(drop));
    assert!(contents(empty.path()).is_empty());
    refused("max size", kernel::max_size(ClusterSize::DEFAULT).map(drop));

    let xml = image.join("DiskDescriptor.xml");
    let mut ploop = Ploop::open(&xml).unwrap();
    let snapshot = ploop.descriptor().unwrap().snapshots[0].guid;
    refused("mount", ploop.mount(&MountParam::new()).map(drop));
    refused("umount", ploop.umount());
    refused("snapshot", ploop.snapshot().map(drop));
    refused("switch", ploop.switch_snapshot(snapshot));
    refused("delete", ploop.delete_snapshot(snapshot));
    let merge = MergeParam::new(MergeTarget::Top);
    refused("merge", ploop.merge(&merge).map(drop));
    refused("limit", ploop.set_max_delta_size(Size::from_mib(1)));
    refused("convert", ploop.convert(ImageMode::Preallocated));
    refused("info", fs_info(&xml).map(drop));
    refused("device", device::umount("/dev/ploop0"));
    // What needs no libploop goes on.
    assert_ne!(snapshot, Guid::TOP);
}

fn child() -> Option<PathBuf> {
    std::env::var_os(IMAGE).map(PathBuf::from)
}

/// The functions by which the lines are told, of a line other than the one that is linked. With a library that lacks
/// functions which this program is linked to, as line 1 for one of line 7, it would not even start.
fn other_line() -> (&'static [&'static str], &'static str) {
    if sys::SONAME == "libploop.so.1" {
        (
            &["ploop_set_umount_timeout", "ploop_volume_create"],
            "libploop 7.0",
        )
    } else {
        (&["ploop_dm_message"], "libploop 8 or 9")
    }
}

/// The function that only a line other than the one that is linked has.
fn of_other_line() -> String {
    let name = if sys::SONAME == "libploop.so.1" {
        "ploop_set_umount_timeout"
    } else {
        "ploop_store_diskdescriptor"
    };
    name.to_owned()
}

#[test]
#[cfg_attr(libploop_static, ignore = "libploop is part of this program")]
fn another_line_in_the_place_of_the_own_is_refused() {
    let (markers, loaded) = other_line();
    if let Some(image) = child() {
        return all_calls_are_refused(&image, loaded);
    }
    let mut names = linked_functions();
    assert!(names.len() > 10, "{names:?}");
    names.extend(markers.iter().map(|name| (*name).to_owned()));
    run_with(
        "LD_LIBRARY_PATH",
        &names,
        "another_line_in_the_place_of_the_own_is_refused",
    );
}

#[test]
#[cfg_attr(libploop_static, ignore = "libploop is part of this program")]
fn another_line_before_the_own_is_refused() {
    if let Some(image) = child() {
        return all_calls_are_refused(&image, "more than one libploop, of different lines");
    }
    run_with(
        "LD_PRELOAD",
        &[of_other_line()],
        "another_line_before_the_own_is_refused",
    );
}
