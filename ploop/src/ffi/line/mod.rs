//! What differs between the lines of libploop: [`LINE`] says what the one that is linked can do and what it does
//! wrong, and each line's module fills in the members that the others lack. No other module asks for the line.

#[cfg(libploop_line = "1")]
#[path = "v1.rs"]
mod linked;
#[cfg(libploop_line = "7")]
#[path = "v7.rs"]
mod linked;

#[cfg(not(libploop_line = "1"))]
mod late;
mod loaded;

pub(super) use linked::{
    copy_receive, copy_send, drop_cbt, encrypt_image, forget_native_discard, get_part, init_device,
    init_image, merge_params, native_discard, set_cbt_uuid, set_encryption_keyid, set_fsck,
    set_label_and_key, set_no_probe, set_temporary_cbt_uuid, set_umount_timeout, suspend_device,
};
pub(crate) use loaded::{exports, file as loaded_file, require_line};

use std::ffi::{c_char, c_int};

use crate::image::descriptor::DescriptorForm;

/// `ploop_suspend_device`, `ploop_resume_device`.
pub(super) type SuspendDevice = unsafe extern "C" fn(part: *const c_char) -> c_int;

/// `ploop_get_part`.
pub(super) type GetPart = unsafe extern "C" fn(
    di: *mut ploop_sys::ploop_disk_images_data,
    dev: *const c_char,
    partname: *mut c_char,
    len: c_int,
) -> c_int;

/// The line that is linked.
pub(crate) const LINE: Line = linked::LINE;

/// How the library that is loaded reads and writes descriptors.
pub(crate) fn descriptor_form() -> &'static DescriptorForm {
    const NEWEST: &DescriptorForm = &LINE.descriptor;
    const OLDER: &DescriptorForm = &DescriptorForm {
        root: DescriptorForm::PARALLELS.root,
        ..LINE.descriptor
    };
    // Line 7 has another root since 7.0.191. This function is from 7.0.199; in between, the root is restored after each
    // call, as any that the library does not write.
    match loaded::exports(c"ploop_get_devname") {
        true => NEWEST,
        false => OLDER,
    }
}

/// Whether a mount rewrites an image of format v1 to v2. Versions without this function, which is from 7.0.226, do not.
pub(crate) fn upgrades_v1_at_mount() -> bool {
    LINE.upgrades_v1_at_mount && loaded::exports(c"ploop_suspend_device")
}

/// Whether `ploop_replace_image` may take a sound delta on ext4 for damaged (A73): until 7.0.214 it looks for holes in the
/// new file, and in most of these versions has no room for each place in it that a full delta needs. Versions without this
/// function, which is from 7.0.226.
pub(crate) fn misjudges_replacement() -> bool {
    !LINE.compares_replacement && !loaded::exports(c"ploop_suspend_device")
}

/// A line of libploop: what it can do, and its quirks.
#[derive(Debug)]
pub(crate) struct Line {
    /// The major number in the soname, and in the names of the lines: 1, 7.
    pub(crate) number: u32,
    /// How its newest version writes descriptors; what is loaded tells [`descriptor_form`].
    descriptor: DescriptorForm,
    /// A merge counts the clusters of format v1 in units of 1 MiB, whatever their size.
    pub(crate) misplaces_v1_clusters: bool,
    /// Before a merge writes to a snapshot, it marks it temporary in the descriptor that is in place.
    pub(crate) marks_before_merging: bool,
    /// `ploop_copy_send` and `ploop_copy_receive` work; otherwise they return 38, whatever they are given: in 7 since
    /// 7.0.235.
    pub(crate) copies: bool,
    /// A mount that can write rewrites an image of format v1 to v2, also a mount that then fails, if it is told neither
    /// a delta nor a component name: [`upgrades_v1_at_mount`], for this is only so since 7.0.251.
    pub(crate) upgrades_v1_at_mount: bool,
    /// `sgdisk` makes the partition, which begins at a multiple of 1 MiB then; otherwise at the second cluster.
    pub(crate) aligns_partitions: bool,
    /// `ploop_replace_image` compares size and header of the new file with those of the old one. Otherwise it also
    /// takes an image whose device it does not find for one that does not run.
    pub(crate) compares_replacement: bool,
    /// Deltas keep the bitmaps of tracked changes in a format extension; otherwise the library does not know of any.
    pub(crate) keeps_extensions: bool,
    /// `ploop_discard` and `ploop_discard_get_stat` find a device that has a component name; otherwise only one without.
    pub(crate) discards_by_component: bool,
}
