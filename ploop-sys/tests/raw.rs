//! A few raw calls: the library is found at run time, and its functions work as bound.

use ploop_sys::*;
use std::ffi::{CStr, CString, c_char};
use std::ptr;

#[test]
fn uuid_generate_writes_a_braced_guid() {
    let mut out: [c_char; 39] = [0; 39];
    // SAFETY: the buffer is as long as the length says, and 39 is the least the function takes.
    let rc = unsafe { ploop_uuid_generate(out.as_mut_ptr(), 39) };
    assert_eq!(rc, 0);
    // SAFETY: the function succeeded, so it terminated the string within the buffer.
    let guid = unsafe { CStr::from_ptr(out.as_ptr()) }.to_str().unwrap();
    assert_eq!(guid.len(), 38, "{guid}");
    assert!(guid.starts_with('{') && guid.ends_with('}'), "{guid}");
}

#[test]
fn max_size_grows_with_nothing_but_the_format() {
    let mut max = 0;
    // SAFETY: `max` outlives the call.
    let rc = unsafe { ploop_get_max_size(2048, &mut max) };
    assert_eq!(rc, 0);
    // Format 1 (no kernel module): 2³² − 1 sectors; format 2: as many clusters.
    assert!(
        max == 0xffff_ffff || max == 0xffff_ffff * 2048,
        "{max} sectors"
    );
}

#[test]
fn a_descriptor_can_be_created_opened_and_read() {
    let dir = tempfile::tempdir().unwrap();
    // Debian's build reads 4096 bytes from these two, whatever their length.
    let padded = |name: &str| {
        let mut bytes = dir.path().join(name).into_os_string().into_encoded_bytes();
        bytes.resize(4096, 0);
        bytes
    };
    let (mut image, xml) = (padded("root.hds"), padded("DiskDescriptor.xml"));

    let mut param = ploop_create_param {
        size: 20 * 2048,
        mode: PLOOP_EXPANDED_MODE,
        image: image.as_mut_ptr().cast(),
        ..Default::default()
    };
    // SAFETY: both strings are terminated and followed by enough bytes; the parameters outlive the call.
    let rc = unsafe { ploop_create_dd(xml.as_ptr().cast(), &mut param) };
    assert_eq!(rc, 0);

    let mut di = ptr::null_mut();
    // SAFETY: `di` outlives the call and the string is terminated.
    let rc = unsafe { ploop_open_dd(&mut di, xml.as_ptr().cast()) };
    assert_eq!(rc, 0);
    // SAFETY: opening succeeded, so `di` points to a handle. Opening reads nothing.
    assert_eq!(unsafe { (*di).nimages }, 0);
    // SAFETY: `di` is the library's and is not used again.
    unsafe { ploop_close_dd(di) };

    // SAFETY: as for opening; this call makes a handle of its own and reads the file.
    let rc = unsafe { ploop_read_disk_descr(&mut di, xml.as_ptr().cast()) };
    assert_eq!(rc, 0);
    // SAFETY: reading succeeded, so the handle has its one image and the strings are terminated.
    let name = unsafe {
        assert_eq!((*di).size, 20 * 2048);
        assert_eq!((*di).mode, PLOOP_EXPANDED_MODE);
        assert_eq!((*di).nimages, 1);
        CStr::from_ptr((**(*di).images).file).to_owned()
    };
    assert!(name.to_str().unwrap().ends_with("/root.hds"), "{name:?}");
    // SAFETY: `di` is the library's and is not used again.
    unsafe { ploop_close_dd(di) };
}

#[test]
fn opening_what_is_not_there_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.xml");
    let path = CString::new(path.into_os_string().into_encoded_bytes()).unwrap();
    let mut di = ptr::null_mut();
    // SAFETY: `di` outlives the call and the string is terminated.
    let rc = unsafe { ploop_open_dd(&mut di, path.as_ptr()) };
    assert_eq!(rc, SYSEXIT_DISKDESCR);
    assert!(di.is_null());
    // SAFETY: the text belongs to this thread and is copied before the next call.
    let words = unsafe { CStr::from_ptr(ploop_get_last_error()) }.to_owned();
    assert!(
        words.to_string_lossy().contains("none.xml"),
        "the error text does not name the file: {words:?}"
    );
}
