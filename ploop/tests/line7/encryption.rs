//! Encrypted images: what is refused before anything is changed; and what libploop does, with a helper program that
//! stands in for the real one and encrypts nothing. It gives the partition a name of device mapper's, as the real one
//! does, and notes what it was asked for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ploop::image::check_image;
use ploop::{Code, CreateParam, EncryptParam, ErrorKind, Guid, ImageMode, MountParam, Ploop, Size};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::container::{Container, SIZE, assert_detached, refused};
use crate::filled_image::FilledImage;
use crate::fixture::directory::Contents;
use crate::fixture::harness::{Need, Test};
use crate::{is_line_7, tests};

/// The helper is at a place that all tests share.
const HELPER: &[Need] = &[
    Need::LineSeven,
    Need::Driver,
    Need::Root,
    Need::Rsync,
    Need::Alone,
];

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            nothing_is_encrypted_without_the_helper,
            the_name_of_a_key_is_for_encrypted_images;
        HELPER =>
            an_image_is_encrypted_and_decrypted,
            a_key_is_changed,
            what_encryption_would_destroy_is_kept,
            a_helper_that_fails_leaves_the_image_as_it_was,
            an_image_is_made_encrypted;
    ]
}

const HELPER_PATH: &str = "/usr/libexec/ploop/crypthelper";

fn key_of(image: &Ploop) -> Option<String> {
    image.descriptor().unwrap().encryption
}

fn nothing_is_encrypted_without_the_helper() {
    assert!(
        !Path::new(HELPER_PATH).exists(),
        "this machine has {HELPER_PATH}"
    );
    let mut filled = FilledImage::new(ImageMode::Expanded);
    let before = Contents::of(filled.dir.path());
    let (tool, input) = match is_line_7() {
        true => (ErrorKind::Tool, ErrorKind::InvalidInput),
        false => (ErrorKind::Unsupported, ErrorKind::Unsupported),
    };
    let long = "k".repeat(250);
    for (param, kind) in [
        (EncryptParam::new("key"), tool),
        (EncryptParam::new("key").wipe(true).reencrypt(true), tool),
        (EncryptParam::decrypt(), input),
        (EncryptParam::new(""), input),
        (EncryptParam::new(" key"), input),
        (EncryptParam::new(&long), input),
        (EncryptParam::new(&Guid::NONE.to_string()), input),
        (EncryptParam::new("key").data(&"x".repeat(901)), input),
        (EncryptParam::new("key").data("a\0b"), input),
    ] {
        let error = filled.ploop.encrypt(&param).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(
            kind != ErrorKind::Tool || error.message().contains(HELPER_PATH),
            "{error}"
        );
        before.assert_unchanged("an encryption that was refused");
    }
    let param = CreateParam::new(filled.dir.path().join("other"), SIZE).encryption_key("key");
    let error = Ploop::create(&param).unwrap_err();
    assert_eq!(error.kind(), tool, "{error}");
    before.assert_unchanged("a creation that was refused");
}

fn the_name_of_a_key_is_for_encrypted_images() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    let before = Contents::of(filled.dir.path());
    let error = filled.ploop.set_encryption_key("key").unwrap_err();
    if !is_line_7() {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        return;
    }
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.message().contains("Ploop::encrypt"), "{error}");
    before.assert_unchanged("a name that was refused");
    // An image whose descriptor has lost it.
    filled.write([(0, 1)]);
    let base = filled.file_of(Guid::TOP);
    let mut bytes = fs::read(&base).unwrap();
    let data = bytes.len() - filled.cluster.bytes() as usize;
    bytes[data..data + 6].copy_from_slice(b"LUKS\xba\xbe");
    fs::write(&base, &bytes).unwrap();
    filled.ploop.set_encryption_key("a <key> & ключ").unwrap();
    assert_eq!(key_of(&filled.ploop).as_deref(), Some("a <key> & ключ"));
    // Another name for it; other changes keep it.
    filled.ploop.set_encryption_key("other").unwrap();
    filled.ploop.set_max_delta_size(Size::from_gib(1)).unwrap();
    let snapshot = filled.ploop.snapshot().unwrap();
    filled.ploop.delete_snapshot(snapshot).unwrap();
    assert_eq!(key_of(&filled.ploop).as_deref(), Some("other"));
    assert_eq!(fs::read(&base).unwrap()[data..], bytes[data..]);
    // Without the helper it is not attached.
    if Path::new("/proc/vz/ploop_minor").exists() {
        let error = filled.ploop.mount(&MountParam::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tool, "{error}");
    }
}

/// A helper in the place of the real one, as long as it lives.
struct Helper {
    log: TempDir,
}

impl Helper {
    /// `fails` is an action that it refuses.
    fn install(fails: &str) -> Helper {
        let log = tempfile::tempdir().unwrap();
        let directory = Path::new(HELPER_PATH).parent().unwrap();
        let above = directory.parent().unwrap();
        mount("tmpfs", above, "tmpfs", MountFlags::empty(), None).unwrap();
        fs::create_dir(directory).unwrap();
        // libploop gives it an environment of three variables, without those of the sandbox.
        let sandbox: String = std::env::vars()
            .filter(|(name, _)| name == "LD_PRELOAD" || name.starts_with("PLOOP_SANDBOX"))
            .map(|(name, value)| format!("export {name}='{value}'\n"))
            .collect();
        let script = format!(
            r#"#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
{sandbox}echo "$1 $DEVICE $DEVICE_NAME $KEYID" >> {log}/calls
[ "$1" != "{fails}" ] || exit 7
mkdir -p /dev/mapper
case $1 in
init)
    sgdisk -n 1:2048:-2048 "$DEVICE" > /dev/null && partprobe "$DEVICE" ;;
open)
    ln -sf "$DEVICE" "/dev/mapper/$DEVICE_NAME"
    ln -sf "${{DEVICE%p1}}" "/dev/mapper/${{DEVICE_NAME%p1}}" ;;
close)
    rm -f "/dev/mapper/$DEVICE_NAME" ;;
esac
"#,
            log = log.path().display(),
        );
        fs::write(HELPER_PATH, script).unwrap();
        fs::set_permissions(HELPER_PATH, fs::Permissions::from_mode(0o755)).unwrap();
        Helper { log }
    }

    /// What it was asked for since the last time.
    fn calls(&self) -> Vec<String> {
        let path = self.log.path().join("calls");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let above = Path::new(HELPER_PATH).ancestors().nth(2).unwrap();
        unmount(above, UnmountFlags::DETACH).unwrap();
    }
}

fn actions(calls: &[String]) -> Vec<&str> {
    calls
        .iter()
        .map(|call| call.split(' ').next().unwrap())
        .collect()
}

/// An image with a file of known bytes.
fn filled() -> (Container, Ploop) {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 5 << 20);
    guard.umount().unwrap();
    (container, image)
}

/// Asserts that the file is in the image, which is mounted once.
fn verify(container: &Container, image: &mut Ploop) {
    let guard = image.mount_guard(&container.param()).unwrap();
    container.verify(&["file"]);
    guard.umount().unwrap();
}

fn an_image_is_encrypted_and_decrypted() {
    let helper = Helper::install("");
    let (container, mut image) = filled();
    image.set_max_delta_size(Size::from_gib(3)).unwrap();
    let before = fs::read(container.base()).unwrap();
    let param = EncryptParam::new("first key")
        .wipe(true)
        .data("errors=continue");
    image.encrypt(&param).unwrap();
    assert_eq!(key_of(&image).as_deref(), Some("first key"));
    let calls = helper.calls();
    assert_eq!(actions(&calls)[..2], ["init", "open"]);
    assert!(
        calls
            .iter()
            .all(|call| call.ends_with(" first key") || call.starts_with("close"))
    );
    assert_detached(&mut image);
    // A new base under the old name, and nothing else beside it.
    assert_ne!(fs::read(container.base()).unwrap(), before);
    let names = [".statfs", "DiskDescriptor.xml", "root.hdd"];
    assert!(
        container
            .beside()
            .iter()
            .all(|name| names.contains(&&**name)),
        "{:?}",
        container.beside()
    );
    let descriptor = image.descriptor().unwrap();
    assert_eq!(descriptor.max_delta_size, Some(Size::from_gib(3)));
    assert_eq!(descriptor.size, SIZE);
    let report = check_image(container.base());
    assert!(report.is_sound(), "{report}");
    verify(&container, &mut image);
    assert_eq!(actions(&helper.calls()), ["open"]);
    // Anew, with another key.
    let param = EncryptParam::new("second").reencrypt(true);
    image.encrypt(&param).unwrap();
    assert_eq!(key_of(&image).as_deref(), Some("second"));
    assert!(
        helper
            .calls()
            .iter()
            .any(|call| call.starts_with("init") && call.ends_with(" second"))
    );
    verify(&container, &mut image);
    // And back.
    helper.calls();
    image.encrypt(&EncryptParam::decrypt().wipe(true)).unwrap();
    assert_eq!(key_of(&image), None);
    assert_eq!(actions(&helper.calls()), ["open"]);
    drop(helper);
    container.verify_image(&mut image, &["file"]);
}

fn a_key_is_changed() {
    let helper = Helper::install("");
    let (container, mut image) = filled();
    image.encrypt(&EncryptParam::new("old")).unwrap();
    let base = fs::read(container.base()).unwrap();
    helper.calls();
    image.encrypt(&EncryptParam::new("new")).unwrap();
    assert_eq!(key_of(&image).as_deref(), Some("new"));
    let calls = helper.calls();
    let change = calls.iter().find(|call| call.starts_with("changekey"));
    assert!(change.unwrap().ends_with(" new old"), "{calls:?}");
    // What was written stays.
    assert!(fs::read(container.base()).unwrap()[4096..] == base[4096..]);
    assert_detached(&mut image);
    // Of a running image with a snapshot.
    let mut guard = image.mount_guard(&container.param()).unwrap();
    let snapshot = guard.snapshot().unwrap();
    guard.encrypt(&EncryptParam::new("newest")).unwrap();
    container.verify(&["file"]);
    guard.umount().unwrap();
    assert_eq!(key_of(&image).as_deref(), Some("newest"));
    // Which is in the way of what writes the image anew.
    for param in [
        EncryptParam::decrypt(),
        EncryptParam::new("x").reencrypt(true),
    ] {
        refused(image.encrypt(&param), ErrorKind::Unsupported, None);
    }
    image.delete_snapshot(snapshot).unwrap();
    verify(&container, &mut image);
}

fn what_encryption_would_destroy_is_kept() {
    let helper = Helper::install("");
    let (container, mut image) = filled();
    let (enc, orig) = (container.path("enc"), container.path("root.hdd.orig"));
    let wipe = EncryptParam::new("key").wipe(true);
    fs::create_dir(&enc).unwrap();
    fs::write(enc.join("precious"), "x").unwrap();
    let error = refused(image.encrypt(&wipe), ErrorKind::AlreadyExists, None);
    assert_eq!(error.path(), Some(&*enc.canonicalize().unwrap()));
    assert_eq!(fs::read(enc.join("precious")).unwrap(), b"x");
    fs::remove_dir_all(&enc).unwrap();
    fs::write(&orig, "precious").unwrap();
    refused(image.encrypt(&wipe), ErrorKind::AlreadyExists, None);
    assert_eq!(fs::read(&orig).unwrap(), b"precious");
    assert_eq!(helper.calls(), Vec::<String>::new());
    // While it is attached.
    image.mount(&container.param()).unwrap();
    refused(image.encrypt(&wipe), ErrorKind::Busy, Code::PARAM);
    container.verify(&["file"]);
    image.umount().unwrap();
    // Who does not wipe keeps it.
    image.encrypt(&EncryptParam::new("key")).unwrap();
    assert_eq!(fs::read(&orig).unwrap(), b"precious");
    verify(&container, &mut image);
}

fn a_helper_that_fails_leaves_the_image_as_it_was() {
    for fails in ["init", "open"] {
        let helper = Helper::install("");
        let (container, mut image) = filled();
        drop(helper);
        let before = (fs::read(container.base()).unwrap(), container.beside());
        let helper = Helper::install(fails);
        let error = refused(
            image.encrypt(&EncryptParam::new("key").wipe(true)),
            ErrorKind::Tool,
            Code::CRYPT,
        );
        assert!(error.message().contains("exited with code 7"), "{error}");
        assert!(!helper.calls().is_empty());
        drop(helper);
        assert_eq!(key_of(&image), None);
        assert_detached(&mut image);
        assert_eq!(container.beside(), before.1, "{fails}");
        assert!(fs::read(container.base()).unwrap() == before.0, "{fails}");
        container.verify_image(&mut image, &["file"]);
    }
    // Of a change of the key.
    let helper = Helper::install("");
    let (container, mut image) = filled();
    image.encrypt(&EncryptParam::new("old")).unwrap();
    drop(helper);
    let helper = Helper::install("changekey");
    refused(
        image.encrypt(&EncryptParam::new("new")),
        ErrorKind::Tool,
        Code::CRYPT,
    );
    assert_eq!(key_of(&image).as_deref(), Some("old"));
    assert_detached(&mut image);
    verify(&container, &mut image);
    drop(helper);
}

fn an_image_is_made_encrypted() {
    let helper = Helper::install("");
    let (mut container, mut image) = Container::made(SIZE, |param| {
        param.encryption_key("of its own").fs_label("secret")
    });
    assert_eq!(key_of(&image).as_deref(), Some("of its own"));
    assert_eq!(actions(&helper.calls())[..2], ["init", "open"]);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    guard.umount().unwrap();
    verify(&container, &mut image);
    drop(helper);
    // One that fails leaves nothing.
    let _helper = Helper::install("open");
    let (container, error) = Container::refused(SIZE, |param| param.encryption_key("key"));
    assert_eq!(error.libploop_code(), Some(Code::CRYPT), "{error}");
    assert_eq!(container.beside(), Vec::<String>::new());
}
