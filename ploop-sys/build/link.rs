//! Tells Cargo what to link: `libploop.so`, or `libploop.a` and the libraries that it needs.

use crate::archive::Archive;
use crate::probe::{Library, LibraryFile};
use crate::{compiler, env, probe};
use std::path::{Path, PathBuf};

pub(crate) fn emit(library: &Library) -> Result<(), String> {
    let is_static_program = env::of_cargo("CARGO_CFG_TARGET_FEATURE")
        .split(',')
        .any(|feature| feature == "crt-static");
    if let LibraryFile::Static(file, archive) = &library.file {
        return emit_static(library, file, archive, is_static_program);
    }
    if probe::wants_static() == Some(true) {
        return Err("static linking was asked for, but no libploop.a was found: name its directory in PLOOP_LIB_DIR".to_owned());
    }
    if is_static_program {
        return Err(
            "the target feature crt-static makes programs without shared libraries: set PLOOP_STATIC=1 to link \
             libploop.a, and PKG_CONFIG_ALL_STATIC=1 for the libraries that it needs, or leave the feature out with \
             RUSTFLAGS=\"-C target-feature=-crt-static\""
                .to_owned(),
        );
    }
    if let (true, Some(dir)) = (library.search, library.file.path().and_then(Path::parent)) {
        println!("cargo::rustc-link-search=native={}", dir.display());
    }
    println!("cargo::rustc-link-lib=dylib=ploop");
    println!("cargo::metadata=linkage=shared");
    Ok(())
}

fn emit_static(
    library: &Library,
    file: &Path,
    archive: &Archive,
    is_static_program: bool,
) -> Result<(), String> {
    if let Some(member) = &archive.not_an_object {
        let object = Path::new(member).with_extension("o");
        return Err(format!(
            "{} cannot be linked: it holds the file {member} where an object, {}, should be, and other objects use its \
             functions. Some versions of libploop from 7.0.163 on were built so. Link the shared library, or put the \
             object into the archive: ar d, gcc -c, ar r.",
            file.display(),
            object.display()
        ));
    }
    // rustc opens the archive itself, so it needs the directory, even if the linker does not.
    if let Some(dir) = file.parent() {
        println!("cargo::rustc-link-search=native={}", dir.display());
    }
    println!("cargo::rustc-link-lib=static=ploop");
    println!("cargo::metadata=linkage=static");
    println!("cargo::rustc-cfg=ploop_static");
    // For crates that look functions up when they need them: in a program that is linked statically there is nothing to
    // look up.
    let late: Vec<&str> = late_functions(library.line.major())
        .filter(|function| archive.has(function))
        .collect();
    println!("cargo::metadata=late={}", late.join(","));
    for needed in needed_libraries(library.line.major()) {
        needed.emit(file.parent(), is_static_program)?;
    }
    if !is_static_program {
        // Before glibc 2.34 these are libraries of their own.
        println!("cargo::rustc-link-lib=dylib=rt");
        println!("cargo::rustc-link-lib=dylib=pthread");
    }
    Ok(())
}

/// The functions that the first versions of a line do not have, from the table in its bindings.
fn late_functions(line: u32) -> impl Iterator<Item = &'static str> {
    const LINE_7: &str = include_str!("../src/bindings/v7_0.rs");
    let bindings = if line == 7 { LINE_7 } else { "" };
    bindings.lines().filter_map(|text| {
        let (name, _) = text.trim().strip_prefix("(c\"")?.split_once('"')?;
        Some(name)
    })
}

/// A library that libploop.a needs besides libc.
struct Needed {
    /// The name of its .pc file.
    package: &'static str,
    /// The name that the linker knows.
    name: &'static str,
}

/// The libraries that the archive of a line needs. Its .pc file names the first alone.
fn needed_libraries(line: u32) -> &'static [Needed] {
    const NEEDED: [Needed; 4] = [
        Needed {
            package: "libxml-2.0",
            name: "xml2",
        },
        Needed {
            package: "libcrypto",
            name: "crypto",
        },
        Needed {
            package: "uuid",
            name: "uuid",
        },
        Needed {
            package: "devmapper",
            name: "devmapper",
        },
    ];
    match line {
        1 => &NEEDED[..1],
        _ => &NEEDED,
    }
}

impl Needed {
    /// Links it. It is a shared one unless the user tells pkg-config otherwise (`LIBXML_2.0_STATIC` or
    /// `PKG_CONFIG_ALL_STATIC`): a static libxml2 needs ICU, and so the C++ run-time.
    fn emit(&self, lib_dir: Option<&Path>, is_static_program: bool) -> Result<(), String> {
        let by_pkg_config = pkg_config::Config::new()
            .probe_cflags(false)
            .print_system_libs(false)
            .probe(self.package);
        let variable = format!("{}_STATIC", self.package.to_uppercase().replace('-', "_"));
        let is_static = [variable.as_str(), "PKG_CONFIG_ALL_STATIC"]
            .into_iter()
            .any(|name| env::var(name).is_some());
        if is_static_program && !(is_static && by_pkg_config.is_ok()) {
            return Err(format!(
                "the target feature crt-static makes programs without shared libraries, and libploop.a needs {}: \
                 install lib{}.a with its pkg-config file ({}.pc), and set PKG_CONFIG_ALL_STATIC=1",
                self.name, self.name, self.package
            ));
        }
        if by_pkg_config.is_ok() {
            return Ok(());
        }
        // libploop-dev depends on the run-time library of libxml2, but not on its development package. So there is no
        // `libxml2.so`, which `-lxml2` needs; the linker takes the run-time name, too.
        let dirs = [lib_dir.map(Path::to_owned), compiler::library_directory()];
        match dirs.iter().flatten().find_map(|dir| self.soname(dir)) {
            Some(soname) => println!("cargo::rustc-link-lib=dylib:+verbatim={soname}"),
            None => println!("cargo::rustc-link-lib=dylib={}", self.name),
        }
        Ok(())
    }

    /// The run-time name (`libxml2.so.2`), if there is one in the directory and no `libxml2.so`.
    fn soname(&self, dir: &PathBuf) -> Option<String> {
        let file = format!("lib{}.so", self.name);
        if dir.join(&file).exists() {
            return None;
        }
        let names = std::fs::read_dir(dir).ok()?.filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let version = name.strip_prefix(&file)?.strip_prefix('.')?;
            Some((crate::line::numbers(version), name))
        });
        names
            .filter(|(version, _)| !version.is_empty())
            .max()
            .map(|(_, name)| name)
    }
}
