//! What the build script reads from the files of libraries: whatever is in them, it answers and does not panic.

#[allow(dead_code)]
#[path = "../build/archive.rs"]
mod archive;
#[allow(dead_code)]
#[path = "../build/line.rs"]
mod line;
mod made_library;
#[allow(dead_code)]
#[path = "../build/shared_library.rs"]
mod shared_library;

use archive::Archive;
use line::Line;
use made_library::Made;
use shared_library::SharedLibrary;

const FUNCTIONS: [&str; 3] = ["ploop_open_dd", "ploop_close_dd", "ploop_volume_create"];

fn made(big_endian: bool) -> Vec<u8> {
    Made {
        soname: Some("libploop.so.7"),
        functions: &FUNCTIONS,
        big_endian,
    }
    .bytes()
}

#[test]
fn soname_and_functions_are_read_in_both_byte_orders() {
    for big_endian in [false, true] {
        let library = SharedLibrary::parse(&made(big_endian)).unwrap();
        assert_eq!(library.soname, "libploop.so.7");
        for function in FUNCTIONS {
            assert!(library.has(function), "{function}");
        }
        for function in ["", "ploop_open", "open_dd", "ploop_volume_create2"] {
            assert!(function.is_empty() || !library.has(function), "{function}");
        }
    }
}

#[test]
#[cfg_attr(ploop_static, ignore = "libploop is part of this program")]
fn the_library_that_is_linked_has_the_soname_of_its_line() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    // Names the library, so that it is linked.
    // SAFETY: the function returns a pointer, and does nothing else.
    assert!(!unsafe { ploop_sys::ploop_get_last_error() }.is_null());
    let file = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|file| file.contains("libploop.so"))
        .expect("libploop is not loaded");
    let library = SharedLibrary::read(file.as_ref()).unwrap();
    assert_eq!(library.soname, ploop_sys::SONAME);
    assert!(library.has("ploop_open_dd") && !library.has("ploop_open_de"));
    let line = Line::of_soname(&library.soname).unwrap();
    let version = line.version_by_functions(|name| library.has(name)).unwrap();
    // The library may be newer than the functions tell.
    assert!(
        line::numbers(version) <= line::numbers(ploop_sys::VERSION)
            || ploop_sys::VERSION == "unknown",
        "{version}"
    );
}

#[test]
fn other_files_are_told_by_what_they_are() {
    let whole = made(false);
    let mut of_32_bits = whole.clone();
    of_32_bits[4] = 1;
    let mut program = whole.clone();
    program[64 + 56] = 7; // no dynamic segment
    let nameless = Made {
        soname: None,
        functions: &FUNCTIONS,
        big_endian: false,
    };
    for (bytes, said) in [
        (&b""[..], "is not a shared library (ELF)"),
        (
            b"/* GNU ld script */ INPUT ( libploop.so.7 )",
            "is not a shared library (ELF)",
        ),
        (b"!<arch>\n", "is not a shared library (ELF)"),
        (&of_32_bits, "is not a 64-bit shared library"),
        (&program, "is no shared library"),
        (&nameless.bytes(), "has no soname"),
        (&whole[..whole.len() - 1], "is not a whole shared library"),
    ] {
        assert_eq!(SharedLibrary::parse(bytes).unwrap_err(), said);
    }
}

#[test]
fn a_file_that_was_cut_short_is_refused_at_every_length() {
    for big_endian in [false, true] {
        let whole = made(big_endian);
        for len in 0..whole.len() {
            assert!(SharedLibrary::parse(&whole[..len]).is_err(), "{len}");
        }
    }
}

#[test]
fn no_byte_of_a_library_leads_to_a_panic() {
    for big_endian in [false, true] {
        let whole = made(big_endian);
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = SharedLibrary::parse(&bytes);
                // Two neighbours: larger numbers.
                bytes[(at + 1) % whole.len()] = value;
                let _ = SharedLibrary::parse(&bytes);
            }
        }
    }
}

#[test]
fn the_index_and_the_members_of_an_archive_are_read() {
    let object: &[u8] = b"\x7fELF and more";
    let whole = made_library::archive(&FUNCTIONS, &[("a.o", object), ("b.o", b"\x7fELF")]);
    let archive = Archive::parse(&whole).unwrap();
    assert!(archive.has("ploop_volume_create") && !archive.has("ploop_volume"));
    assert_eq!(archive.not_an_object, None);

    let members = [
        ("a.o", object),
        ("defrag.c", &b"int main;"[..]),
        ("b.c", b""),
    ];
    let archive = Archive::parse(&made_library::archive(&[], &members)).unwrap();
    assert_eq!(archive.not_an_object.as_deref(), Some("defrag.c"));

    assert!(Archive::parse(b"").is_none());
    assert!(Archive::parse(&made(false)).is_none());
    for len in 0..whole.len() {
        let _ = Archive::parse(&whole[..len]);
    }
    for at in 0..whole.len() {
        for value in [0, b' ', b'9', 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            let _ = Archive::parse(&bytes);
        }
    }
}

#[test]
fn a_version_is_told_by_the_newest_function() {
    let line = Line::of_soname("libploop.so.7").unwrap();
    let version = |functions: &[&str]| line.version_by_functions(|name| functions.contains(&name));
    assert_eq!(version(&["ploop_volume_create"]), Ok("7.0.95"));
    assert_eq!(
        version(&["ploop_volume_create", "ploop_get_devname"]),
        Ok("7.0.199")
    );
    let error = version(&["ploop_open_dd"]).unwrap_err();
    assert!(error.contains("older than 7.0.95"), "{error}");
}

/// The table of the build script and that of the bindings are of one opinion.
#[test]
fn the_functions_that_tell_versions_are_the_late_ones_of_the_bindings() {
    let late: Vec<(&str, &str)> = include_str!("../src/bindings/v7_0.rs")
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.trim().strip_prefix("(c\"")?.split_once('"')?;
            Some((rest.split('"').nth(1)?, name))
        })
        .collect();
    assert!(late.len() > 10, "{late:?}");
    let line = Line::of_soname("libploop.so.7").unwrap();
    for (since, name) in &late {
        // Each by itself tells its version, if the table has it; and no function is new in a version of its own that the
        // table lacks.
        let told = line.version_by_functions(|function| function == *name);
        let brother = late.iter().find(|(version, function)| {
            version == since && line.version_by_functions(|name| name == *function).is_ok()
        });
        assert!(
            told.as_ref().is_ok_and(|told| told == since) || (told.is_err() && brother.is_some()),
            "{name}"
        );
    }
}
