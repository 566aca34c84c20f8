//! The variables that the launcher sets.

use std::ffi::CStr;
use std::sync::OnceLock;

pub(crate) struct Settings {
    /// The path of the daemon's socket.
    pub(crate) socket: Vec<u8>,
    /// The directory that stands for `/proc/vz`.
    pub(crate) proc_vz: Option<Vec<u8>>,
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

/// An empty variable is none.
fn variable(name: &str) -> Option<Vec<u8>> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: the name is a C string; nobody changes the environment while libraries are loaded, which is when this
    // runs first.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: not null, so it is a C string of the environment, and copied at once.
    let value = unsafe { CStr::from_ptr(value) }.to_bytes();
    (!value.is_empty()).then(|| value.to_vec())
}
