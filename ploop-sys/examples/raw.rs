//! The C library called directly: the largest image, and a GUID.

use ploop_sys::{ploop_get_max_size, ploop_is_large_disk_supported, ploop_uuid_generate};
use std::ffi::{CStr, c_char};

fn main() {
    let mut sectors = 0;
    // SAFETY: `sectors` outlives the call.
    let rc = unsafe { ploop_get_max_size(2048, &mut sectors) };
    assert_eq!(rc, 0);
    // SAFETY: takes nothing.
    let large = unsafe { ploop_is_large_disk_supported() } == 1;
    println!("largest image: {sectors} sectors; format 2 supported: {large}");

    let mut guid: [c_char; 39] = [0; 39];
    // SAFETY: the buffer is as long as the length says, and 39 is the least the function takes.
    let rc = unsafe { ploop_uuid_generate(guid.as_mut_ptr(), 39) };
    assert_eq!(rc, 0);
    // SAFETY: the function succeeded, so it terminated the string within the buffer.
    let guid = unsafe { CStr::from_ptr(guid.as_ptr()) };
    println!("a GUID: {}", guid.to_string_lossy());
}
