//! The environment variables that the launcher sets: [`ploop_sandbox_wire::SOCKET`], [`ploop_sandbox_wire::PROC_VZ`].

use libc::c_char;
use std::ffi::CStr;
use std::sync::OnceLock;

/// A path that needs no allocated memory, because an allocator may call these functions while it is being set up.
pub(crate) struct Path {
    bytes: [u8; Path::MAX],
    len: usize,
}

impl Path {
    /// Longer than the path of a socket can be.
    const MAX: usize = 512;

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

pub(crate) struct Settings {
    /// The path of the daemon's socket.
    pub(crate) socket: Path,
    /// The directory that takes the place of `/proc/vz`.
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
    /// Read directly, because some programs replace `getenv`.
    static environ: *const *const c_char;
}

/// The value of a variable. None if it is empty or longer than a path.
fn variable(name: &str) -> Option<Path> {
    // SAFETY: libc sets it before it loads libraries, and nobody changes it while they are loaded, which is when this
    // runs.
    let mut entry = unsafe { environ };
    loop {
        // SAFETY: `as_ref` checks for a null list. Within the list, an entry is followed by another or by the null at
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
