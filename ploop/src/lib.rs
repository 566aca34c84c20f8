//! Ploop images from Rust.

mod component;
#[cfg(feature = "libploop")]
mod convert;
#[cfg(feature = "libploop")]
pub mod copy;
#[cfg(feature = "libploop")]
mod create;
#[cfg(feature = "libploop")]
pub mod device;
#[cfg(feature = "libploop")]
mod discard;
mod error;
#[cfg(feature = "libploop")]
mod ffi;
mod format;
mod guid;
#[cfg(feature = "libploop")]
mod handle;
#[cfg(feature = "image")]
pub mod image;
#[cfg(feature = "libploop")]
mod info;
#[cfg(feature = "libploop")]
pub mod kernel;
#[cfg(feature = "libploop")]
pub mod lock;
#[cfg(feature = "libploop")]
pub mod log;
#[cfg(feature = "libploop")]
mod merge;
#[cfg(feature = "libploop")]
mod mount;
#[cfg(feature = "libploop")]
mod preflight;
#[cfg(feature = "libploop")]
mod replace;
#[cfg(feature = "libploop")]
mod resize;
mod size;
#[cfg(feature = "libploop")]
mod snapshot;

pub use component::ComponentName;
#[cfg(feature = "libploop")]
pub use create::{CreateFlags, CreateParam, FsType};
#[cfg(feature = "libploop")]
pub use discard::{DiscardParam, DiscardStat, StopFlag};
pub use error::{Code, Error, ErrorKind, Result};
pub use format::{FormatVersion, ImageMode};
pub use guid::Guid;
#[cfg(feature = "libploop")]
pub use handle::Ploop;
#[cfg(feature = "image")]
pub use image::Descriptor;
#[cfg(feature = "libploop")]
pub use info::{FsInfo, ImageInfo, fs_info};
#[cfg(feature = "libploop")]
pub use kernel::load_kernel_modules;
#[cfg(feature = "libploop")]
pub use merge::{MergeParam, MergeTarget};
#[cfg(feature = "libploop")]
pub use mount::{MountFlags, MountGuard, MountParam, Mounted};
#[cfg(feature = "libploop")]
pub use ploop_sys as sys;
#[cfg(feature = "libploop")]
pub use replace::{ReplaceFlag, ReplaceParam, ReplaceTarget};
#[cfg(feature = "libploop")]
pub use resize::{ResizeMode, ResizeParam};
pub use size::{ClusterSize, Size};
#[cfg(feature = "libploop")]
pub use snapshot::{SnapshotParam, SwitchFlag, TemporarySnapshot, TemporarySnapshotParam};
