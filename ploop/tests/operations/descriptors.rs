//! Descriptors that mean the same as libploop's and are written differently. Look-ups read them as they are. Changes
//! rewrite them first, so that libploop reads what was checked.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use ploop::{ErrorKind, Guid, ImageMode, MergeParam, MergeTarget, Size, SnapshotParam, SwitchFlag};

use super::directory::Contents;
use super::filled_image::FilledImage;

use crate::line::{descriptor_text, is_7, is_since, root};
use crate::refused::refused;

/// An image with two snapshots and known contents.
fn filled() -> (FilledImage, Vec<Guid>) {
    FilledImage::chain(ImageMode::Expanded, ploop::FormatVersion::V1, 2)
}

fn edit(filled: &FilledImage, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(filled.xml()).unwrap();
    let changed = change(text.clone());
    assert_ne!(changed, text);
    fs::write(filled.xml(), changed).unwrap();
}

type Edit = fn(String) -> Vec<u8>;

fn reversed(text: String) -> Vec<u8> {
    let start = text.find("      <Image>").unwrap();
    let end = text.find("    </Storage>").unwrap();
    let images = text[start..end].split_inclusive("</Image>\n");
    let reversed: Vec<&str> = images.collect::<Vec<_>>().into_iter().rev().collect();
    format!("{}{}{}", &text[..start], reversed.concat(), &text[end..]).into()
}

fn utf_16(text: String) -> Vec<u8> {
    let units = "\u{feff}".encode_utf16().chain(text.encode_utf16());
    units.flat_map(u16::to_le_bytes).collect::<Vec<_>>()
}

const FORMS: &[(&str, Edit)] = &[
    ("the images in another order", reversed),
    ("UTF-16", utf_16),
    ("upper-case GUIDs", |text| {
        let lines = text
            .split_inclusive('\n')
            .map(|line| match line.split_once("GUID>") {
                Some((before, guid)) => {
                    let (guid, end) = guid.split_once("</").unwrap();
                    format!("{before}GUID>{}</{end}", guid.to_uppercase())
                }
                None => line.to_owned(),
            });
        lines.collect::<String>().into()
    }),
    ("an old top", |text| {
        let old = "{11111111-2222-3333-4444-555555555555}";
        text.replace(&Guid::TOP.to_string(), old).into()
    }),
    ("a comment in a name", |text| {
        text.replace("<File>", "<File><!-- was root.hdd -->").into()
    }),
    ("a name that a comment ends", |text| {
        text.replace("<File>root.hds<", "<File>root.hds<!-- --> and more<")
            .into()
    }),
    ("white space in numbers", |text| {
        text.replace("size>", "size> ")
            .replace("</Disk", " </Disk")
            .into()
    }),
    ("zeros behind the end", |text| (text + "\0\0\0").into()),
    ("types in lower case", |text| {
        text.replace("Compressed", "compressed").into()
    }),
    ("a document type", |text| {
        text.replace("?>", &format!("?>\n<!DOCTYPE {}>", root()))
            .into()
    }),
    ("two sizes", |text| {
        text.replace("<Cylinders>", "<Disk_size>7</Disk_size><Cylinders>")
            .into()
    }),
    ("two trees", |text| {
        text.replace("</Snapshots>", "</Snapshots><Snapshots></Snapshots>")
            .into()
    }),
    ("no geometry", |text| {
        text.replace("<Cylinders>3<", "<Cylinders>0<").into()
    }),
    ("character references", |text| {
        text.replace("<GUID>{", "<GUID>&#123;").into()
    }),
    ("other indentation", |text| text.replace("  ", "\t").into()),
];

#[test]
fn look_ups_leave_them_alone() {
    for (form, change) in FORMS {
        let (filled, _) = filled();
        let text = fs::read_to_string(filled.xml()).unwrap();
        let files = filled.names();
        let (base, top) = (filled.path("root.hds"), filled.file_of(Guid::TOP));
        let info = filled.ploop.image_info().unwrap();
        fs::write(filled.xml(), change(text)).unwrap();
        let before = Contents::of(filled.dir.path());
        assert_eq!(filled.ploop.image_info().unwrap(), info, "{form}");
        assert_eq!(filled.ploop.top_delta_file().unwrap(), top, "{form}");
        assert_eq!(filled.ploop.base_delta_file().unwrap(), base, "{form}");
        assert!(!filled.ploop.is_mounted().unwrap());
        assert!(filled.ploop.devices().unwrap().is_empty());
        assert_eq!(filled.ploop.device().unwrap(), None);
        assert!(filled.ploop.discard_stat().is_err());
        before.assert_unchanged(form);
        assert_eq!(filled.names(), files, "{form}");
    }
}

#[test]
fn changes_do_the_same_in_every_form() {
    for (form, change) in FORMS {
        println!("{form}");
        let other_form = |filled: &FilledImage| {
            let text = fs::read_to_string(filled.xml()).unwrap();
            fs::write(filled.xml(), change(text)).unwrap();
        };
        let (mut filled, guids) = filled();
        fs::set_permissions(filled.xml(), fs::Permissions::from_mode(0o640)).unwrap();
        other_form(&filled);
        let taken = filled.ploop.snapshot().unwrap();
        filled.took(taken);
        filled.verify();
        other_form(&filled);
        filled
            .ploop
            .merge(&MergeParam::new(MergeTarget::Snapshot(guids[1])))
            .unwrap();
        filled.states.remove(&guids[0]);
        filled.verify();
        other_form(&filled);
        let kept = filled
            .ploop
            .switch_snapshot_with(guids[1], SwitchFlag::SKIP_DESTROY)
            .unwrap()
            .unwrap();
        let contents = filled.states[&Guid::TOP].clone();
        filled.states.insert(kept, contents);
        filled.went_back_to(guids[1]);
        filled.verify();
        other_form(&filled);
        filled.ploop.delete_snapshot(kept).unwrap();
        filled.states.remove(&kept);
        filled.verify();
        other_form(&filled);
        filled.ploop.convert(ImageMode::Raw).unwrap();
        filled.verify();
        let names = filled.names();
        assert_eq!(
            names.len(),
            filled.descriptor().images.len() + 1,
            "{names:?}"
        );
    }
}

/// A refused change rewrites nothing. A successful one keeps mode and owner, and follows no link.
#[test]
fn rewriting_is_part_of_the_change() {
    let (mut filled, guids) = filled();
    fs::set_permissions(filled.xml(), fs::Permissions::from_mode(0o640)).unwrap();
    edit(&filled, |text| text.replace("  ", " "));
    let before = Contents::of(filled.dir.path());
    filled.ploop.switch_snapshot(Guid::generate()).unwrap_err();
    filled.ploop.delete_snapshot(Guid::NONE).unwrap_err();
    before.assert_unchanged("refused changes");
    let victim = filled.path("victim");
    fs::write(&victim, "precious").unwrap();
    for suffix in ["ploop-new", "ploop-kept"] {
        let trap = filled.path(&format!("DiskDescriptor.xml.{suffix}"));
        std::os::unix::fs::symlink(&victim, trap).unwrap();
    }
    edit(&filled, |text| {
        text.replace("<Cylinders>", "<Name>a</Name><Cylinders>")
    });
    for suffix in ["ploop-new", "ploop-kept"] {
        let trap = filled.path(&format!("DiskDescriptor.xml.{suffix}"));
        let error = filled.ploop.switch_snapshot(guids[0]).unwrap_err();
        assert_eq!(error.path(), Some(&*trap), "{error}");
        fs::remove_file(trap).unwrap();
    }
    filled.ploop.switch_snapshot(guids[0]).unwrap();
    filled.went_back_to(guids[0]);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    let text = fs::read_to_string(filled.xml()).unwrap();
    assert!(text.contains("    <Name>a</Name>\n"), "{text}");
    let mode = fs::metadata(filled.xml()).unwrap().permissions().mode();
    // libploop writes another mode, and what it dropped is put back into its file.
    assert_eq!(mode & 0o600, 0o600);
    let leftover = filled.path("DiskDescriptor.xml.ploop-kept");
    assert!(fs::symlink_metadata(leftover).is_err());
}

/// Text that means one thing in ASCII and another in UTF-7 leads neither to another file nor to a shell.
#[test]
fn other_encodings_are_refused() {
    for encoding in ["UTF-7", "ISO-8859-1", "IBM037"] {
        for name in ["..+AC8-VICTIM", "a+ADs-id+AD4-PWNED+ADs-.hds"] {
            let (mut filled, guids) = filled();
            // Other runs of this test have others.
            let own = filled.dir.path().file_name().unwrap().to_str().unwrap();
            let victim = format!("victim{own}");
            let name = name.replace("VICTIM", &victim);
            let victim = filled.dir.path().parent().unwrap().join(victim);
            fs::write(&victim, "precious").unwrap();
            let top = filled.file_of(Guid::TOP);
            let file = top.file_name().unwrap().to_str().unwrap().to_owned();
            fs::copy(&top, filled.path(&name)).unwrap();
            edit(&filled, |text| {
                text.replace(&file, &name)
                    .replace("?>", &format!(" encoding=\"{encoding}\"?>"))
            });
            let before = Contents::of(filled.dir.path());
            for result in [
                filled.ploop.delete_top_delta(),
                filled.ploop.snapshot().map(drop),
                filled.ploop.switch_snapshot(guids[0]),
                filled.ploop.image_info().map(drop),
                filled.ploop.is_mounted().map(drop),
                filled.ploop.top_delta_file().map(drop),
                filled.ploop.umount(),
                ploop::fs_info(filled.xml()).map(drop),
            ] {
                let error = refused(result, ErrorKind::Unsupported);
                assert_eq!(error.path(), Some(&*filled.xml()), "{error}");
                assert!(error.message().contains("iconv"), "{error}");
            }
            before.assert_unchanged(encoding);
            assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
            fs::remove_file(victim).unwrap();
        }
    }
}

const FIELDS: [&str; 4] = [
    "<Parallels_disk_image Version=\"1.0\">\n",
    "    <Padding>0</Padding>\n    <PhysicalSectorSize>4096</PhysicalSectorSize>\n",
    "    <Miscellaneous><Bootable>1</Bootable></Miscellaneous>\n",
    "        <Note>of the base</Note>\n",
];

fn with_fields(text: String) -> String {
    text.replace(&format!("<{}>", root()), FIELDS[0].trim_end())
        .replace(&format!("</{}>", root()), "</Parallels_disk_image>")
        .replace(
            "    <Padding>0</Padding>\n",
            &format!("{}{}", FIELDS[1], FIELDS[2]),
        )
        .replace(
            "<File>root.hds</File>\n",
            &format!("<File>root.hds</File>\n{}", FIELDS[3]),
        )
}

fn assert_fields(filled: &FilledImage, after: &str) {
    let text = fs::read_to_string(filled.xml()).unwrap();
    for field in FIELDS {
        assert!(text.contains(field), "after {after}: {field}{text}");
    }
    let names = filled.names();
    assert!(
        names.iter().all(|name| !name.contains("ploop-")),
        "{names:?}"
    );
}

#[test]
fn what_libploop_does_not_know_survives_changes() {
    let (mut filled, guids) = filled();
    edit(&filled, with_fields);
    let taken = filled.ploop.snapshot().unwrap();
    assert_fields(&filled, "a snapshot");
    filled.ploop.switch_snapshot(taken).unwrap();
    assert_fields(&filled, "a switch");
    filled
        .ploop
        .merge(&MergeParam::new(MergeTarget::Top))
        .unwrap();
    assert_fields(&filled, "a merge");
    filled.ploop.delete_snapshot(guids[0]).unwrap();
    assert_fields(&filled, "a deletion");
    filled
        .ploop
        .set_max_delta_size(Size::from_sectors(1 << 20))
        .unwrap();
    assert_fields(&filled, "a limit");
    filled.ploop.convert(ImageMode::Preallocated).unwrap();
    assert_fields(&filled, "a conversion");
    assert_eq!(filled.descriptor().mode, ImageMode::Preallocated);
    // After an error, too.
    filled.ploop.switch_snapshot(guids[0]).unwrap_err();
    assert_fields(&filled, "an error");
}

/// What only libploop 7 knows. A descriptor may also have the root of the other line.
#[test]
fn what_another_line_writes_survives_changes() {
    const KEY: &str = "    <Encryption>\n      <KeyId>a &amp; b</KeyId>\n    </Encryption>\n";
    const VOLUME: &str = "    <Volume>\n      <SnapshotGUID>{5b6d4bf4-322d-4dbf-9009-c6d066d792df}</SnapshotGUID>\n    </Volume>\n";
    for (name, field, behind) in [
        ("key", KEY, "    <Padding>0</Padding>\n"),
        ("volume", VOLUME, "  <StorageData>\n"),
    ] {
        for root in ["Parallels_disk_image", "Virtuozzo_disk_image"] {
            let (mut filled, guids) = filled();
            edit(&filled, |text| {
                text.replace(crate::line::root(), root)
                    .replace(behind, &format!("{behind}{field}"))
            });
            let before = Contents::of(filled.dir.path());
            if name == "key" && !is_7() {
                // libploop 1 would drop it.
                refused(filled.ploop.snapshot().map(drop), ErrorKind::Unsupported);
                before.assert_unchanged(name);
                continue;
            }
            let taken = filled.ploop.snapshot().unwrap();
            filled.ploop.switch_snapshot(guids[0]).unwrap();
            filled.ploop.delete_snapshot(taken).unwrap();
            let text = fs::read_to_string(filled.xml()).unwrap();
            // 7.0.95 and 7.0.96 drop a volume that names no parent.
            let is_kept = name == "key" || !is_7() || is_since([7, 0, 97]);
            assert_eq!(text.contains(field), is_kept, "{name}: {text}");
            assert!(text.contains(&format!("\n<{root}>\n")), "{name}: {text}");
            let names = filled.names();
            assert!(!names.iter().any(|name| name.contains("kept")), "{names:?}");
        }
    }
}

/// Their deltas belong to another image, or others to them.
#[test]
fn volumes_that_share_deltas_are_not_changed() {
    for field in ["<Parent>../other</Parent>", "<ReadOnly>1</ReadOnly>"] {
        let (mut filled, guids) = filled();
        edit(&filled, |text| {
            let volume = format!("<StorageData><Volume>{field}</Volume>");
            text.replace("<StorageData>", &volume)
        });
        if !is_7() && !field.contains("Parent") {
            // There are no volumes in libploop 1, which drops what it does not know.
            filled.ploop.snapshot().unwrap();
            assert!(fs::read_to_string(filled.xml()).unwrap().contains(field));
            continue;
        }
        // libploop 7 knows volumes, and the one upon which this one stands is not there.
        let kind = match is_7() && field.contains("Parent") {
            true => ErrorKind::NotFound,
            false => ErrorKind::Unsupported,
        };
        let before = Contents::of(filled.dir.path());
        refused(filled.ploop.snapshot().map(drop), kind);
        refused(filled.ploop.delete_snapshot(guids[0]), kind);
        before.assert_unchanged(field);
    }
}

/// libploop 7 takes each `../` in a name for a step up, wherever it stands.
#[test]
fn names_that_a_line_reads_otherwise_are_refused() {
    let (mut filled, guids) = filled();
    let top = filled.file_of(Guid::TOP);
    let name = top.file_name().unwrap().to_str().unwrap().to_owned();
    let inside = filled.path("a..");
    fs::create_dir(&inside).unwrap();
    fs::rename(&top, inside.join(&name)).unwrap();
    edit(&filled, |text| text.replace(&name, &format!("a../{name}")));
    if is_7() {
        let before = Contents::of(filled.dir.path());
        let error = refused(filled.ploop.delete_top_delta(), ErrorKind::Unsupported);
        assert_eq!(error.path(), Some(&*filled.xml()), "{error}");
        before.assert_unchanged("a name");
    } else {
        filled.ploop.delete_top_delta().unwrap();
        filled.states.remove(&guids[1]);
        assert_eq!(filled.ploop.descriptor().unwrap().images.len(), 2);
    }
    let param = SnapshotParam::new().directory(&inside);
    let (mut filled, _) = self::filled();
    let made = filled.ploop.snapshot_with(&param);
    assert_eq!(made.is_err(), is_7(), "{made:?}");
}

/// A program that is killed after libploop's part and before this crate's leaves the fields in a file beside the descriptor.
#[test]
fn what_a_killed_change_has_dropped_comes_back() {
    let (mut filled, _) = filled();
    let read = |filled: &FilledImage| fs::read_to_string(filled.xml()).unwrap();
    let kept = filled.path("DiskDescriptor.xml.ploop-kept");
    fs::write(&kept, with_fields(read(&filled))).unwrap();
    filled.ploop.snapshot().unwrap();
    assert_fields(&filled, "a snapshot");
    // It is older than what the descriptor has.
    fs::write(&kept, read(&filled).replace("4096", "512")).unwrap();
    filled
        .ploop
        .set_max_delta_size(Size::from_sectors(1 << 20))
        .unwrap();
    assert_fields(&filled, "a limit");
    // Something else of that name is not read.
    fs::write(&kept, "hello").unwrap();
    fs::write(
        filled.xml(),
        descriptor_text(&filled.descriptor(), filled.path("")),
    )
    .unwrap();
    filled.ploop.snapshot().unwrap();
    assert_eq!(fs::read_to_string(&kept).unwrap(), "hello");
}
