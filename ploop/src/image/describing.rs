//! Whether a descriptor beside a delta names it as one of several.

use std::fs;
use std::path::{Path, PathBuf};

use super::descriptor::Descriptor;
use crate::identity::Identity;

/// How many descriptors of a directory are read.
const MAX_DESCRIPTORS: usize = 100;

/// What a descriptor in its directory says of a delta that is no whole disk by itself.
pub(super) fn what_others_say(delta: &Path) -> Option<String> {
    let identity = Identity::of(delta).ok()?;
    let real = delta.canonicalize().ok()?;
    let is_descriptor = |path: &PathBuf| path.extension().is_some_and(|it| it == "xml");
    let beside = fs::read_dir(real.parent()?).ok()?;
    beside
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_descriptor)
        .take(MAX_DESCRIPTORS)
        .find_map(|path| {
            let descriptor = Descriptor::open(&path).ok()?;
            what_it_says(&descriptor, &path, &identity)
        })
}

fn what_it_says(descriptor: &Descriptor, path: &Path, identity: &Identity) -> Option<String> {
    let is_it = |file: &Path| Identity::of(file).is_ok_and(|it| it == *identity);
    let image = descriptor.all_images().find(|image| is_it(&image.file))?;
    let path = path.display();
    if let Some(below) = descriptor.parent(image.guid) {
        let file = descriptor.image(below)?.file.display();
        return Some(format!(
            "by {path}, this is a delta upon {file}; read by itself, it lacks what is below"
        ));
    }
    let above = descriptor.children(image.guid).next()?;
    let file = descriptor.image(above)?.file.display();
    Some(format!(
        "by {path}, {file} is a delta upon this file, which by itself is an older state of the disk"
    ))
}
