//! Which files are attached to devices, and the list of them that programs see.
//!
//! The driver marks an attached file in the kernel, so that it is neither removed nor shortened. Here
//! the preload library refuses that, by a list that it maps.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;

use ploop_sandbox_wire::attached::{LEN, SLOT_LEN, SLOTS};

use super::lock::lock;

/// Device and inode.
pub(super) type Identity = (u64, u64);

#[derive(Default)]
struct Attached {
    /// How many levels of devices are in this file, and its slot in the list.
    files: HashMap<Identity, (usize, Option<usize>)>,
    /// The files in the list.
    slots: Vec<Option<Identity>>,
    list: Option<File>,
}

static ATTACHED: Mutex<Option<Attached>> = Mutex::new(None);

fn with<T>(work: impl FnOnce(&mut Attached) -> T) -> T {
    work(lock(&ATTACHED).get_or_insert_default())
}

/// Keeps the list in this file from now on, which is made. Nothing is attached yet.
pub(crate) fn list_in(path: &Path) -> io::Result<()> {
    let list = File::create_new(path)?;
    list.set_len(LEN as u64)?;
    with(|attached| attached.list = Some(list));
    Ok(())
}

/// A level of a device in a file, for as long as this lives.
pub(super) struct Attachment(Option<Identity>);

impl Attachment {
    pub(super) fn of(file: &File) -> Attachment {
        let identity = identity(file);
        if let Some(identity) = identity {
            with(|attached| attached.add(identity));
        }
        Attachment(identity)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Some(identity) = self.0 {
            with(|attached| attached.remove(identity));
        }
    }
}

/// Whether a level of any device is in this file.
pub(super) fn is_attached(file: &File) -> bool {
    identity(file).is_some_and(|identity| with(|attached| attached.files.contains_key(&identity)))
}

pub(super) fn identity(file: &File) -> Option<Identity> {
    let metadata = file.metadata().ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl Attached {
    fn add(&mut self, identity: Identity) {
        if let Some((levels, _)) = self.files.get_mut(&identity) {
            *levels += 1;
            return;
        }
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.slots.len());
        let slot = (slot < SLOTS).then_some(slot);
        match slot {
            Some(slot) if slot == self.slots.len() => self.slots.push(Some(identity)),
            Some(slot) => self.slots[slot] = Some(identity),
            None => eprintln!("ploop-sandbox: more than {SLOTS} files are attached"),
        }
        self.files.insert(identity, (1, slot));
        if let Some(slot) = slot {
            self.show(|list| {
                write(list, slot + 1, 0, identity.0)?;
                write(list, slot + 1, 1, identity.1)
            });
            let used = self.slots.len() as u64;
            self.show(|list| write(list, 0, 0, used));
        }
    }

    fn remove(&mut self, identity: Identity) {
        let Some((levels, slot)) = self.files.get_mut(&identity) else {
            return;
        };
        *levels -= 1;
        if *levels > 0 {
            return;
        }
        let slot = *slot;
        self.files.remove(&identity);
        if let Some(slot) = slot {
            self.slots[slot] = None;
            self.show(|list| write(list, slot + 1, 1, 0));
        }
    }

    /// Where there is no list, nobody looks at one.
    fn show(&self, change: impl FnOnce(&File) -> io::Result<()>) {
        if let Some(Err(error)) = self.list.as_ref().map(change) {
            eprintln!("ploop-sandbox: the list of attached files: {error}");
        }
    }
}

/// Writes one of a slot's two numbers. The slots count from 1 here: the first two numbers are the head.
fn write(list: &File, slot: usize, which: usize, number: u64) -> io::Result<()> {
    let at = slot * SLOT_LEN + which * size_of::<u64>();
    list.write_all_at(&number.to_ne_bytes(), at as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(list: &File) -> (u64, Vec<Identity>) {
        let number = |at: usize| {
            let mut bytes = [0; 8];
            list.read_exact_at(&mut bytes, at as u64).unwrap();
            u64::from_ne_bytes(bytes)
        };
        let used = number(0);
        let slots = (1..=used as usize).map(|slot| slot * SLOT_LEN);
        (used, slots.map(|at| (number(at), number(at + 8))).collect())
    }

    #[test]
    fn files_are_listed_while_a_level_is_in_them() {
        let list = tempfile::tempfile().unwrap();
        list.set_len(LEN as u64).unwrap();
        let mut attached = Attached {
            list: Some(list.try_clone().unwrap()),
            ..Attached::default()
        };
        attached.add((1, 10));
        attached.add((2, 20));
        attached.add((1, 10));
        assert_eq!(listed(&list), (2, vec![(1, 10), (2, 20)]));
        attached.remove((1, 10));
        assert_eq!(listed(&list), (2, vec![(1, 10), (2, 20)]));
        attached.remove((1, 10));
        assert_eq!(listed(&list), (2, vec![(1, 0), (2, 20)]));
        attached.add((3, 30));
        assert_eq!(listed(&list), (2, vec![(3, 30), (2, 20)]));
        attached.remove((4, 40));
        assert!(attached.files.contains_key(&(2, 20)));
    }
}
