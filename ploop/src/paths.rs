//! Which paths libploop can be given, and why one is refused: length, NUL, characters for a shell, names of files that
//! libploop makes beside an image, links in the place of these.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::identity::Identity;
pub(crate) use crate::side_files::{
    DESCRIPTOR_NAME, MOUNT_POINT, STATFS_NAME, before_removal, being_staged, directory_of,
    is_regular_file, merge_record, mount_point, rewritten, saved_unknown_fields, staged,
};
use crate::{Error, ErrorKind, Result, side_files, trust};

/// The longest path that is passed on. libploop appends `.lck`, `.tmp.tmp` and `.{GUID}` to what it
/// is given, in buffers of 4096 bytes and not always with a check (hazard 15).
pub(crate) const MAX_PATH_BYTES: usize = 4000;

/// The suffixes of files that libploop and this crate make beside a descriptor or a delta.
const SUFFIXES: [&str; 9] = [
    ".lck",
    ".tmp",
    MOUNT_POINT,
    ".idx",
    ".ploop-new",
    ".ploop-kept",
    ".ploop-before",
    ".ploop-merge",
    ".ploop-files",
];

/// Requires that C can take a path: it is not empty, has no NUL byte, and fits libploop's buffers.
pub(crate) fn require_c_path(operation: &'static str, path: &Path) -> Result<()> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return refuse(operation, path, "the path is empty");
    }
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        return refuse(
            operation,
            path,
            format!("the path has a NUL byte at position {at}"),
        );
    }
    if bytes.len() >= MAX_PATH_BYTES {
        return refuse(
            operation,
            path,
            format!(
                "the path is {} bytes long; libploop takes fewer than {MAX_PATH_BYTES}",
                bytes.len()
            ),
        );
    }
    Ok(())
}

/// Requires that a shell takes a path for one word: libploop puts it into a command without quotes (23).
pub(crate) fn require_harmless_to_shell(operation: &'static str, path: &Path) -> Result<()> {
    let special = |b: &u8| {
        b.is_ascii_whitespace() || b.is_ascii_control() || b";&|<>$`\\\"'()*?[]#~!".contains(b)
    };
    let bytes = path.as_os_str().as_bytes();
    let bad = bytes.iter().copied().find(special).or_else(|| {
        // Names of deltas have braces. A shell expands only a list or a range in them.
        let inside = bytes
            .iter()
            .position(|b| *b == b'{')
            .map(|at| &bytes[at..])?;
        inside
            .windows(2)
            .find(|pair| pair[0] == b',' || pair == b"..")
            .map(|pair| pair[0])
    });
    match bad {
        None => Ok(()),
        Some(byte) => refuse(
            operation,
            path,
            format!(
                "the path contains {:?}, and libploop hands paths to a shell without quoting them; choose another name or directory",
                char::from(byte)
            ),
        ),
    }
}

/// Requires that a path can be that of a delta: libploop can write it to a descriptor in `directory` (26), and pass it
/// to a shell (23).
pub(crate) fn require_delta_path(
    operation: &'static str,
    delta: &Path,
    directory: &Path,
) -> Result<()> {
    // Without the descriptor's directory, if the file is in it.
    let written = delta.strip_prefix(directory).unwrap_or(delta);
    let problem = match written.to_str() {
        None => Some("the name is not UTF-8, so libploop would cut the descriptor off there"),
        Some(name) if name.chars().any(char::is_control) => {
            Some("the name has a control character, so libploop would cut the descriptor off there")
        }
        Some(_) => None,
    };
    if let Some(problem) = problem {
        return refuse(operation, delta, problem);
    }
    require_c_path(operation, delta)?;
    require_harmless_to_shell(operation, delta)
}

/// [`require_delta_path`] for a new file of an image: it must not have the name of a file that libploop makes beside
/// any image of that directory, for one would overwrite the other.
pub(crate) fn require_new_delta_path(
    operation: &'static str,
    delta: &Path,
    directory: &Path,
) -> Result<()> {
    require_delta_path(operation, delta, directory)?;
    require_no_side_file_name(operation, delta)
}

/// Requires that a new file does not have the name of one that libploop or this crate makes beside an image.
pub(crate) fn require_no_side_file_name(operation: &'static str, delta: &Path) -> Result<()> {
    let name = delta.file_name().unwrap_or_default().as_bytes();
    let taken = if name == STATFS_NAME.as_bytes() {
        Some(STATFS_NAME)
    } else {
        SUFFIXES
            .into_iter()
            .find(|suffix| name.ends_with(suffix.as_bytes()))
    };
    match taken {
        None => Ok(()),
        Some(taken) => refuse(
            operation,
            delta,
            format!(
                "files that libploop or this crate make beside an image end in {taken}; choose another name"
            ),
        ),
    }
}

/// Requires that the files which libploop writes or removes beside an image are its own. None of them may be a delta,
/// by any name; a link, which libploop would follow; or anything but a regular file, such as a pipe, on which it would
/// wait.
pub(crate) fn require_own_side_files<'a>(
    operation: &'static str,
    descriptor: &Path,
    deltas: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    // The descriptor's path has no links.
    let home = directory_of(descriptor).to_owned();
    let mut directories = HashMap::from([(home.clone(), home)]);
    let mut by_name = HashMap::new();
    let mut by_file = HashMap::new();
    for delta in deltas {
        // libploop uses the name, which may lead through a link.
        by_name.insert(resolved(delta, &mut directories), delta);
        if let Ok(file) = Identity::of(delta) {
            by_file.insert(file, delta);
        }
    }
    let deltas: Vec<PathBuf> = by_name.keys().cloned().collect();
    let beside_descriptor = side_files::of_descriptor(descriptor);
    let beside_deltas = deltas.iter().flat_map(|delta| side_files::of_delta(delta));
    for side in beside_descriptor.into_iter().chain(beside_deltas) {
        let metadata = fs::symlink_metadata(&side).ok();
        if let Some(metadata) = metadata.as_ref().filter(|_| side != descriptor) {
            require_own(operation, &side, metadata)?;
        }
        let same = by_name
            .get(&side)
            .or_else(|| by_file.get(&Identity::from(metadata.as_ref()?)));
        if let Some(delta) = same {
            return Err(Error::new(
                ErrorKind::Unsupported,
                operation,
                format!(
                    "libploop or this crate would make {} beside the image, and that is this delta; rename the delta, here and in the descriptor",
                    side.display()
                ),
            )
            .with_path(*delta));
        }
    }
    Ok(())
}

/// Requires that a file which libploop writes or removes is a regular one, if it is there.
pub(crate) fn require_own_side_file(operation: &'static str, side: &Path) -> Result<()> {
    match fs::symlink_metadata(side) {
        Ok(metadata) => require_own(operation, side, &metadata),
        Err(_) => Ok(()),
    }
}

fn require_own(operation: &'static str, side: &Path, metadata: &Metadata) -> Result<()> {
    // A mount point is a directory. If it is anything else, the mount fails.
    let is_mount_point = side
        .as_os_str()
        .as_bytes()
        .ends_with(MOUNT_POINT.as_bytes());
    let wrong = if metadata.is_symlink() {
        "is a symbolic link, which libploop would follow"
    } else if !metadata.is_file() && !is_mount_point {
        "is not a regular file"
    } else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::Unsupported,
        operation,
        format!(
            "libploop makes a file of its own with this name, and what is there {wrong}; remove it"
        ),
    )
    .with_path(side))
}

/// A path whose directory is resolved, and whose last component is not.
fn resolved(path: &Path, directories: &mut HashMap<PathBuf, PathBuf>) -> PathBuf {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return path.to_owned();
    };
    directories
        .entry(directory.to_owned())
        .or_insert_with_key(|directory| {
            // A directory that does not exist has none of the files.
            fs::canonicalize(directory).unwrap_or_else(|_| directory.clone())
        })
        .join(name)
}

/// The absolute path of a new file. Its directory must exist, and only root and the caller may write to it.
pub(crate) fn of_new_file(operation: &'static str, file: &Path) -> Result<PathBuf> {
    require_c_path(operation, file)?;
    let Some(name) = file.file_name() else {
        return refuse(operation, file, "the path has no file name");
    };
    let parent = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let directory = existing_directory(operation, parent, "the directory for the new file")?;
    trust::require_own_directory(operation, &directory)?;
    Ok(directory.join(name))
}

/// The absolute path of a directory. `what` says what it is for, at the beginning of an error's message.
pub(crate) fn existing_directory(
    operation: &'static str,
    directory: &Path,
    what: &str,
) -> Result<PathBuf> {
    require_c_path(operation, directory)?;
    let resolved = fs::canonicalize(directory).map_err(|error| {
        Error::io(operation, format!("{what} cannot be found"), error).with_path(directory)
    })?;
    if !resolved.is_dir() {
        return refuse(operation, directory, format!("{what} is not a directory"));
    }
    Ok(resolved)
}

fn refuse<T>(operation: &'static str, path: &Path, why: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidInput, operation, why).with_path(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::fs::symlink;

    #[test]
    fn shells_find_nothing_to_do_in_a_path() {
        for good in [
            "/vz/private/101/root.hdd/DiskDescriptor.xml",
            "/a/root.hds.{5fbaabe3-6958-40ff-92a7-860e329aab41}",
            "/ä/%41=x,y:z@1+2^3-4",
            "/a..b/{x}",
        ] {
            require_harmless_to_shell("test", Path::new(good)).unwrap();
        }
        for bad in [
            "/a b",
            "/a\tb",
            "/a\nb",
            "/;touch X;",
            "/$(x)",
            "/`x`",
            "/a&b",
            "/a|b",
            "/a>b",
            "/a<b",
            "/a*",
            "/a?",
            "/[a]",
            "/~a",
            "/!a",
            "/#a",
            "/a'b",
            "/a\"b",
            "/a\\b",
            "/{a,b}",
            "/{1..3}",
        ] {
            let error = require_harmless_to_shell("test", Path::new(bad)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
            assert_eq!(error.path(), Some(Path::new(bad)));
        }
    }

    #[test]
    fn only_what_is_written_must_be_text() {
        let directory = Path::new(OsStr::from_bytes(b"/\xff"));
        require_delta_path("test", &directory.join("root.hds"), directory).unwrap();
        assert!(require_delta_path("test", &directory.join("root.hds"), Path::new("/b")).is_err());
        let name = Path::new(OsStr::from_bytes(b"/b/\xfe"));
        assert!(require_delta_path("test", name, Path::new("/b")).is_err());
        assert!(require_delta_path("test", Path::new("/b/\u{7f}"), Path::new("/b")).is_err());
    }

    #[test]
    fn a_new_file_has_no_name_that_libploop_uses() {
        let check =
            |name: &str| require_new_delta_path("test", &Path::new("/a").join(name), "/a".as_ref());
        for good in [
            "root.hds",
            "root.tmp.hds",
            "statfs",
            ".statfs.hds",
            "lck",
            "tmp",
        ] {
            check(good).unwrap();
        }
        for bad in [
            ".statfs",
            "DiskDescriptor.xml.tmp",
            "DiskDescriptor.xml.tmp.tmp",
            "other.xml.lck",
            "root.hds.mnt",
            "root.hds.idx",
            ".tmp",
        ] {
            let error = check(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
            assert!(error.message().contains("choose another name"), "{error}");
        }
    }

    #[test]
    fn a_delta_is_no_side_file_under_any_name() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        fs::create_dir(directory.join("a")).unwrap();
        symlink("a", directory.join("b")).unwrap();
        let descriptor = fs::canonicalize(directory.join("a")).unwrap().join("d.xml");
        let check = |names: &[&str]| {
            let deltas: Vec<PathBuf> = names.iter().map(|name| directory.join(name)).collect();
            require_own_side_files("test", &descriptor, deltas.iter().map(PathBuf::as_path))
        };
        check(&["a/root.hds", "a/root.hds.{1}", "b/x.tmp", "d.xml.tmp"]).unwrap();
        for bad in [
            &["a/d.xml"][..],
            &["a/d.xml.tmp"],
            &["a/d.xml.tmp.tmp"],
            &["b/d.xml.lck"],
            &["a/root.hds", "b/root.hds.tmp"],
            &["a/root.hds", "a/root.hds.mnt"],
            &["a/.statfs"],
            &["a/root.hds", "b/.statfs"],
        ] {
            let error = check(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{bad:?}");
        }
        fs::write(directory.join("a/root.hds"), "").unwrap();
        fs::hard_link(directory.join("a/root.hds"), directory.join("a/d.xml.tmp")).unwrap();
        check(&["a/root.hds"]).unwrap_err();
        fs::remove_file(directory.join("a/d.xml.tmp")).unwrap();
        fs::write(directory.join("a/.statfs"), "").unwrap();
        symlink(".statfs", directory.join("a/link.hds")).unwrap();
        check(&["a/root.hds", "a/link.hds"]).unwrap_err();
        check(&["a/root.hds"]).unwrap();
    }

    #[test]
    fn the_directory_of_a_new_file_is_resolved() {
        let directory = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(directory.path()).unwrap();
        symlink(&real, real.join("link")).unwrap();
        assert_eq!(
            of_new_file("test", &real.join("link/x")).unwrap(),
            real.join("x")
        );
        let relative = of_new_file("test", Path::new("x")).unwrap();
        assert_eq!(relative, std::env::current_dir().unwrap().join("x"));
        assert!(of_new_file("test", Path::new("/..")).is_err());
        let error = of_new_file("test", &real.join("none/x")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        fs::write(real.join("file"), "").unwrap();
        let error = of_new_file("test", &real.join("file/x")).unwrap_err();
        assert!(
            error.message().contains("is not a directory") || error.kind() != ErrorKind::NotFound
        );
    }
}
