//! Merges of running chains, in all forms.

use std::io;
use std::path::PathBuf;

use ploop::{
    Code, ComponentName, ErrorKind, Guid, ImageMode, MergeParam, MergeTarget, MountParam, Ploop,
};

use crate::NEEDS;
use crate::container::{Container, SIZE, refused};
use crate::fixture::harness::Test;
use crate::snapshots::verify_snapshot;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            the_top,
            a_snapshot,
            a_range,
            all_of_it,
            to_a_new_delta,
            of_a_raw_image,
            what_cannot_be_merged,
            standard_input_survives;
    ]
}

const ALL: [&str; 4] = ["0", "1", "2", "top"];

/// A running chain of a base, two more snapshots and a top, each with a file of its own.
struct Chain {
    container: Container,
    image: Ploop,
    guids: Vec<Guid>,
}

impl Chain {
    fn new(mode: ImageMode) -> Chain {
        let (container, image) = Container::made(SIZE, |param| param.mode(mode));
        Chain::of(container, image)
    }

    fn of(mut container: Container, mut image: Ploop) -> Chain {
        image.mount(&container.param()).unwrap();
        let mut guids = Vec::new();
        for name in ["0", "1", "2"] {
            container.write(name, 4 << 20);
            guids.push(image.snapshot().unwrap());
        }
        container.write("top", 4 << 20);
        Chain {
            container,
            image,
            guids,
        }
    }

    fn merge(&mut self, param: &MergeParam) {
        let before = self.image.descriptor().unwrap().images;
        self.image.merge(param).unwrap();
        self.container.verify(&ALL);
        let now = self.image.descriptor().unwrap().images;
        for image in &before {
            let used = now.iter().any(|other| other.file == image.file);
            assert_eq!(image.file.exists(), used, "{}", image.file.display());
        }
    }

    /// The chain's files and GUIDs, from the base up.
    fn chain(&mut self) -> (Vec<PathBuf>, Vec<Guid>) {
        let descriptor = self.image.descriptor().unwrap();
        let chain = descriptor.chain(descriptor.top);
        chain
            .iter()
            .map(|image| (image.file.clone(), image.guid))
            .unzip()
    }

    /// It goes on running, and is whole afterwards.
    fn end(mut self) {
        self.container.write("end", 4 << 20);
        self.image.umount().unwrap();
        let names = [&ALL[..], &["end"]].concat();
        self.container.verify_image(&mut self.image, &names);
    }
}

fn the_top() {
    let mut chain = Chain::new(ImageMode::Expanded);
    let (files, _) = chain.chain();
    chain.merge(&MergeParam::new(MergeTarget::Top));
    let (now, guids) = chain.chain();
    assert_eq!(now, files[..3]);
    assert_eq!(guids, [chain.guids[0], chain.guids[1], Guid::TOP]);
    verify_snapshot(&chain.container, chain.guids[1], &["0", "1"]);
    chain.end();
}

fn a_snapshot() {
    for at in [1, 2] {
        let mut chain = Chain::new(ImageMode::Expanded);
        let (mut files, _) = chain.chain();
        chain.merge(&MergeParam::new(MergeTarget::Snapshot(chain.guids[at])));
        files.remove(at);
        let (now, guids) = chain.chain();
        assert_eq!(now, files);
        assert_eq!(guids[at - 1], chain.guids[at]);
        verify_snapshot(&chain.container, chain.guids[at], &ALL[..=at]);
        chain.end();
    }
}

fn a_range() {
    // Below the top, and with it.
    for with_top in [false, true] {
        let mut chain = Chain::new(ImageMode::Expanded);
        let (files, _) = chain.chain();
        let (from, to) = match with_top {
            false => (chain.guids[2], chain.guids[0]),
            true => (Guid::TOP, chain.guids[1]),
        };
        chain.merge(&MergeParam::new(MergeTarget::Range { from, to }));
        let (now, guids) = chain.chain();
        match with_top {
            false => {
                assert_eq!(now, [files[0].clone(), files[3].clone()]);
                assert_eq!(guids, [from, Guid::TOP]);
                verify_snapshot(&chain.container, from, &ALL[..3]);
            }
            true => {
                assert_eq!(now, files[..2]);
                assert_eq!(guids, [chain.guids[0], Guid::TOP]);
                verify_snapshot(&chain.container, chain.guids[0], &ALL[..1]);
            }
        }
        chain.end();
    }
}

fn all_of_it() {
    let mut chain = Chain::new(ImageMode::Expanded);
    chain.merge(&MergeParam::new(MergeTarget::All));
    assert_eq!(chain.chain().0, [chain.container.base()]);
    chain.end();
}

fn to_a_new_delta() {
    for form in 0..5 {
        let mut chain = Chain::new(ImageMode::Expanded);
        let (target, left) = match form {
            0 => (MergeTarget::Top, 3),
            1 => (MergeTarget::Snapshot(chain.guids[1]), 3),
            2 => (MergeTarget::Snapshot(chain.guids[2]), 3),
            3 => (
                MergeTarget::Range {
                    from: chain.guids[2],
                    to: chain.guids[0],
                },
                2,
            ),
            _ => (MergeTarget::All, 1),
        };
        let new = chain.container.path("new.hdd");
        chain.merge(&MergeParam::new(target).new_delta(&new));
        let (files, _) = chain.chain();
        assert_eq!(files.len(), left, "{target:?}");
        assert!(files.contains(&new), "{target:?}: {files:?}");
        chain.end();
    }
}

fn of_a_raw_image() {
    let (container, mut image) = Container::made(SIZE, |param| param.mode(ImageMode::Raw));
    if container.is_refused_as_raw(&mut image) {
        return;
    }
    let mut chain = Chain::of(container, image);
    let new = chain.container.path("new.hdd");
    let into_base = MergeParam::new(MergeTarget::Snapshot(chain.guids[1]));
    refused(
        chain.image.merge(&into_base.clone().new_delta(&new)),
        ErrorKind::Unsupported,
        None,
    );
    chain.merge(&into_base);
    verify_snapshot(&chain.container, chain.guids[1], &ALL[..2]);
    chain.merge(&MergeParam::new(MergeTarget::All));
    assert_eq!(chain.image.descriptor().unwrap().mode, ImageMode::Raw);
    chain.end();
}

fn what_cannot_be_merged() {
    let mut chain = Chain::new(ImageMode::Expanded);
    let (first, second) = (chain.guids[0], chain.guids[1]);
    let unknown = Guid::generate();
    for (target, kind, code) in [
        (
            MergeTarget::Snapshot(first),
            ErrorKind::InvalidInput,
            Code::PARAM,
        ),
        (
            MergeTarget::Range {
                from: first,
                to: second,
            },
            ErrorKind::InvalidInput,
            Code::PARAM,
        ),
        (
            MergeTarget::Snapshot(unknown),
            ErrorKind::NoSnapshot,
            Code::NOSNAP,
        ),
    ] {
        refused(chain.image.merge(&MergeParam::new(target)), kind, code);
        chain.container.verify(&ALL);
    }
    let existing = chain.container.path("mnt");
    let param = MergeParam::new(MergeTarget::All).new_delta(existing);
    refused(chain.image.merge(&param), ErrorKind::AlreadyExists, None);
    // A mounted snapshot is in the way of all that would change it.
    let view = chain.container.view();
    let mut other = Ploop::open(chain.image.path()).unwrap();
    let guard = other
        .mount_guard(
            &MountParam::new()
                .snapshot(second)
                .read_only(true)
                .component(ComponentName::new("view").unwrap())
                .target(&view),
        )
        .unwrap();
    for target in [
        MergeTarget::Snapshot(second),
        MergeTarget::Snapshot(chain.guids[2]),
        MergeTarget::All,
    ] {
        let result = chain.image.merge(&MergeParam::new(target));
        refused(result, ErrorKind::Busy, Code::EBUSY);
        chain.container.verify(&ALL);
        chain.container.verify_at(&view, &ALL[..2]);
    }
    assert_eq!(chain.chain().0.len(), 4);
    guard.umount().unwrap();
    chain.merge(&MergeParam::new(MergeTarget::All));
    chain.end();
}

/// libploop closes descriptor 0 in every merge of a running image.
fn standard_input_survives() {
    let before = rustix::fs::fstat(io::stdin()).unwrap();
    let mut chain = Chain::new(ImageMode::Expanded);
    let same = || {
        let now = rustix::fs::fstat(io::stdin()).unwrap();
        assert_eq!((before.st_dev, before.st_ino), (now.st_dev, now.st_ino));
    };
    chain.merge(&MergeParam::new(MergeTarget::Snapshot(chain.guids[1])));
    same();
    chain.image.delete_snapshot(chain.guids[1]).unwrap();
    same();
    chain.merge(&MergeParam::new(MergeTarget::All));
    same();
    chain.end();
    same();
}
