//! Mending a descriptor that contradicts itself, where there is one right answer ([`DescriptorFile::mend`]).

use std::collections::HashSet;
use std::path::Path;

use super::descriptor_file::DescriptorFile;
use super::form::DescriptorForm;
use super::write::UnknownFields;
use super::{Descriptor, assemble};
use crate::image::xml::{self, Element};
use crate::{Guid, Result};

impl DescriptorFile {
    /// Reads a descriptor that contradicts itself, and mends it. Returns what was done, in words.
    pub(crate) fn mend(
        text: Vec<u8>,
        dir: &Path,
        form: &DescriptorForm,
    ) -> Result<(DescriptorFile, Vec<String>)> {
        let decoded = xml::decode(&text)?;
        let document = xml::parse(&decoded)?;
        let root = Element::root(&document);
        // Without a TopGUID, the top is not listed, which is mended below.
        let mut descriptor = assemble(root, dir, form, Some(Guid::NONE))?;
        let done = mend(&mut descriptor);
        descriptor.validate()?;
        descriptor.require_for_changes(form)?;
        let unknown = UnknownFields::of(root, dir, form)?;
        let file = DescriptorFile {
            descriptor,
            unknown,
            #[cfg(feature = "libploop")]
            text,
        };
        Ok((file, done))
    }
}

/// Removes what contradicts the rest, as long as nothing that can be read goes with it. Returns what was done.
fn mend(descriptor: &mut Descriptor) -> Vec<String> {
    let mut done = Vec::new();
    let before = descriptor.images.len();
    let mut seen = HashSet::new();
    descriptor
        .images
        .retain(|image| seen.insert((image.guid, image.file.clone())));
    if descriptor.images.len() < before {
        done.push("an image that was listed twice is listed once".to_owned());
    }
    let before = descriptor.snapshots.len();
    let mut seen = HashSet::new();
    descriptor
        .snapshots
        .retain(|shot| seen.insert((shot.guid, shot.parent)));
    if descriptor.snapshots.len() < before {
        done.push("a snapshot that was listed twice is listed once".to_owned());
    }

    let unlisted: Vec<Guid> = descriptor
        .images
        .iter()
        .map(|image| image.guid)
        .filter(|guid| *guid != descriptor.top && descriptor.snapshot(*guid).is_none())
        .collect();
    let all_have_files = descriptor
        .snapshots
        .iter()
        .all(|shot| descriptor.image(shot.guid).is_some());
    // A file without a snapshot, and a snapshot without a file, may belong to each other.
    if unlisted.is_empty() {
        // A snapshot without a file, upon which nothing stands, has no data.
        while let Some(dead) = dead_leaf(descriptor) {
            descriptor.snapshots.retain(|shot| shot.guid != dead);
            done.push(format!("the snapshot {dead}, which had no file, is gone"));
        }
    } else if all_have_files && !descriptor.snapshots.is_empty() {
        // It is in no state of the disk.
        for guid in unlisted {
            if let Some(image) = descriptor.image(guid) {
                done.push(format!(
                    "the file {} of {guid}, which was in no snapshot, is not listed any more, and stays where it is",
                    image.file.display()
                ));
            }
            descriptor.images.retain(|image| image.guid != guid);
        }
    }

    if descriptor.snapshot(descriptor.top).is_none() {
        let mut leaves = descriptor
            .snapshots
            .iter()
            .filter(|shot| descriptor.children(shot.guid).next().is_none())
            .map(|shot| shot.guid);
        let constant = descriptor.snapshot(Guid::TOP).map(|shot| shot.guid);
        let top = match (constant, leaves.next(), leaves.next()) {
            (Some(top), ..) => Some(top),
            (None, Some(only), None) => Some(only),
            _ => None,
        };
        if let Some(top) = top {
            descriptor.top = top;
            done.push(format!("the top is {top}"));
        }
    }
    let top = descriptor.top;
    let shots = descriptor.snapshots.iter_mut();
    for shot in shots.filter(|shot| shot.guid == top && shot.temporary) {
        shot.temporary = false;
        done.push("the top is not temporary any more".to_owned());
    }
    done
}

/// A snapshot without a file upon which nothing stands.
fn dead_leaf(descriptor: &Descriptor) -> Option<Guid> {
    let is_dead = |guid: Guid| {
        descriptor.image(guid).is_none()
            && descriptor.children(guid).next().is_none()
            && guid != descriptor.top
    };
    let mut guids = descriptor.snapshots.iter().map(|shot| shot.guid);
    guids.find(|guid| is_dead(*guid))
}
