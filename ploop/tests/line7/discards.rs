//! What the statistics of a discard have with libploop 7.

use crate::container::{Container, SIZE};
use crate::fixture::harness::Test;
use crate::{MOUNTS, is_line_7, tests};

pub(crate) fn tests() -> Vec<Test> {
    tests![MOUNTS => who_gives_back_what_is_discarded_is_known;]
}

fn who_gives_back_what_is_discarded_is_known() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    let stat = guard.discard_stat().unwrap();
    // What the driver says in sysfs: 2 where it does it by itself.
    let device = guard.mounted().device.file_name().unwrap().to_owned();
    let mode = format!(
        "/sys/block/{}/pstate/discard_mode",
        device.to_string_lossy()
    );
    let by_itself = std::fs::read_to_string(mode).is_ok_and(|mode| mode.trim() == "2")
        || std::path::Path::new("/sys/module/ploop/parameters/native_discard_support").exists();
    assert_eq!(stat.native_discard, is_line_7().then_some(by_itself));
    guard.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}
