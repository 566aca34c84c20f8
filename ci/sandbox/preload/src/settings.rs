//! The variables that the launcher sets.

use libc::c_char;
use std::ffi::CStr;
use std::sync::OnceLock;

/// A path, kept without allocated memory: the first of these functions to be called may be called by an allocator that
/// is just being set up.
pub(crate) struct Path {
    bytes: [u8; Path::MAX],
    len: usize,
}

impl Path {
    /// More than the path of a socket may have.
    const MAX: usize = 512;

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

pub(crate) struct Settings {
    /// The path of the daemon's socket.
    pub(crate) socket: Path,
    /// The directory that stands for `/proc/vz`.
    pub(crate) proc_vz: Option<Path>,
}

/// None outside a sandbox. Read once: a program may clear its environment.
pub(crate) fn settings() -> Option<&'static Settings> {
    static SETTINGS: OnceLock<Option<Settings>> = OnceLock::new();
    SETTINGS
        .get_or_init(|| {
            Some(Settings {
                socket: variable(ploop_sandbox_wire::SOCKET)?,
                proc_vz: variable(ploop_sandbox_wire::PROC_VZ),
            })
        })
        .as_ref()
}

unsafe extern "C" {
    /// Not by `getenv`, of which some programs have their own.
    static environ: *const *const c_char;
}

/// One that is empty or longer than a path is none.
fn variable(name: &str) -> Option<Path> {
    // SAFETY: libc sets it before any library's code runs; nobody changes it while libraries are loaded, which is when
    // this runs.
    let mut entry = unsafe { environ };
    loop {
        // SAFETY: null in the place of the list is looked for; in the list, what follows an entry is one or the null at
        // its end.
        let text = unsafe { entry.as_ref() }?;
        if text.is_null() {
            return None;
        }
        // SAFETY: entries are C strings.
        let text = unsafe { CStr::from_ptr(*text) }.to_bytes();
        if let Some(value) = value(text, name) {
            return path(value);
        }
        entry = entry.wrapping_add(1);
    }
}

fn value<'a>(text: &'a [u8], name: &str) -> Option<&'a [u8]> {
    text.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

fn path(value: &[u8]) -> Option<Path> {
    let mut path = Path {
        bytes: [0; Path::MAX],
        len: value.len(),
    };
    path.bytes.get_mut(..value.len())?.copy_from_slice(value);
    (!value.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_found() {
        let fits = |value: &String| (1..=Path::MAX).contains(&value.len());
        for (name, expected) in std::env::vars().filter(|(_, value)| fits(value)) {
            assert_eq!(variable(&name).unwrap().bytes(), expected.as_bytes());
        }
        assert!(variable("NO SUCH VARIABLE").is_none());
        assert!(variable(ploop_sandbox_wire::SOCKET).is_none());
        assert!(path(b"").is_none());
        assert!(path(&[b'x'; Path::MAX + 1]).is_none());
        assert_eq!(path(&[b'x'; Path::MAX]).unwrap().bytes().len(), Path::MAX);
        assert_eq!(value(b"A=b=c", "A"), Some(&b"b=c"[..]));
        assert_eq!(value(b"AB=c", "A"), None);
    }
}
