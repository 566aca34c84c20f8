//! Which device writes to a file.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Mutex;

use super::attached::{Identity, identity};
use super::lock::lock;

/// Files that a device writes to, by device and inode, with the number of that device.
static WRITTEN: Mutex<Option<HashMap<Identity, u32>>> = Mutex::new(None);

pub(super) fn written_by(file: &File) -> Option<u32> {
    let id = identity(file)?;
    lock(&WRITTEN).as_ref()?.get(&id).copied()
}

pub(super) fn set_written(file: &File, by: Option<u32>) {
    let Some(id) = identity(file) else {
        return;
    };
    let mut written = lock(&WRITTEN);
    let written = written.get_or_insert_default();
    match by {
        Some(index) => written.insert(id, index),
        None => written.remove(&id),
    };
}
