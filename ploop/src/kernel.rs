//! The kernel driver: whether it is there, what it can do, and loading it.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::LOAD_DRIVER;
use crate::ffi;
use crate::{ClusterSize, Error, ErrorKind, FormatVersion, FsType, Result, Size, sysfs, tools};

/// The driver's modules, in the order in which they are loaded. An image on a local disk needs the first three.
const MODULES: [&str; 6] = [
    "ploop",
    "pfmt_ploop1",
    "pio_direct",
    "pfmt_raw",
    "pio_nfs",
    "pio_kaio",
];
const ESSENTIAL: usize = 3;

/// Loads the driver's modules with `modprobe`: `ploop`, `pfmt_ploop1`, `pfmt_raw`, `pio_direct`,
/// `pio_nfs` and `pio_kaio`.
///
/// Nothing in this crate does it unasked. Needs root.
///
/// # Errors
///
/// [`NoDriver`](ErrorKind::NoDriver) where one of `ploop`, `pfmt_ploop1` and `pio_direct` cannot be
/// loaded; the others serve special cases, and not every kernel has them.
/// [`Tool`](ErrorKind::Tool) where there is no `modprobe`.
///
/// ```no_run
/// use ploop::kernel;
///
/// if !kernel::is_driver_present() {
///     ploop::load_kernel_modules()?;
/// }
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn load_kernel_modules() -> Result<()> {
    const OPERATION: &str = "load kernel modules";
    let mut failed = Vec::new();
    for (at, module) in MODULES.iter().enumerate() {
        let output = Command::new("modprobe")
            .arg(module)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                Error::io(
                    OPERATION,
                    "modprobe cannot be started (package kmod)",
                    error,
                )
                .meaning(
                    ErrorKind::Tool,
                    "modprobe cannot be started; it is in the package kmod",
                )
            })?;
        if !output.status.success() && at < ESSENTIAL {
            let words = String::from_utf8_lossy(&output.stderr);
            failed.push(format!("{module} ({})", words.trim()));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::NoDriver,
        OPERATION,
        format!(
            "{}; only OpenVZ and Virtuozzo kernels have them",
            failed.join(", ")
        ),
    ))
}

/// Whether the driver is loaded: whether images can be attached and mounted.
///
/// ```
/// if !ploop::kernel::is_driver_present() {
///     println!("bare images only");
/// }
/// # Ok::<(), ploop::Error>(())
/// ```
#[must_use]
pub fn is_driver_present() -> bool {
    ffi::is_driver_present()
}

/// Whether the driver knows format version 2 (what `ploop_is_large_disk_supported` answers).
///
/// ```
/// let newest = match ploop::kernel::is_large_disk_supported() {
///     true => ploop::FormatVersion::V2,
///     false => ploop::FormatVersion::V1,
/// };
/// # let _ = newest;
/// # Ok::<(), ploop::Error>(())
/// ```
#[must_use]
pub fn is_large_disk_supported() -> bool {
    ffi::exists(Path::new(sysfs::LARGE_DISK_SUPPORT))
}

/// The largest disk with this cluster and a file system, in the newest format that the driver knows
/// (`ploop_get_max_size`): 16 TiB, or 2 TiB in format v1.
///
/// # Errors
///
/// libploop 1.15 returns none.
///
/// ```
/// use ploop::{ClusterSize, Size};
///
/// assert!(ploop::kernel::max_size(ClusterSize::DEFAULT)? > Size::from_gib(1024));
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn max_size(cluster: ClusterSize) -> Result<Size> {
    ffi::max_size(cluster.sectors()).map(Size::from_sectors)
}

/// The version of the libploop that this crate was built against, as `1.15` or `7.0.280`: what its `.pc` file or its file
/// name says. Where neither does, it is the newest version that brought a function which the library has, so that the
/// library is that or a later one; `unknown` if the build did not see the library.
///
/// ```
/// println!("built against libploop {}", ploop::kernel::library_version());
/// ```
#[must_use]
pub fn library_version() -> &'static str {
    ffi::VERSION
}

/// The largest size that libploop makes as it was asked for.
pub(crate) fn max_size_of(format: FormatVersion, cluster: ClusterSize, fs: Option<FsType>) -> Size {
    /// A table entry and the v1 header have 32 bits.
    const MAX_32: u64 = 0xffff_ffff;
    /// libploop calculates the length of the table in 32 bits (30).
    const MAX_CLUSTERS: u64 = 1 << 30;
    let by_format = match format {
        FormatVersion::V1 => MAX_32 * 512,
        FormatVersion::V2 => MAX_CLUSTERS * cluster.bytes(),
    };
    let by_fs = match fs {
        Some(FsType::Ext4) => 16 << 40,
        None => u64::MAX,
    };
    Size::from_bytes(by_format.min(by_fs))
}

/// libploop changes images before it looks for the driver: it fills holes for a mount, and makes a
/// temporary snapshot and merges it again.
pub(crate) fn require_driver(operation: &'static str, path: &Path) -> Result<()> {
    if is_driver_present() {
        return Ok(());
    }
    let error = Error::new(ErrorKind::NoDriver, operation, MISSING);
    Err(error.with_path(path).with_advice(LOAD_DRIVER))
}

const MISSING: &str = "the ploop kernel driver is not loaded";

/// Where a tool and the driver are both missing, the error is that of the driver.
pub(crate) fn require_tools_or_driver(tools: impl FnOnce() -> Result<()>) -> Result<()> {
    match tools() {
        Err(error) if is_driver_present() => Err(error),
        Err(error) => Err(error
            .meaning(ErrorKind::NoDriver, MISSING)
            .with_advice(LOAD_DRIVER)),
        Ok(()) => Ok(()),
    }
}

/// [`require_tools_or_driver`] of what libploop starts to attach a device, and of these.
pub(crate) fn require_tools_to_attach(operation: &'static str, more: &[&str]) -> Result<()> {
    let needed = [tools::to_attach(), more].concat();
    require_tools_or_driver(|| tools::require_tools(operation, &needed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_end_where_libploop_miscalculates() {
        let size = |format, cluster, fs| max_size_of(format, cluster, fs).bytes();
        let (v1, v2) = (FormatVersion::V1, FormatVersion::V2);
        assert_eq!(size(v1, ClusterSize::MAX, None), 0xffff_ffff * 512);
        assert_eq!(size(v2, ClusterSize::MIN, None), 32 << 40);
        assert_eq!(size(v2, ClusterSize::DEFAULT, None), 1 << 50);
        assert_eq!(size(v2, ClusterSize::MAX, None), 64 << 50);
        assert_eq!(size(v2, ClusterSize::DEFAULT, Some(FsType::Ext4)), 16 << 40);
    }
}
