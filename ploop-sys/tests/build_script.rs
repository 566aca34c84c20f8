//! What the build script decides. It is run as Cargo would run it, on libraries that were made for the test. With the
//! feature `bindgen` it reads headers, too, which these libraries do not have.
#![cfg(not(feature = "bindgen"))]

mod made_library;

use made_library::Made;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const LINE_1: &[&str] = &["ploop_store_diskdescriptor", "ploop_copy_receive"];
const LINE_7: &[&str] = &["ploop_set_umount_timeout", "ploop_volume_create"];

fn shared(soname: &str, functions: &[&str]) -> Vec<u8> {
    Made {
        soname: Some(soname),
        functions,
        big_endian: false,
    }
    .bytes()
}

fn archive(functions: &[&str]) -> Vec<u8> {
    made_library::archive(functions, &[("ploop.o", b"\x7fELF")])
}

/// A directory of libraries.
struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Directory {
        Directory(tempfile::tempdir().unwrap())
    }

    fn with(files: &[(&str, Vec<u8>)]) -> Directory {
        let dir = Directory::new();
        for (name, bytes) in files {
            dir.put(name, bytes);
        }
        dir
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let file = self.path(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, bytes).unwrap();
        file
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self) -> String {
        self.0.path().to_str().unwrap().to_owned()
    }

    /// A .pc file, for a library below `prefix`.
    fn put_pc_file(&self, name: &str, prefix: &str, version: &str) {
        let text = format!(
            "prefix={prefix}\nlibdir=${{prefix}}/lib\n\nName: ploop\nDescription: made for a test\nVersion: {version}\n\
             Requires.private: libxml-2.0\nLibs: -L${{libdir}} -lploop\n"
        );
        self.put(name, text.as_bytes());
    }
}

/// What the build script has said.
struct Said(String);

impl Said {
    fn lines<'a>(&'a self, key: &str) -> Vec<&'a str> {
        let prefix = format!("cargo::{key}=");
        let lines = self.0.lines();
        lines
            .filter_map(|line| line.strip_prefix(&prefix))
            .collect()
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        let prefix = format!("{key}=");
        let lines = self.lines("metadata");
        lines
            .into_iter()
            .find_map(|line| line.strip_prefix(&prefix))
    }

    /// An error with these words.
    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let error = self.lines("error").join("\n");
        assert!(!error.is_empty(), "no error: {}", self.0);
        for word in words {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    }

    #[track_caller]
    fn linked(&self, abi: &str, version: Option<&str>, libraries: &[&str]) {
        assert_eq!(self.lines("error"), [""; 0]);
        assert_eq!(self.metadata("abi"), Some(abi));
        assert_eq!(self.metadata("version"), version);
        assert_eq!(self.lines("rustc-link-lib"), libraries);
        let cfg = format!("ploop_abi=\"{abi}\"");
        assert!(self.lines("rustc-cfg").contains(&cfg.as_str()));
        let soname = format!("PLOOP_SYS_SONAME=libploop.so.{}", &abi[1..]);
        assert!(self.lines("rustc-env").contains(&soname.as_str()));
        let version = format!("PLOOP_SYS_VERSION={}", version.unwrap_or("unknown"));
        assert!(self.lines("rustc-env").contains(&version.as_str()));
    }
}

/// Runs the build script with these variables. There is no pkg-config and no compiler, unless they say so.
fn run(variables: &[(&str, &str)]) -> Said {
    let out = tempfile::tempdir().unwrap();
    let output = Command::new(env!("PLOOP_SYS_BUILD_SCRIPT"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env(
            "LD_LIBRARY_PATH",
            std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default(),
        )
        .env("TARGET", "x86_64-unknown-linux-gnu")
        .env("HOST", "x86_64-unknown-linux-gnu")
        .env("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR"))
        .env("OUT_DIR", out.path())
        .env("PKG_CONFIG", "/nonexistent/pkg-config")
        .env("RUSTC_LINKER", "/nonexistent/cc")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}{words}", output.status);
    Said(text)
}

fn run_in(dir: &Directory) -> Said {
    run(&[("PLOOP_LIB_DIR", &dir.text())])
}

#[test]
fn a_bare_library_is_of_the_line_that_its_soname_says() {
    for (soname, functions, abi, version) in [
        ("libploop.so.1", LINE_1, "v1", "1.12"),
        ("libploop.so.7", LINE_7, "v7", "7.0.95"),
    ] {
        let dir = Directory::with(&[("libploop.so", shared(soname, functions))]);
        let said = run_in(&dir);
        said.linked(abi, Some(version), &["dylib=ploop"]);
        assert_eq!(
            said.lines("rustc-link-search"),
            [format!("native={}", dir.text())]
        );
        assert_eq!(said.metadata("linkage"), Some("shared"));
        let capabilities = said.metadata("capabilities").unwrap();
        assert_eq!(capabilities.contains("merge_ranges"), abi == "v1");
        assert_eq!(capabilities.contains("volumes"), abi == "v7");
    }
    let newer = [LINE_7, &["ploop_get_devname"]].concat();
    let dir = Directory::with(&[("libploop.so", shared("libploop.so.7", &newer))]);
    run_in(&dir).linked("v7", Some("7.0.199"), &["dylib=ploop"]);
}

#[test]
fn the_version_is_that_of_the_pc_file_or_of_the_file_name() {
    let dir = Directory::with(&[("libploop.so.7.0.166", shared("libploop.so.7", LINE_7))]);
    std::os::unix::fs::symlink("libploop.so.7.0.166", dir.path("libploop.so")).unwrap();
    run_in(&dir).linked("v7", Some("7.0.166"), &["dylib=ploop"]);
    dir.put_pc_file("pkgconfig/ploop.pc", "/usr", "7.0.170");
    run_in(&dir).linked("v7", Some("7.0.170"), &["dylib=ploop"]);
    // Of another line, it is not of this file.
    dir.put_pc_file("pkgconfig/ploop.pc", "/usr", "1.15");
    run_in(&dir).linked("v7", Some("7.0.166"), &["dylib=ploop"]);
}

#[test]
fn what_the_bindings_do_not_fit_is_refused_with_the_reason() {
    let soname_only = |soname| Directory::with(&[("libploop.so", shared(soname, LINE_7))]);
    for soname in ["libploop.so.8", "libploop.so.9"] {
        run_in(&soname_only(soname)).refused(&[soname, "does not support them yet", "7.0.95"]);
    }
    run_in(&soname_only("libploop.so.10")).refused(&["libploop.so.10", "does not know it"]);

    let old = Directory::with(&[("libploop.so", shared("libploop.so.7", &LINE_7[..1]))]);
    run_in(&old).refused(&["older than 7.0.95", "structures", "PLOOP_LIB_DIR"]);
    let dir = soname_only("libploop.so.7");
    dir.put_pc_file("pkgconfig/ploop.pc", "/usr", "7.0.94");
    run_in(&dir).refused(&["libploop 7.0.94 (libploop.so.7)", "structures"]);

    let script = Directory::with(&[("libploop.so", b"INPUT ( libploop.so.7 )".to_vec())]);
    run_in(&script).refused(&["libploop.so is not a shared library"]);
    run_in(&Directory::new()).refused(&["neither libploop.so nor libploop.a"]);
}

#[test]
fn a_relative_directory_is_refused() {
    run(&[("PLOOP_LIB_DIR", "src")]).refused(&[
        "PLOOP_LIB_DIR is src",
        "the whole path",
        "relative",
    ]);
    run(&[("PLOOP_INCLUDE_DIR", ".")]).refused(&["PLOOP_INCLUDE_DIR is .", "the whole path"]);
}

#[test]
fn variables_of_the_target_come_first_and_empty_ones_do_not_count() {
    let (one, seven) = (Directory::new(), Directory::new());
    one.put("libploop.so", &shared("libploop.so.1", LINE_1));
    seven.put("libploop.so", &shared("libploop.so.7", LINE_7));
    let own = "X86_64_UNKNOWN_LINUX_GNU_PLOOP_LIB_DIR";
    let (one, seven) = (one.text(), seven.text());
    let abi = |variables: &[(&str, &str)]| run(variables).metadata("abi").map(str::to_owned);
    assert_eq!(
        abi(&[(own, &seven), ("PLOOP_LIB_DIR", &one)]).unwrap(),
        "v7"
    );
    assert_eq!(abi(&[(own, ""), ("PLOOP_LIB_DIR", &one)]).unwrap(), "v1");
}

#[test]
fn static_and_shared_mean_what_they_say() {
    let both = Directory::with(&[
        ("libploop.so", shared("libploop.so.1", LINE_1)),
        ("libploop.a", archive(LINE_1)),
    ]);
    let only = Directory::with(&[("libploop.a", archive(LINE_1))]);
    let without = Directory::with(&[("libploop.so", shared("libploop.so.1", LINE_1))]);
    let with =
        |dir: &Directory, value| run(&[("PLOOP_LIB_DIR", &dir.text()), ("PLOOP_STATIC", value)]);
    for off in ["0", "no", "false", "No", "FALSE", "off"] {
        with(&both, off).linked("v1", Some("1.12"), &["dylib=ploop"]);
        with(&only, off).refused(&["PLOOP_STATIC asks for a shared library", "libploop.a alone"]);
    }
    for on in ["1", "yes", "true"] {
        for dir in [&both, &only] {
            let said = with(dir, on);
            assert_eq!(said.lines("rustc-link-lib")[0], "static=ploop");
            assert_eq!(said.metadata("linkage"), Some("static"));
        }
        with(&without, on).refused(&["there is no libploop.a"]);
    }
    // Nobody has said a word: what there is. (This program may be built with the feature.)
    if !cfg!(feature = "static") {
        run_in(&both).linked("v1", Some("1.12"), &["dylib=ploop"]);
    }
    assert_eq!(run_in(&only).lines("rustc-link-lib")[0], "static=ploop");
}

#[test]
fn the_archive_of_line_7_brings_its_libraries() {
    // Functions that the shared library does not export are in the objects.
    let hidden = &["ploop_dm_message"][..];
    let late = &["ploop_init_image", "ploop_get_devname"];
    let functions = [LINE_7, LINE_1, hidden, late].concat();
    let dir = Directory::with(&[("libploop.a", archive(&functions))]);
    let said = run_in(&dir);
    // Either by the name for the linker, or by that of the file at run time.
    let linked = said.lines("rustc-link-lib");
    for (at, name) in [
        "ploop",
        "xml2",
        "crypto",
        "uuid",
        "devmapper",
        "rt",
        "pthread",
    ]
    .iter()
    .enumerate()
    {
        assert!(linked[at].contains(name), "{linked:?}");
    }
    assert_eq!(said.metadata("abi"), Some("v7"));
    assert_eq!(said.metadata("version"), Some("7.0.199"));
    assert_eq!(
        said.metadata("late"),
        Some("ploop_init_image,ploop_get_devname")
    );

    let unknown = Directory::with(&[("libploop.a", archive(&["ploop_open_dd"]))]);
    run_in(&unknown).refused(&["is no libploop that is known"]);
    let later = Directory::with(&[("libploop.a", archive(&["ploop_tg_init"]))]);
    run_in(&later).refused(&["libploop 8 or 9", "does not support them yet"]);
    dir.put_pc_file("pkgconfig/ploop.pc", "/usr", "1.15");
    run_in(&dir).refused(&["libploop.so.7", "libploop.so.1", "ploop.pc"]);
    dir.put_pc_file("pkgconfig/ploop.pc", "/usr", "8.0.6");
    run_in(&dir).refused(&["libploop 8.0.6", "does not support them yet"]);
}

#[test]
fn an_archive_with_a_source_file_in_it_is_refused() {
    let members: [(&str, &[u8]); 2] = [("ploop.o", b"\x7fELF"), ("defrag.c", b"int x;")];
    let dir = Directory::with(&[("libploop.a", made_library::archive(LINE_7, &members))]);
    run_in(&dir).refused(&["defrag.c", "defrag.o", "shared library"]);
}

#[test]
fn a_program_without_shared_libraries_needs_static_ones() {
    let dir = Directory::with(&[
        ("libploop.so", shared("libploop.so.1", LINE_1)),
        ("libploop.a", archive(LINE_1)),
    ]);
    let with = |value| {
        run(&[
            ("PLOOP_LIB_DIR", &dir.text()),
            ("PLOOP_STATIC", value),
            ("CARGO_CFG_TARGET_FEATURE", "fxsr,crt-static,sse2"),
        ])
    };
    with("0").refused(&["crt-static", "PLOOP_STATIC=1"]);
    with("1").refused(&[
        "crt-static",
        "libxml2.a",
        "libxml-2.0.pc",
        "PKG_CONFIG_ALL_STATIC=1",
    ]);
}

/// A program that answers `-print-file-name`, as compilers do.
fn compiler(dir: &Directory, knows: &str) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let text = format!(
        "#!/bin/sh\nname=${{1#-print-file-name=}}\nif [ -e \"{knows}/$name\" ]; then echo \"{knows}/$name\"; else echo \"$name\"; fi\n"
    );
    let file = dir.put("cc", text.as_bytes());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn without_pkg_config_the_compiler_is_asked_for_the_library() {
    let dir = Directory::with(&[("lib/libploop.so", shared("libploop.so.7", LINE_7))]);
    let cc = compiler(&dir, &format!("{}/lib", dir.text()));
    let variables = [("PLOOP_NO_PKG_CONFIG", "1"), ("PLOOP_STATIC", "0")];
    let said = run(&[&variables[..], &[("RUSTC_LINKER", cc.as_str())]].concat());
    said.linked("v7", Some("7.0.95"), &["dylib=ploop"]);
    // The linker finds it by itself.
    assert_eq!(said.lines("rustc-link-search"), [""; 0]);

    let flags = format!("-Cdebuginfo=0\x1f-L\x1fnative={}/lib", dir.text());
    let said = run(&[
        &variables[..],
        &[("CARGO_ENCODED_RUSTFLAGS", flags.as_str())],
    ]
    .concat());
    said.linked("v7", Some("7.0.95"), &["dylib=ploop"]);

    // Nobody knows: then it says what it takes it for, and claims no version.
    let foreign = [&variables[..], &[("TARGET", "aarch64-unknown-linux-gnu")]].concat();
    let said = run(&foreign);
    said.linked("v1", None, &["dylib=ploop"]);
    let warning = said.lines("warning").join("\n");
    assert!(
        warning.contains("libploop.so.1") && warning.contains("PLOOP_LIB_DIR"),
        "{warning}"
    );
}

#[test]
fn without_pkg_config_a_static_library_needs_its_directory() {
    let dir = Directory::with(&[("lib/libploop.a", archive(LINE_1))]);
    let variables = [("PLOOP_NO_PKG_CONFIG", "1"), ("PLOOP_STATIC", "1")];
    let foreign = [&variables[..], &[("TARGET", "aarch64-unknown-linux-gnu")]].concat();
    run(&foreign).refused(&["libploop.a", "PLOOP_LIB_DIR"]);
    let cc = compiler(&dir, &format!("{}/lib", dir.text()));
    let said = run(&[&variables[..], &[("RUSTC_LINKER", cc.as_str())]].concat());
    assert_eq!(said.lines("rustc-link-lib")[0], "static=ploop");
    assert_eq!(
        said.lines("rustc-link-search"),
        [format!("native={}/lib", dir.text())]
    );
}

/// Runs the build script with pkg-config, which knows the .pc files in the directory alone.
fn run_with_pkg_config(dir: &Directory, more: &[(&str, &str)]) -> Said {
    let pc_dir = dir.path("pc").to_str().unwrap().to_owned();
    let variables = [
        ("PKG_CONFIG", "pkg-config"),
        ("PKG_CONFIG_LIBDIR", &pc_dir),
        ("PLOOP_STATIC", "0"),
    ];
    run(&[&variables[..], more].concat())
}

#[test]
fn pkg_config_names_the_directory_and_the_file_there_the_line() {
    let dir = Directory::with(&[("lib/libploop.so", shared("libploop.so.7", LINE_7))]);
    dir.put("include/ploop/libploop.h", b"");
    dir.put_pc_file("pc/ploop.pc", &dir.text(), "7.0.123");
    // `0` is no.
    for more in [&[][..], &[("PLOOP_NO_PKG_CONFIG", "0")]] {
        let said = run_with_pkg_config(&dir, more);
        said.linked("v7", Some("7.0.123"), &["dylib=ploop"]);
        assert_eq!(
            said.lines("rustc-link-search"),
            [format!("native={}/lib", dir.text())]
        );
        assert_eq!(
            said.metadata("include"),
            Some(format!("{}/include", dir.text()).as_str())
        );
    }
    dir.put("lib/libploop.so", &shared("libploop.so.9", LINE_7));
    run_with_pkg_config(&dir, &[]).refused(&["libploop.so.9"]);
}

#[test]
fn a_prefix_with_a_space_leads_to_the_library_there() {
    let dir = Directory::with(&[("a b/lib/libploop.so", shared("libploop.so.7", LINE_7))]);
    // What pkg-config makes two words of begins with this directory.
    dir.put("a", b"");
    dir.put_pc_file("pc/ploop.pc", &format!("{}/a b", dir.text()), "7.0.123");
    let said = run_with_pkg_config(&dir, &[]);
    said.linked("v7", Some("7.0.123"), &["dylib=ploop"]);
    assert_eq!(
        said.lines("rustc-link-search"),
        [format!("native={}/a b/lib", dir.text())]
    );
}

#[test]
fn a_pc_file_that_names_a_directory_without_the_library_is_refused() {
    let dir = Directory::new();
    for prefix in [dir.text(), format!("{}/a b", dir.text())] {
        dir.put_pc_file("pc/ploop.pc", &prefix, "7.0.123");
        let lib = format!("{prefix}/lib");
        run_with_pkg_config(&dir, &[]).refused(&["ploop.pc names", &lib, "another libploop"]);
    }
}

#[test]
fn the_script_runs_again_when_the_library_or_its_pc_file_changes() {
    let dir = Directory::with(&[("lib/libploop.so.7.0.123", shared("libploop.so.7", LINE_7))]);
    std::os::unix::fs::symlink("libploop.so.7.0.123", dir.path("lib/libploop.so")).unwrap();
    dir.put_pc_file("pc/ploop.pc", &dir.text(), "7.0.123");
    dir.put_pc_file("lib/pkgconfig/ploop.pc", &dir.text(), "7.0.123");
    let lib = format!("{}/lib", dir.text());
    for (said, pc_file) in [
        (run_with_pkg_config(&dir, &[]), "pc/ploop.pc"),
        (run(&[("PLOOP_LIB_DIR", &lib)]), "lib/pkgconfig/ploop.pc"),
    ] {
        let watched = said.lines("rerun-if-changed");
        for file in [pc_file, "lib/libploop.so", "lib/libploop.so.7.0.123"] {
            let file = dir.path(file).canonicalize_parent();
            assert!(
                watched.iter().any(|path| Path::new(path) == file),
                "{}: {watched:?}",
                file.display()
            );
        }
    }
}

trait CanonicalizeParent {
    fn canonicalize_parent(&self) -> PathBuf;
}

impl CanonicalizeParent for PathBuf {
    /// The path without links, up to the file itself.
    fn canonicalize_parent(&self) -> PathBuf {
        let parent = self.parent().unwrap().canonicalize().unwrap();
        parent.join(self.file_name().unwrap())
    }
}

#[test]
fn a_documentation_build_looks_for_nothing() {
    let said = run(&[("DOCS_RS", "1")]);
    said.linked("v1", Some("1.15"), &[]);
    for off in ["0", "", "no"] {
        run(&[("DOCS_RS", off)]).refused(&["libploop was not found"]);
    }
}
