//! Changes of the snapshot tree, as libploop makes them: the order of the images and of the snapshots, too.

use std::path::PathBuf;

use super::{Descriptor, Image, ImageKind, Snapshot};
use crate::{Guid, ImageMode};

impl Descriptor {
    /// With the top as the snapshot `guid`, and `file` as the new top upon it.
    pub(crate) fn with_snapshot(&self, guid: Guid, file: PathBuf) -> Descriptor {
        let mut new = self.clone();
        new.rename(self.top, guid);
        new.push_top(guid, file)
    }

    /// With `file` as the new top upon a snapshot. The old top is a snapshot from now on, or goes.
    pub(crate) fn switched_to(&self, guid: Guid, file: PathBuf, kept: Option<Guid>) -> Descriptor {
        let mut new = self.clone();
        match kept {
            Some(kept) => new.rename(self.top, kept),
            None => new.remove(self.top),
        }
        new.push_top(guid, file)
    }

    /// With a snapshot as the top. The old top goes.
    pub(crate) fn with_top(&self, guid: Guid) -> Descriptor {
        let mut new = self.clone();
        new.remove(self.top);
        new.rename(guid, self.top);
        new
    }

    /// Without a snapshot that has no children.
    pub(crate) fn without(&self, guid: Guid) -> Descriptor {
        let mut new = self.clone();
        new.remove(guid);
        new
    }

    /// With the deltas from `from` down to its ancestor `to` as one. It has the GUID of `from` and the place of `to`.
    pub(crate) fn merged(&self, from: Guid, to: Guid) -> Descriptor {
        let mut new = self.clone();
        let temporary = self.snapshot(from).is_some_and(|shot| shot.temporary);
        while let Some(parent) = new.parent(from) {
            new.remove(from);
            new.rename(parent, from);
            if let Some(shot) = new.snapshots.iter_mut().find(|shot| shot.guid == from) {
                shot.temporary = temporary;
            }
            if parent == to {
                break;
            }
        }
        new
    }

    /// With these snapshots marked temporary.
    pub(crate) fn with_temporary(&self, guids: &[Guid]) -> Descriptor {
        let mut new = self.clone();
        for snapshot in &mut new.snapshots {
            snapshot.temporary |= guids.contains(&snapshot.guid);
        }
        new
    }

    fn push_top(mut self, parent: Guid, file: PathBuf) -> Descriptor {
        let kind = match self.mode {
            ImageMode::Raw => ImageKind::Plain,
            ImageMode::Expanded | ImageMode::Preallocated => ImageKind::Compressed,
        };
        self.top = Guid::TOP;
        self.images.push(Image::new(Guid::TOP, file, kind));
        self.snapshots.push(Snapshot::new(Guid::TOP, parent));
        self
    }

    fn remove(&mut self, guid: Guid) {
        self.images.retain(|image| image.guid != guid);
        self.snapshots.retain(|shot| shot.guid != guid);
    }

    fn rename(&mut self, old: Guid, new: Guid) {
        let rename = |guid: &mut Guid| {
            if *guid == old {
                *guid = new;
            }
        };
        for image in &mut self.images {
            rename(&mut image.guid);
        }
        for shot in &mut self.snapshots {
            rename(&mut shot.guid);
            rename(&mut shot.parent);
        }
        rename(&mut self.top);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Size;

    fn guid(number: u128) -> Guid {
        uuid::Uuid::from_u128(number).into()
    }

    /// `parent guid` for each snapshot, T for the top.
    fn tree(descriptor: &Descriptor) -> Vec<String> {
        let name = |guid: Guid| match guid {
            Guid::TOP => "T".to_owned(),
            guid => guid.as_uuid().as_u128().to_string(),
        };
        let files = descriptor.images.iter().map(|image| {
            let file = image.file.display();
            format!("{}={file}", name(image.guid))
        });
        let shots = descriptor.snapshots.iter().map(|shot| {
            let mark = if shot.temporary { "~" } else { "" };
            format!("{}<{}{mark}", name(shot.parent), name(shot.guid))
        });
        files.chain(shots).collect()
    }

    fn image() -> Descriptor {
        let base = Image::new(Guid::TOP, "a", ImageKind::Compressed);
        Descriptor::new(Size::from_mib(1), base)
    }

    #[test]
    fn snapshots_come_and_go() {
        let one = image().with_snapshot(guid(1), "b".into());
        assert_eq!(tree(&one), ["1=a", "T=b", "0<1", "1<T"]);
        let two = one.with_snapshot(guid(2), "c".into());
        assert_eq!(tree(&two), ["1=a", "2=b", "T=c", "0<1", "1<2", "2<T"]);
        let back = two.switched_to(guid(1), "d".into(), None);
        assert_eq!(tree(&back), ["1=a", "2=b", "T=d", "0<1", "1<2", "1<T"]);
        let kept = two.switched_to(guid(1), "d".into(), Some(guid(3)));
        assert_eq!(
            tree(&kept),
            ["1=a", "2=b", "3=c", "T=d", "0<1", "1<2", "2<3", "1<T"]
        );
        assert_eq!(tree(&back.without(guid(2))), ["1=a", "T=d", "0<1", "1<T"]);
        assert_eq!(tree(&two.with_top(guid(2))), ["1=a", "T=b", "0<1", "1<T"]);
        for descriptor in [one, two, back, kept] {
            descriptor.validate().unwrap();
        }
    }

    #[test]
    fn a_merge_keeps_the_lowest_place_and_the_uppermost_name() {
        let mut chain = image();
        for number in 1..4 {
            chain = chain.with_snapshot(guid(number), number.to_string().into());
        }
        let merged = chain.merged(guid(2), guid(1));
        assert_eq!(tree(&merged), ["2=a", "3=2", "T=3", "0<2", "2<3", "3<T"]);
        let merged = chain.merged(Guid::TOP, guid(1));
        assert_eq!(tree(&merged), ["T=a", "0<T"]);
        let temporary = chain.with_temporary(&[guid(1), guid(2)]);
        let merged = temporary.merged(guid(3), guid(2));
        assert_eq!(tree(&merged), ["1=a", "3=1", "T=3", "0<1~", "1<3", "3<T"]);
        merged.validate().unwrap();
    }
}
