//! The files that are attached to devices, and which device writes to which.
//!
//! The driver marks an attached file in the kernel, so that it is neither removed nor shortened. Here the preload
//! library refuses that. It finds the attached files in a list that it maps.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;

use ploop_sandbox_wire::attached::{LEN, SLOT_LEN, SLOTS};

use crate::lock::lock;

/// Device and inode of a file.
pub(super) type Identity = (u64, u64);

#[derive(Default)]
struct Attached {
    /// How many levels of devices use each file, and its slot in the list.
    files: HashMap<Identity, (usize, Option<usize>)>,
    /// The files in the list.
    slots: Vec<Option<Identity>>,
    list: Option<File>,
    /// The number of the device that writes to a file.
    writers: HashMap<Identity, u32>,
}

static ATTACHED: Mutex<Option<Attached>> = Mutex::new(None);

fn with<T>(work: impl FnOnce(&mut Attached) -> T) -> T {
    work(lock(&ATTACHED).get_or_insert_default())
}

/// Makes the file for the list, and keeps the list in it from now on. Nothing is attached yet.
pub(crate) fn list_in(path: &Path) -> io::Result<()> {
    let list = File::create_new(path)?;
    list.set_len(LEN as u64)?;
    with(|attached| attached.list = Some(list));
    Ok(())
}

/// A file is attached as a level of a device for as long as this lives.
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

/// Whether a file is attached to any device.
pub(super) fn is_attached(file: &File) -> bool {
    identity(file).is_some_and(|identity| with(|attached| attached.files.contains_key(&identity)))
}

/// The number of the device that writes to a file.
pub(super) fn writer_of(file: &File) -> Option<u32> {
    identity(file).and_then(|identity| with(|attached| attached.writers.get(&identity).copied()))
}

/// Sets which device writes to a file.
pub(super) fn set_writer(file: &File, device: Option<u32>) {
    if let Some(identity) = identity(file) {
        with(|attached| match device {
            Some(device) => attached.writers.insert(identity, device),
            None => attached.writers.remove(&identity),
        });
    }
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
            self.update_list(|list| {
                write(list, slot + 1, 0, identity.0)?;
                write(list, slot + 1, 1, identity.1)
            });
            let used = self.slots.len() as u64;
            self.update_list(|list| write(list, 0, 0, used));
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
            self.update_list(|list| write(list, slot + 1, 1, 0));
        }
    }

    /// Does nothing where there is no list, as in unit tests.
    fn update_list(&self, change: impl FnOnce(&File) -> io::Result<()>) {
        if let Some(Err(error)) = self.list.as_ref().map(change) {
            eprintln!("ploop-sandbox: cannot write the list of attached files: {error}");
        }
    }
}

/// Writes one of a slot's two numbers. Slots count from 1 here, because slot 0 is the head of the list.
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
    fn a_file_is_listed_while_any_level_uses_it() {
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
