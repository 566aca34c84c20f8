//! `DiskDescriptor.xml`: what is read, and what is refused with which words.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use ploop::image::{Descriptor, Geometry, Image, ImageKind, Snapshot};
use ploop::{ClusterSize, ErrorKind, Guid, ImageMode, Size};

use crate::work_done;

// Written by libploop 1.15.
const BRANCHED: &str = include_str!("descriptors/branched.xml");
const RAW: &str = include_str!("descriptors/raw.xml");
const PREALLOCATED: &str = include_str!("descriptors/preallocated.xml");
// In the form of other products.
const VIRTUOZZO: &str = include_str!("descriptors/virtuozzo7.xml");
const PARALLELS: &str = include_str!("descriptors/parallels.xml");

const BASE: &str = "{5b6d4bf4-322d-4dbf-9009-c6d066d792df}";
const LEAF: &str = "{a3d8f5ed-3de9-411a-b6df-9c943f5f33c0}";
const TOP: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
const NONE: &str = "{00000000-0000-0000-0000-000000000000}";

fn guid(text: &str) -> Guid {
    text.parse().unwrap()
}

fn parse(xml: &str) -> Descriptor {
    Descriptor::parse(xml, "/vz/101").unwrap()
}

/// The message of the error that `xml` must give.
fn refused(xml: impl AsRef<[u8]>, kind: ErrorKind) -> String {
    let error = Descriptor::parse(xml, "/vz/101").unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    error.message().to_owned()
}

/// A descriptor of `shots` as (GUID, parent), each with an image.
fn tree(shots: &[(Guid, Guid)]) -> String {
    let mut images = String::new();
    let mut tree = String::new();
    for (n, (guid, parent)) in shots.iter().enumerate() {
        write!(
            images,
            "<Image><GUID>{guid}</GUID><Type>Compressed</Type><File>root.hds.{n}</File></Image>"
        )
        .unwrap();
        write!(
            tree,
            "<Shot><GUID>{guid}</GUID><ParentGUID>{parent}</ParentGUID></Shot>"
        )
        .unwrap();
    }
    format!(
        "<d><Disk_Parameters><Disk_size>2048</Disk_size></Disk_Parameters>\
         <StorageData><Storage><Blocksize>128</Blocksize>{images}</Storage></StorageData>\
         <Snapshots><TopGUID>{TOP}</TopGUID>{tree}</Snapshots></d>"
    )
}

/// GUIDs 1, 2, 3, …
fn numbered(n: u64) -> Guid {
    guid(&format!("{{00000000-0000-0000-0000-{n:012x}}}"))
}

#[test]
fn a_tree_of_libploop() {
    let descriptor = parse(BRANCHED);
    let image = |id: &str, file: &str| {
        Image::new(
            guid(id),
            Path::new("/vz/101").join(file),
            ImageKind::Compressed,
        )
    };
    let shot = |id: &str, parent: &str| Snapshot::new(guid(id), guid(parent));
    let base = image(BASE, "root.hds");
    let leaf = image(LEAF, "root.hds.{3a15b5b5-5473-48e7-8100-23ea9a4c788a}");
    let top = image(TOP, "root.hds.{bd7c42d5-2202-46dd-98fc-2420fd9e50e0}");
    let mut expected = Descriptor::new(Size::from_mib(10), base.clone());
    expected.cluster = ClusterSize::from_bytes(64 << 10).unwrap();
    expected.images.extend([leaf.clone(), top.clone()]);
    expected
        .snapshots
        .extend([shot(LEAF, BASE), shot(TOP, BASE)]);
    expected.top = Guid::TOP;
    assert_eq!(
        (expected.geometry.cylinders, expected.geometry.heads),
        (40, 16)
    );
    assert_eq!(descriptor, expected);

    assert_eq!(descriptor.base(), Some(&base));
    assert_eq!(descriptor.top_image(), Some(&top));
    assert_eq!(descriptor.chain(Guid::TOP), [&base, &top]);
    assert_eq!(descriptor.chain(guid(LEAF)), [&base, &leaf]);
    assert_eq!(descriptor.chain(guid(BASE)), [&base]);
    assert_eq!(descriptor.depth(Guid::TOP), Some(1));
    assert_eq!(descriptor.depth(guid(BASE)), Some(0));
    assert_eq!(descriptor.parent(guid(LEAF)), Some(guid(BASE)));
    assert_eq!(descriptor.parent(guid(BASE)), None);
    let children: Vec<Guid> = descriptor.children(guid(BASE)).collect();
    assert_eq!(children, [guid(LEAF), Guid::TOP]);

    let unknown = numbered(7);
    assert_eq!(descriptor.image(unknown), None);
    assert_eq!(descriptor.snapshot(unknown), None);
    assert_eq!(descriptor.parent(unknown), None);
    assert_eq!(descriptor.depth(unknown), None);
    assert!(descriptor.chain(unknown).is_empty());
}

#[test]
fn the_mode_comes_from_types_and_preallocation() {
    let raw = parse(RAW);
    assert_eq!(raw.mode, ImageMode::Raw);
    assert!(
        raw.images
            .iter()
            .all(|image| image.kind == ImageKind::Plain)
    );
    assert_eq!(parse(PREALLOCATED).mode, ImageMode::Preallocated);
    assert_eq!(
        parse(&tree(&[(Guid::TOP, Guid::NONE)])).mode,
        ImageMode::Expanded
    );
    // One is enough.
    let mixed = BRANCHED.replacen("Compressed", "Plain", 1);
    assert_eq!(parse(&mixed).mode, ImageMode::Raw);
}

#[test]
fn other_products() {
    let virtuozzo = parse(VIRTUOZZO);
    assert_eq!(virtuozzo.size, Size::from_gib(1));
    assert_eq!(virtuozzo.cluster, ClusterSize::DEFAULT);
    assert_eq!(virtuozzo.max_delta_size, Some(Size::from_sectors(0o2000)));
    assert_eq!(virtuozzo.encryption.as_deref(), Some("key-17"));
    assert_eq!(virtuozzo.top, Guid::TOP);
    let files: Vec<_> = virtuozzo
        .chain(Guid::TOP)
        .iter()
        .map(|image| image.file.to_str().unwrap())
        .collect();
    assert_eq!(
        files,
        ["/vz/101/../template & co/root.hds", "/vz/ümlaut root.hds"]
    );
    let base = virtuozzo.base().unwrap().guid;
    assert!(virtuozzo.snapshot(base).unwrap().temporary);

    // The nil engine encrypts nothing; there is no TopGUID.
    let parallels = parse(PARALLELS);
    assert_eq!(parallels.size, Size::from_gib(64));
    assert_eq!(parallels.encryption, None);
    assert_eq!(parallels.top, Guid::TOP);
    let engine = "{11111111-0000-0000-0000-000000000000}";
    let encrypted = parse(&PARALLELS.replacen(NONE, engine, 1));
    assert_eq!(encrypted.encryption.as_deref(), Some(engine));
}

#[test]
fn forms_libploop_tolerates() {
    // The top without a Shot, or without a TopGUID, or with an old GUID.
    let lone = tree(&[(Guid::TOP, Guid::NONE)]);
    let top_guid = format!("<TopGUID>{TOP}</TopGUID>");
    let shot = format!("<Shot><GUID>{TOP}</GUID><ParentGUID>{NONE}</ParentGUID></Shot>");
    let expected = parse(&lone);
    assert_eq!(parse(&lone.replace(&shot, "")), expected);
    assert_eq!(parse(&lone.replace(&top_guid, "")), expected);
    assert_eq!(
        parse(&lone.replace(&shot, "").replace(&top_guid, "")),
        expected
    );
    let old = parse(&BRANCHED.replace(TOP, "{11111111-2222-3333-4444-555555555555}"));
    assert_eq!(old.top, guid("{11111111-2222-3333-4444-555555555555}"));
    assert_eq!(old.chain(old.top).len(), 2);

    // No geometry; it is for the caller to mind.
    assert_eq!(expected.geometry, Geometry::default());
    // A byte order mark, another root, upper-case GUIDs.
    assert_eq!(parse(&format!("\u{feff}{BRANCHED}")), parse(BRANCHED));
    assert_eq!(
        parse(&BRANCHED.replace("Parallels_disk_image", "x")),
        parse(BRANCHED)
    );
    assert_eq!(
        parse(&BRANCHED.replace(TOP, &TOP.to_uppercase())),
        parse(BRANCHED)
    );
    // White space around a number, the first of several elements, a comment, a type in lower case, zeros
    // behind the end, a document type that defines nothing.
    for (from, to) in [
        ("<Disk_size>2048<", "<Disk_size> 2048\n<"),
        ("<Disk_size>", "<Disk_size>2048</Disk_size><Disk_size>"),
        ("</d>", "<Snapshots/></d>"),
        ("<File>", "<File><!-- once root.hdd -->"),
        ("<File>root.hds.0", "<File>root.hds.0<!-- and no more -->.1"),
        ("Compressed", "compressed"),
        ("Compressed", "plain"),
        ("</d>", "</d>\0\0\0"),
        ("<d>", "<!DOCTYPE d><d>"),
        ("<d>", "<!DOCTYPE d SYSTEM 'file:///etc/passwd'><d>"),
        ("<d>", "<!DOCTYPE d [<!ELEMENT d (#PCDATA)>]><d>"),
    ] {
        let changed = lone.replacen(from, to, 1);
        assert_ne!(changed, lone, "{from}");
        assert_eq!(parse(&changed), expected, "{to}");
    }
}

#[test]
fn three_encodings_are_read() {
    let lone = tree(&[(Guid::TOP, Guid::NONE)]).replace("root", "rööt\u{1f4bf}");
    let ascii = tree(&[(Guid::TOP, Guid::NONE)]);
    let declared = |encoding: &str, text: &str| {
        format!("<?xml version=\"1.0\" encoding=\"{encoding}\" ?>\n{text}")
    };
    let utf_16 = |text: &str, little: bool| -> Vec<u8> {
        let unit = |unit: u16| {
            if little {
                unit.to_le_bytes()
            } else {
                unit.to_be_bytes()
            }
        };
        text.encode_utf16().flat_map(unit).collect()
    };
    let expected = parse(&lone);
    assert_eq!(parse(&declared("utf-8", &lone)), expected);
    assert_eq!(parse(&declared("US-ASCII", &ascii)), parse(&ascii));
    for little in [true, false] {
        for text in [
            format!("\u{feff}{lone}"),
            format!("\u{feff}{}", declared("UTF-16", &lone)),
            declared("UTF-16", &lone),
            format!("\u{feff}{lone}\0\0"),
        ] {
            let read = Descriptor::parse(utf_16(&text, little), "/vz/101").unwrap();
            assert_eq!(read, expected, "{little} {text}");
        }
        let mut odd = utf_16(&format!("\u{feff}{lone}"), little);
        odd.push(b' ');
        assert!(refused(odd, ErrorKind::Corrupt).contains("not UTF-16"));
        let declared = utf_16(&format!("\u{feff}{}", declared("UTF-8", &lone)), little);
        assert!(refused(declared, ErrorKind::Unsupported).contains("encoding is \"UTF-8\""));
    }
    // The same bytes say other things in these, or other bytes.
    for encoding in ["UTF-7", "ISO-8859-1", "UTF-16", "EBCDIC-US", "utf8", ""] {
        let message = refused(declared(encoding, &ascii), ErrorKind::Unsupported);
        assert!(
            message.contains(&format!("encoding is {encoding:?}")),
            "{message}"
        );
    }
    refused(declared("US-ASCII", &lone), ErrorKind::Unsupported);
}

#[test]
fn what_is_missing_is_named() {
    for (element, parent) in [
        ("Disk_Parameters", "Parallels_disk_image"),
        ("StorageData", "Parallels_disk_image"),
        ("Snapshots", "Parallels_disk_image"),
        ("Disk_size", "Disk_Parameters"),
        ("Storage", "StorageData"),
        ("Blocksize", "Storage"),
        ("ParentGUID", "Shot"),
        ("File", "Image"),
    ] {
        let xml = BRANCHED
            .replace(&format!("<{element}>"), "<other>")
            .replace(&format!("</{element}>"), "</other>");
        let message = refused(&xml, ErrorKind::Corrupt);
        assert_eq!(message, format!("{parent} has no {element}"));
    }
    assert_eq!(refused(tree(&[]), ErrorKind::Corrupt), "there is no Image");
}

#[test]
fn values_are_checked() {
    for (from, to, expected) in [
        (
            "<Disk_size>20480",
            "<Disk_size>",
            "Disk_size: \"\" is not a number below 2^64",
        ),
        (
            "<Disk_size>20480",
            "<Disk_size>-1",
            "Disk_size: \"-1\" is not a number below 2^64",
        ),
        (
            "<Disk_size>20480",
            "<Disk_size>+1",
            "Disk_size: \"+1\" is not a number below 2^64",
        ),
        (
            "<Disk_size>20480",
            "<Disk_size>089",
            "Disk_size: \"089\" is not a number below 2^64",
        ),
        (
            "<Disk_size>20480",
            "<Disk_size>0x",
            "Disk_size: \"0x\" is not a number below 2^64",
        ),
        (
            "<Disk_size>20480",
            "<Disk_size>18446744073709551616",
            "Disk_size: \"18446744073709551616\" is not a number below 2^64",
        ),
        (
            "<Disk_size>20480",
            "<Disk_size>18446744073709551615",
            "Disk_size: 18446744073709551615 sectors are beyond 16 EiB",
        ),
        (
            "<Disk_size>20480",
            "<Disk_size>0",
            "Disk_size: the disk has no sectors",
        ),
        (
            "<Blocksize>128",
            "<Blocksize>0",
            "Blocksize: 0 sectors are not from 1 to 131072",
        ),
        (
            "<Blocksize>128",
            "<Preallocated>2</Preallocated><Blocksize>128",
            "Preallocated: 2 is neither 0 nor 1",
        ),
        (
            "<Cylinders>40",
            "<Cylinders>forty",
            "Cylinders: \"forty\" is not a number below 2^64",
        ),
        (
            "<File>root.hds<",
            "<File><",
            "image {5b6d4bf4-322d-4dbf-9009-c6d066d792df} has an empty File",
        ),
        (
            "<File>root.hds<",
            "<File>&other;<",
            "not XML: unknown entity reference 'other' at 18:15",
        ),
    ] {
        let message = refused(BRANCHED.replacen(from, to, 1), ErrorKind::Corrupt);
        assert_eq!(message, expected);
    }
    let message = refused(
        PREALLOCATED.replace("Compressed", "Plain"),
        ErrorKind::Corrupt,
    );
    assert_eq!(
        message,
        format!("Preallocated is set, but image {TOP} is Plain")
    );
    let message = refused(
        BRANCHED.replacen("Compressed", "Zipped", 1),
        ErrorKind::Unsupported,
    );
    assert_eq!(
        message,
        format!("image {BASE} is of unknown type \"Zipped\"")
    );
    let long = BRANCHED.replacen("root.hds", &"x".repeat(5000), 1);
    assert_eq!(
        refused(long, ErrorKind::Corrupt),
        format!("the file name of image {BASE} is longer than 4095 bytes")
    );
    let storage =
        &BRANCHED[BRANCHED.find("<Storage>").unwrap()..BRANCHED.find("</StorageData>").unwrap()];
    let split = BRANCHED.replace(storage, &storage.repeat(2));
    assert_eq!(
        refused(split, ErrorKind::Corrupt),
        "Storage: one is from sector 0 to 20480, and the one before ends at 20480"
    );
}

#[test]
fn guids_are_checked() {
    for bad in [
        "",
        "5fbaabe3-6958-40ff-92a7-860e329aab41",
        "{5fbaabe3-6958-40ff-92a7-860e329aab41",
        " {5fbaabe3-6958-40ff-92a7-860e329aab41}",
        "{5fbaabe3-6958-40ff-92a7-860e329aab4g}",
        "{5fbaabe3695840ff92a7860e329aab41}",
    ] {
        let message = refused(BRANCHED.replacen(BASE, bad, 1), ErrorKind::Corrupt);
        let expected = format!(
            "Image: the GUID {bad:?} is not of the form {{xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx}}"
        );
        assert_eq!(message, expected);
    }
}

#[test]
fn trees_that_are_none() {
    let (a, b, c, top) = (numbered(1), numbered(2), numbered(3), Guid::TOP);
    let corrupt = |shots: &[(Guid, Guid)]| refused(tree(shots), ErrorKind::Corrupt);

    let message = corrupt(&[(a, Guid::NONE), (b, c), (c, b), (top, a)]);
    assert_eq!(
        message,
        format!("the parents of {b} lead back to it, never to a base")
    );
    let message = corrupt(&[(top, top)]);
    assert_eq!(
        message,
        format!("the parents of {top} lead back to it, never to a base")
    );
    let message = corrupt(&[(top, a), (a, b), (b, c), (c, a)]);
    assert_eq!(
        message,
        format!("the parents of {a} lead back to it, never to a base")
    );

    let message = corrupt(&[(a, Guid::NONE), (top, Guid::NONE)]);
    assert_eq!(message, format!("both {a} and {top} are bases"));
    let message = corrupt(&[(a, Guid::NONE), (top, b)]);
    assert_eq!(
        message,
        format!("the parent {b} of Shot {top} is not listed")
    );
    let message = corrupt(&[(a, Guid::NONE), (a, Guid::NONE), (top, a)]);
    assert_eq!(message, format!("two images have the GUID {a}"));
    let message = corrupt(&[(a, Guid::NONE), (b, a)]);
    assert_eq!(message, format!("the top {top} is not listed"));
    let message = corrupt(&[(Guid::NONE, a), (top, a)]);
    assert_eq!(
        message,
        format!("a Shot has the GUID {NONE}, which means none")
    );

    let shot = format!("<Shot><GUID>{LEAF}</GUID>");
    let squeezed = BRANCHED.replace("\n      ", "").replace("\n    ", "");
    let twice = squeezed.replace(&shot, &format!("<Shot><GUID>{BASE}</GUID>"));
    assert_eq!(
        refused(twice, ErrorKind::Corrupt),
        format!("two Shots have the GUID {BASE}")
    );
    let stranger = squeezed.replace(&shot, &format!("<Shot><GUID>{a}</GUID>"));
    assert_eq!(
        refused(stranger, ErrorKind::Corrupt),
        format!("Shot {a} has no Image")
    );
    let start = squeezed.find(&shot).unwrap();
    let end = start + squeezed[start..].find("</Shot>").unwrap() + "</Shot>".len();
    let without = squeezed.replace(&squeezed[start..end], "");
    assert_eq!(
        refused(without, ErrorKind::Corrupt),
        format!("image {LEAF} has no Shot")
    );
    let temporary = squeezed.replace("</Shot></Snap", "<Temporary></Temporary></Shot></Snap");
    let temporary = temporary.replace("</Shot>\n  </Snap", "<Temporary></Temporary></Shot></Snap");
    assert_eq!(
        refused(temporary, ErrorKind::Corrupt),
        format!("the top {top} is temporary")
    );
    let topless = tree(&[(a, Guid::NONE)]).replace(&format!("<TopGUID>{TOP}</TopGUID>"), "");
    assert_eq!(
        refused(topless, ErrorKind::Corrupt),
        format!("there is neither a TopGUID nor a Shot {TOP}")
    );
}

#[test]
fn contents_that_were_not_read_cannot_make_walks_endless() {
    let mut descriptor = parse(BRANCHED);
    for shot in &mut descriptor.snapshots {
        shot.parent = guid(LEAF);
    }
    assert!(descriptor.chain(Guid::TOP).is_empty());
    assert_eq!(descriptor.depth(Guid::TOP), None);
    assert_eq!(
        descriptor.validate().unwrap_err().kind(),
        ErrorKind::Corrupt
    );
}

#[test]
fn what_is_no_xml_is_refused() {
    assert_eq!(refused("", ErrorKind::Corrupt), "the file is empty");
    for zeros in [1, 4096] {
        assert_eq!(
            refused(vec![0; zeros], ErrorKind::Corrupt),
            "the file holds nothing but zeros, as after a power cut"
        );
    }
    assert_eq!(
        refused(
            BRANCHED.replacen("<File>", "<File><![CDATA[x]]>", 1),
            ErrorKind::Corrupt
        ),
        "File holds a CDATA section, which libploop does not read"
    );
    assert_eq!(
        refused(b"<a>\xff</a>", ErrorKind::Corrupt),
        "the file is not UTF-8"
    );
    for n in [1, 20, 300, BRANCHED.trim_end().len() - 1] {
        let message = refused(&BRANCHED[..n], ErrorKind::Corrupt);
        assert!(message.starts_with("not XML: "), "{message}");
    }
    for xml in [
        "hello",
        "\0<a/>",
        "<a/><b/>",
        "<a></b>",
        "<a b='1' b='2'/>",
        "\x7fELF",
    ] {
        let message = refused(xml, ErrorKind::Corrupt);
        assert!(message.starts_with("not XML: "), "{xml}: {message}");
    }
    let bomb = format!(
        "<!DOCTYPE lol [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;'>]>{}",
        BRANCHED.replace("root", "&b;")
    );
    let attributes = format!("<!DOCTYPE d [<!ATTLIST File a CDATA 'b'>]>{BRANCHED}");
    for defines in [bomb, attributes] {
        assert_eq!(
            refused(
                defines.replace("<?xml version=\"1.0\"?>", ""),
                ErrorKind::Corrupt
            ),
            "the file defines entities or attributes of its own, no descriptor does"
        );
    }
}

/// What libploop 1.15 wrote is what is written.
#[test]
fn written_as_libploop_writes() {
    for xml in [BRANCHED, RAW, PREALLOCATED] {
        assert_eq!(parse(xml).to_xml("/vz/101").unwrap(), xml);
    }
    let mut descriptor = parse(BRANCHED);
    descriptor.max_delta_size = Some(Size::from_sectors(4096));
    descriptor.snapshots[1].temporary = true;
    descriptor.images[0].file = "/vz/101/../töp & <co>/\u{1f4bf}.hds".into();
    descriptor.images[1].file = "/vz/1010/root.hds".into();
    let xml = descriptor.to_xml("/vz/101").unwrap();
    assert!(xml.is_ascii());
    assert_eq!(parse(&xml), descriptor);
    for expected in [
        "    <Max_delta_size>4096</Max_delta_size>\n",
        "      <Temporary/>\n",
        "        <File>../t&#xF6;p &amp; &lt;co&gt;/&#x1F4BF;.hds</File>\n",
        "        <File>/vz/1010/root.hds</File>\n",
    ] {
        assert!(xml.contains(expected), "{xml}");
    }
}

#[test]
fn written_with_the_base_first_and_a_top_of_today() {
    let mut old = parse(&BRANCHED.replace(TOP, "{11111111-2222-3333-4444-555555555555}"));
    old.images.reverse();
    old.geometry = Geometry::default();
    let xml = old.to_xml("/vz/101").unwrap();
    let new = parse(&xml);
    let guids: Vec<Guid> = new.images.iter().map(|image| image.guid).collect();
    assert_eq!(guids, [guid(BASE), Guid::TOP, guid(LEAF)]);
    assert_eq!(
        (new.top, new.parent(new.top)),
        (Guid::TOP, Some(guid(BASE)))
    );
    assert_eq!(new.geometry, parse(BRANCHED).geometry);
    assert_eq!(new.to_xml("/vz/101").unwrap(), xml);
    // Another delta has the GUID of the top.
    let mut taken = parse(BRANCHED);
    taken.top = guid(LEAF);
    assert_eq!(
        taken.to_xml("/").unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

#[test]
fn what_cannot_be_written_is_refused() {
    for name in ["a\nb", "a\0b", "a\u{7f}", "a\u{fffe}b"] {
        let mut descriptor = parse(BRANCHED);
        descriptor.images[1].file = Path::new("/vz/101").join(name);
        let error = descriptor.to_xml("/vz/101").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}");
    }
    let long = "x".repeat(4096 - "/vz/101/".len());
    for (file, dir) in [("", "/vz/101"), ("/vz/101", "/vz/101"), (&long, "/vz/101")] {
        let mut descriptor = parse(BRANCHED);
        descriptor.images[1].file = file.into();
        let error = descriptor.to_xml(dir).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{file:?}");
    }
    type Change = fn(&mut Descriptor);
    let changes: [(&str, Change, &str); 7] = [
        (
            BRANCHED,
            |d| d.images[1].kind = ImageKind::Plain,
            "is Plain",
        ),
        (
            BRANCHED,
            |d| d.images[0].kind = ImageKind::Plain,
            "is Plain",
        ),
        (BRANCHED, |d| d.mode = ImageMode::Raw, "no image is Plain"),
        (RAW, |d| d.mode = ImageMode::Expanded, "is Plain"),
        (RAW, |d| d.mode = ImageMode::Preallocated, "is Plain"),
        (BRANCHED, |d| d.size = Size::MAX, "whole sector"),
        (BRANCHED, |d| d.size = Size::from_bytes(513), "whole sector"),
    ];
    for (xml, change, expected) in changes {
        let mut descriptor = parse(xml);
        change(&mut descriptor);
        for error in [
            descriptor.validate().unwrap_err(),
            descriptor.to_xml("/vz/101").unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.message().contains(expected), "{error}");
        }
    }
    let mut descriptor = parse(BRANCHED);
    descriptor.snapshots.pop();
    assert_eq!(
        descriptor.to_xml("/").unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    let error = parse(VIRTUOZZO).to_xml("/vz/101").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// Each of these costs a careless reader time or memory out of all proportion, or its stack.
#[test]
fn large_files_take_linear_time() {
    // A square of any of these numbers takes minutes at least.
    const LIMIT: Duration = Duration::from_secs(10);
    let nested = |n: usize| format!("{}{}", "<a>".repeat(n), "</a>".repeat(n));
    let mut attributes = String::from("<a");
    for n in 0..200_000 {
        write!(attributes, " a{n}=''").unwrap();
    }
    let name_spaces: String = (0..100_000).map(|n| format!("<a xmlns:n{n}=''>")).collect();
    let depth = "elements are nested more than 256 deep";
    let nodes = "the file has more than 524288 elements and texts";
    for (xml, expected) in [
        (nested(300), depth),
        (nested(200_000), depth),
        (nested(1_000_000), nodes),
        (format!("<a>{}</a>", "<b/>".repeat(1_000_000)), nodes),
        (
            format!("{attributes}/>"),
            "an element has more than 128 attributes",
        ),
        (name_spaces, "the file declares more than 16 name spaces"),
    ] {
        let begin = work_done::processor_time();
        assert_eq!(refused(xml, ErrorKind::Corrupt), expected);
        let took = work_done::processor_time() - begin;
        assert!(took < LIMIT, "{expected}: {took:?}");
    }

    // A chain, listed from the top: every walk from a snapshot is long.
    let count = 20_000;
    let mut shots = vec![(Guid::TOP, numbered(count))];
    shots.extend((2..=count).rev().map(|n| (numbered(n), numbered(n - 1))));
    shots.push((numbered(1), Guid::NONE));
    let begin = work_done::processor_time();
    let descriptor = parse(&tree(&shots));
    assert_eq!(descriptor.depth(Guid::TOP), Some(count as usize));
    let took = work_done::processor_time() - begin;
    assert!(took < LIMIT, "{took:?}");
}

#[test]
fn long_values_do_not_make_long_messages() {
    let long = "y".repeat(1 << 20);
    for xml in [
        BRANCHED.replacen("20480", &long, 1),
        BRANCHED.replacen(BASE, &long, 1),
        BRANCHED.replacen("Compressed", &long, 1),
        BRANCHED.replacen("</Disk_size>", &format!("</{long}>"), 1),
    ] {
        let message = Descriptor::parse(xml, "/").unwrap_err().message().len();
        assert!(message < 400, "{message} bytes");
    }
}

#[test]
fn files_are_opened_with_care() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap();
    let missing = dir.path().join("missing.xml");
    let error = Descriptor::open(&missing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.path(), Some(&*missing));

    let error = Descriptor::open(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(error.path(), Some(dir.path()));

    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    assert_eq!(
        Descriptor::open(&pipe).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );

    let broken = dir.path().join("broken.xml");
    std::fs::write(&broken, &BRANCHED[..99]).unwrap();
    let error = Descriptor::open(&broken).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.path(), Some(&*broken));

    let huge = dir.path().join("huge.xml");
    std::fs::File::create(&huge)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let error = Descriptor::open(&huge).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().contains("larger than 16 MiB"), "{error}");

    // Image names start where the file is, not where a link to it is.
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join("DiskDescriptor.xml"), BRANCHED).unwrap();
    let link = dir.path().join("link.xml");
    symlink("home/DiskDescriptor.xml", &link).unwrap();
    let descriptor = Descriptor::open(&link).unwrap();
    assert_eq!(descriptor.base().unwrap().file, real.join("home/root.hds"));
}
