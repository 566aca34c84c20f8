//! What the crate says of the libploop it has.

use std::path::Path;

use ploop::{Feature, FormatVersion, capabilities};

use crate::fixture::harness::Test;
use crate::{is_line_7, tests};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] => features_are_those_of_the_version_that_is_loaded, tools_are_where_libploop_looks;
    ]
}

/// `7.0.95` is less than `7.0.163.2`.
fn numbers(version: &str) -> Vec<u32> {
    version.split('.').filter_map(|n| n.parse().ok()).collect()
}

fn features_are_those_of_the_version_that_is_loaded() {
    let here = capabilities();
    assert_eq!(here.library.soname, ploop::sys::SONAME);
    assert_eq!(here.library.line, if is_line_7() { 7 } else { 1 });
    assert_eq!(here.library.version, ploop::kernel::library_version());
    assert_eq!(here.driver.present, ploop::kernel::is_driver_present());
    assert!(here.formats.contains(&FormatVersion::V1));
    let large = here.formats.contains(&FormatVersion::V2);
    assert_eq!(large, here.driver.large_disks);
    if !is_line_7() {
        assert_eq!(here.features, []);
        return;
    }
    let file = here.library.file.as_ref().unwrap().canonicalize().unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let loaded = numbers(name.trim_start_matches("libploop.so."));
    // A name such as `libploop.so.7` does not tell the version.
    if loaded.len() < 3 {
        println!("{} does not tell its version", file.display());
        return;
    }
    for (feature, since) in [
        (Feature::UmountTimeout, "7.0.95"),
        (Feature::Tracking, "7.0.95"),
        (Feature::FsckFlags, "7.0.163.2"),
        (Feature::ReadOnlyFsck, "7.0.277.1"),
        (Feature::NoProbe, "7.0.277.1"),
        (Feature::Suspend, "7.0.226"),
        (Feature::Init, "7.0.106"),
        (Feature::Volumes, "7.0.104"),
    ] {
        assert_eq!(here.has(feature), loaded >= numbers(since), "{feature}");
    }
    assert!(Feature::ALL.iter().any(|feature| here.has(*feature)));
}

fn tools_are_where_libploop_looks() {
    let tools = capabilities().tools;
    let names: Vec<&str> = tools.iter().map(|tool| &*tool.name).collect();
    assert!(names.contains(&"mkfs.ext4"));
    assert_eq!(names.contains(&"sgdisk"), is_line_7());
    for tool in &tools {
        if let Some(path) = &tool.path {
            assert!(path.ends_with(&tool.name) && path.exists(), "{tool:?}");
        } else {
            assert!(!Path::new("/sbin").join(&tool.name).exists(), "{tool:?}");
        }
    }
}
