//! [`DescriptorForm`]: what the lines of libploop write differently in a descriptor.

use std::path::{Component, Path, PathBuf};

/// How a line of libploop reads and writes a `DiskDescriptor.xml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DescriptorForm {
    /// The name of the root element. All lines read a descriptor with any root.
    pub(crate) root: &'static str,
    /// Reads and writes `Encryption/KeyId` and `StorageData/Volume`; otherwise drops them.
    pub(crate) has_key_and_volume: bool,
    /// Writes names of files in other directories with `../`, and takes each `../` in a name, wherever it stands, for
    /// a step up from the descriptor's directory.
    pub(crate) has_parent_names: bool,
}

impl DescriptorForm {
    /// That of libploop 1.12 to 1.15.
    pub(crate) const PARALLELS: DescriptorForm = DescriptorForm {
        root: "Parallels_disk_image",
        has_key_and_volume: false,
        has_parent_names: false,
    };

    /// The file of this name in a descriptor in `dir`. For a form with parent names, `dir` may not lead through links.
    pub(super) fn file(&self, name: &str, dir: &Path) -> PathBuf {
        let (mut dir, mut name) = (dir, name);
        while let Some(rest) = name.strip_prefix("../").filter(|_| self.has_parent_names) {
            dir = dir.parent().unwrap_or(dir);
            name = rest.trim_start_matches('/');
        }
        dir.join(name)
    }

    /// The name of a file in a descriptor in `dir`. `None` where this line of libploop would read it as that of
    /// another file.
    pub(crate) fn name(&self, file: &Path, dir: &Path) -> Option<PathBuf> {
        if let Ok(inside) = file.strip_prefix(dir) {
            return self.is_read_right(inside).then(|| inside.to_owned());
        }
        if !self.has_parent_names {
            return Some(file.to_owned());
        }
        let mut names = file.components();
        let mut up = dir.components();
        let mut common = 0;
        while let (Some(a), Some(b)) = (names.clone().next(), up.clone().next()) {
            if a != b {
                break;
            }
            names.next();
            up.next();
            common += 1;
        }
        // Only the root, or nothing. Absolute names are read as they are.
        if common < 2 {
            return Some(file.to_owned());
        }
        let inside = names.as_path();
        let mut name: PathBuf = up.map(|_| Component::ParentDir).collect();
        name.push(inside);
        self.is_read_right(inside).then_some(name)
    }

    /// Whether a name without leading `../` is taken for what it is.
    fn is_read_right(&self, name: &Path) -> bool {
        let bytes = name.as_os_str().as_encoded_bytes();
        !self.has_parent_names || !bytes.windows(3).any(|part| part == b"../")
    }
}

#[cfg(all(test, feature = "libploop"))]
mod tests {
    use super::*;

    const VIRTUOZZO: DescriptorForm = DescriptorForm {
        root: "Virtuozzo_disk_image",
        has_key_and_volume: true,
        has_parent_names: true,
    };

    #[test]
    fn names_of_files_elsewhere() {
        for (file, dir, name) in [
            ("/vz/101/root.hds", "/vz/101", Some("root.hds")),
            ("/vz/101/a/b", "/vz/101", Some("a/b")),
            ("/vz/pool/a", "/vz/101", Some("../pool/a")),
            ("/vz/1010", "/vz/101", Some("../1010")),
            (
                "/vz/pool/a",
                "/vz/private/101/root.hdd",
                Some("../../../pool/a"),
            ),
            ("/vz/a", "/vz/101", Some("../a")),
            ("/a", "/vz/101", Some("/a")),
            ("/a/b..", "/a/c", Some("../b..")),
            // Would be read as /vz/b, /vz/c and /x.
            ("/vz/101/a/../b", "/vz/101", None),
            ("/vz/101/b../c", "/vz/101", None),
            ("/vz/b../x", "/vz/101", None),
        ] {
            let (file, dir) = (Path::new(file), Path::new(dir));
            let found = VIRTUOZZO.name(file, dir);
            assert_eq!(found.as_deref(), name.map(Path::new), "{file:?}");
            if let Some(name) = name {
                assert_eq!(VIRTUOZZO.file(name, dir), file);
            }
        }
    }

    #[test]
    fn other_lines_leave_names_as_they_are() {
        let (form, dir) = (DescriptorForm::PARALLELS, Path::new("/vz/101"));
        for name in ["../pool/a", "a/../b", "b../c", "/vz/pool/a"] {
            let file = form.file(name, dir);
            assert_eq!(file, dir.join(name));
            assert_eq!(form.name(&file, dir).unwrap(), Path::new(name));
        }
    }
}
