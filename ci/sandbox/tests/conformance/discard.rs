//! Discards.

use std::fs::{self, File};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crate::driver::{self, Device};
use crate::harness::{Need, Test};
use crate::image::{self, Image, Scratch};
use crate::ioctl::{self, Balloon, FreeBlocks, Relocation, error};
use crate::program::run;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            without_discard_init_blkdiscard_is_0,
            with_discard_init_blkdiscard_blocks_until_fini,
            with_discard_init_blkdiscard_blocks_until_relocation,
            a_second_discard_init_is_ebusy;
        &[Need::Tool] =>
            without_discard_init_fstrim_is_0;
        &[Need::Driver(ZEROS)] =>
            without_discard_init_blkdiscard_frees_nothing,
            without_discard_init_the_data_still_reads_back;
        &[Need::Tool, Need::Driver(ZEROS)] =>
            without_discard_init_fstrim_frees_nothing;
    ]
}

/// Discards and zeros that are written look the same to it.
const ZEROS: &str = "what is discarded is zero, and given back";

/// A device with 4 MiB of ones.
fn written() -> (Scratch, Device) {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16)]);
    device.write(0, 4 << 20, 1);
    (scratch, device)
}

/// Discards in a thread of its own. The answer comes when the driver gives it.
pub(crate) fn discard(device: &Device, offset: u64, len: u64) -> Receiver<ioctl::Result<i32>> {
    let node = ioctl::open(&device.path(), true, false).unwrap();
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let result = ioctl::discard(&node, offset, len);
        drop(node);
        let _ = send.send(result);
    });
    receive
}

const SOON: Duration = Duration::from_secs(10);

/// "Without DISCARD_INIT, BLKDISCARD […] return[s] 0".
fn without_discard_init_blkdiscard_is_0() {
    let (_scratch, device) = written();
    let discarded = discard(&device, 0, 2 << 20).recv_timeout(SOON).unwrap();
    assert_eq!(discarded, Ok(0));
    assert!(device.is(2 << 20, 2 << 20, 1));
}

/// "Without DISCARD_INIT, BLKDISCARD […] free[s] nothing".
fn without_discard_init_blkdiscard_frees_nothing() {
    let (scratch, device) = written();
    let discarded = discard(&device, 0, 4 << 20).recv_timeout(SOON).unwrap();
    assert_eq!(discarded, Ok(0));
    device.detach();
    assert_eq!(image::len(&scratch.path("base")), 5 << 20);
}

/// "(the data still reads back)".
fn without_discard_init_the_data_still_reads_back() {
    let (_scratch, device) = written();
    let discarded = discard(&device, 0, 2 << 20).recv_timeout(SOON).unwrap();
    assert_eq!(discarded, Ok(0));
    assert!(device.is(0, 4 << 20, 1));
}

/// An image from which 10 MiB were removed and trimmed, and the length of its file before.
fn trimmed() -> (Image, u64) {
    let image = Image::new();
    image.mount();
    image.write("kept", 3, 1);
    image.write("removed", 10, 2);
    image.unmount();
    let before = image::len(&image.base());
    image.mount();
    fs::remove_file(image.target().join("removed")).unwrap();
    File::open(image.target()).unwrap().sync_all().unwrap();
    run("fstrim", &[&image.target()]).expect(0);
    image.verify("kept", 3, 1);
    image.unmount();
    (image, before)
}

/// "Without DISCARD_INIT, […] fstrim return[s] 0".
fn without_discard_init_fstrim_is_0() {
    let (image, _) = trimmed();
    image.mount();
    image.verify("kept", 3, 1);
}

/// "Without DISCARD_INIT, […] fstrim […] free[s] nothing".
fn without_discard_init_fstrim_frees_nothing() {
    let (image, before) = trimmed();
    let after = image::len(&image.base());
    assert!(after >= before, "{before} and then {after}");
}

/// "With it, BLKDISCARD blocks until FINI".
fn with_discard_init_blkdiscard_blocks_until_fini() {
    let (_scratch, device) = written();
    assert_eq!(ioctl::discard_init(device.node()), Ok(0));
    let discarded = discard(&device, 0, 2 << 20);
    assert!(discarded.recv_timeout(Duration::from_secs(1)).is_err());
    assert_eq!(ioctl::discard_finish(device.node()), Ok(0));
    // Whatever it is that is answered.
    let _ = discarded.recv_timeout(SOON).expect("it is not answered");
    assert!(device.is(2 << 20, 2 << 20, 1));
}

/// "[…] or relocation."
fn with_discard_init_blkdiscard_blocks_until_relocation() {
    let (scratch, device) = written();
    let node = device.node();
    assert_eq!(ioctl::discard_init(node), Ok(0));
    let discarded = discard(&device, 0, 2 << 20);
    // It may come in parts.
    let mut clusters = 0;
    let answered = loop {
        assert_eq!(ioctl::discard_wait(node), Ok(1));
        assert!(ioctl::filter_free_blocks(node, 0).unwrap() > 0);
        let mut balloon = Balloon::default();
        ioctl::balloon(node, &mut balloon).unwrap();
        let mut free = FreeBlocks {
            count: 16,
            ..FreeBlocks::default()
        };
        ioctl::free_blocks(node, &mut free).unwrap();
        let extents = &free.extents[..free.count as usize];
        clusters += extents.iter().map(|extent| extent[2]).sum::<u32>();
        assert!(discarded.recv_timeout(Duration::from_millis(500)).is_err());
        let mut relocation = Relocation {
            head: balloon.head,
            level: balloon.level,
            ..Relocation::default()
        };
        ioctl::relocate(node, &mut relocation).unwrap();
        match discarded.recv_timeout(Duration::from_secs(2)) {
            Ok(answer) => break answer,
            Err(_) => assert!(clusters < 2, "it is not answered"),
        }
    };
    assert_eq!((answered, clusters), (Ok(0), 2));
    assert_eq!(driver::patiently(|| ioctl::discard_finish(node)), Ok(0));
    // Of the discarded half nothing is known: no extents were named to be moved.
    assert!(device.is(2 << 20, 2 << 20, 1));
    device.detach();
    assert!(image::len(&scratch.path("base")) <= 5 << 20);
}

/// "A second DISCARD_INIT: EBUSY."
fn a_second_discard_init_is_ebusy() {
    let (_scratch, device) = written();
    assert_eq!(ioctl::discard_init(device.node()), Ok(0));
    assert_eq!(ioctl::discard_init(device.node()), error(libc::EBUSY));
    assert_eq!(ioctl::discard_finish(device.node()), Ok(0));
    assert_eq!(ioctl::discard_init(device.node()), Ok(0));
}
