//! Changed-block tracking of running images: what the driver notes, what libploop stores of it when the image is
//! unmounted, and what goes on from there when it is mounted again.

use ploop::image::{Disk, Extent};
use ploop::{ErrorKind, Guid, Ploop, SnapshotParam};

use crate::container::{Container, SIZE};
use crate::fixture::harness::Test;
use crate::{MOUNTS, is_line_7, tests};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        MOUNTS =>
            what_is_written_is_tracked_over_unmounts,
            a_snapshot_of_a_running_image_begins_anew,
            tracking_of_a_running_image_is_dropped;
    ]
}

/// Asserts that the bitmap of a state has every granule in which the state differs from the snapshot, and not all of
/// the disk.
#[track_caller]
fn assert_tracked(image: &Ploop, state: Guid, since: Guid, id: Guid) {
    let bitmap = image.tracking_bitmap(state).unwrap();
    assert_eq!(bitmap.id, id);
    assert_eq!(bitmap.size, SIZE);
    let granularity = bitmap.granularity as usize;
    let open = |guid| Disk::open_snapshot(image.path(), guid).unwrap();
    let (now, before) = (open(state), open(since));
    let (mut new, mut old) = (vec![0; granularity], vec![0; granularity]);
    let mut differing = 0;
    for offset in (0..SIZE.bytes()).step_by(granularity) {
        now.read_at(&mut new, offset).unwrap();
        before.read_at(&mut old, offset).unwrap();
        if new != old {
            differing += 1;
            let end = offset + granularity as u64;
            let is_told = |it: Extent| it.offset <= offset && end <= it.offset + it.len;
            assert!(bitmap.extents().any(is_told), "{offset}");
        }
    }
    assert!(differing > 10, "{differing} granules differ");
    let changed = bitmap.changed().bytes();
    assert!(changed < SIZE.bytes() / 4, "{changed} of {SIZE}");
}

/// A mounted image with a file, of which a snapshot is made that begins to track.
fn tracked() -> Option<(Container, Ploop, Guid, Guid)> {
    let (mut container, mut image) = Container::new(SIZE);
    image.mount(&container.param()).unwrap();
    container.write("before", 4 << 20);
    let id = Guid::generate();
    let snapshot = image.snapshot_with(&SnapshotParam::new().tracking(id));
    if is_line_7() {
        return Some((container, image, snapshot.unwrap(), id));
    }
    let error = snapshot.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    image.umount().unwrap();
    container.verify_image(&mut image, &["before"]);
    assert_eq!(image.snapshots().unwrap(), []);
    None
}

fn what_is_written_is_tracked_over_unmounts() {
    let Some((mut container, mut image, snapshot, id)) = tracked() else {
        return;
    };
    for name in ["one", "two"] {
        container.write(name, 3 << 20);
        image.umount().unwrap();
        assert_tracked(&image, Guid::TOP, snapshot, id);
        image.mount(&container.param()).unwrap();
    }
    // A mount that cannot write changes nothing.
    image.umount().unwrap();
    let guard = image
        .mount_guard(&container.param().read_only(true))
        .unwrap();
    container.verify(&["before", "one", "two"]);
    guard.umount().unwrap();
    assert_tracked(&image, Guid::TOP, snapshot, id);
}

fn a_snapshot_of_a_running_image_begins_anew() {
    let Some((mut container, mut image, first, id)) = tracked() else {
        return;
    };
    container.write("one", 3 << 20);
    let new = Guid::generate();
    let second = image
        .snapshot_with(&SnapshotParam::new().tracking(new))
        .unwrap();
    container.write("two", 3 << 20);
    container.verify(&["before", "one", "two"]);
    image.umount().unwrap();
    assert_tracked(&image, second, first, id);
    assert_tracked(&image, Guid::TOP, second, new);
    container.verify_image(&mut image, &["before", "one", "two"]);
}

fn tracking_of_a_running_image_is_dropped() {
    let Some((mut container, mut image, _, _)) = tracked() else {
        return;
    };
    container.write("one", 1 << 20);
    image.drop_tracking(Guid::TOP).unwrap();
    container.write("two", 1 << 20);
    image.umount().unwrap();
    let error = image.tracking_bitmap(Guid::TOP).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotTracked, "{error}");
    container.verify_image(&mut image, &["before", "one", "two"]);
}
