//! Tells Cargo what to link: `libploop.so`, or `libploop.a` and the libraries that it needs.

use crate::env;
use crate::probe::Library;
use std::path::Path;

pub(crate) fn emit(library: &Library) -> Result<(), String> {
    // The variable wins: any crate of the tree can switch on the feature, but only the user sets the variable.
    let wanted = env::switch("PLOOP_STATIC").unwrap_or(cfg!(feature = "static"));
    // The directory of PLOOP_LIB_DIR may hold the archive only.
    let only_archive = library
        .lib_dir
        .as_deref()
        .is_some_and(|dir| !dir.join("libploop.so").exists() && dir.join("libploop.a").exists());

    if wanted || (only_archive && library.search) {
        return emit_static(library);
    }
    if let (true, Some(dir)) = (library.search, &library.lib_dir) {
        println!("cargo::rustc-link-search=native={}", dir.display());
    }
    println!("cargo::rustc-link-lib=dylib=ploop");
    Ok(())
}

fn emit_static(library: &Library) -> Result<(), String> {
    // rustc opens the archive itself, so it needs the directory, even if the linker does not.
    if let Some(dir) = &library.lib_dir {
        if !dir.join("libploop.a").exists() {
            return Err(format!(
                "static linking was asked for, but there is no libploop.a in {} \
                 (Debian, Ubuntu: package libploop-dev; RHEL-like: ploop-devel)",
                dir.display()
            ));
        }
        println!("cargo::rustc-link-search=native={}", dir.display());
    }
    println!("cargo::rustc-link-lib=static=ploop");
    emit_libxml2(library.lib_dir.as_deref());
    // Before glibc 2.34 these are libraries of their own.
    println!("cargo::rustc-link-lib=dylib=rt");
    println!("cargo::rustc-link-lib=dylib=pthread");
    Ok(())
}

/// Links libxml2, the one library that libploop.a needs besides libc. It is a shared one unless the user tells
/// pkg-config otherwise (`LIBXML_2.0_STATIC` or `PKG_CONFIG_ALL_STATIC`): a static one needs ICU, and so the C++
/// run-time.
fn emit_libxml2(lib_dir: Option<&Path>) {
    let by_pkg_config = pkg_config::Config::new()
        .probe_cflags(false)
        .print_system_libs(false)
        .probe("libxml-2.0");
    if by_pkg_config.is_ok() {
        return;
    }
    // libploop-dev depends on the run-time library of libxml2, but not on its development package. So there is no
    // `libxml2.so`, which `-lxml2` needs; the linker takes the run-time name, too.
    match lib_dir.and_then(libxml2_soname) {
        Some(soname) => println!("cargo::rustc-link-lib=dylib:+verbatim={soname}"),
        None => println!("cargo::rustc-link-lib=dylib=xml2"),
    }
}

/// The run-time name (`libxml2.so.2`), if that is beside libploop.a and there is no `libxml2.so`.
fn libxml2_soname(dir: &Path) -> Option<String> {
    if dir.join("libxml2.so").exists() {
        return None;
    }
    std::fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| {
            let major: u32 = name.strip_prefix("libxml2.so.")?.parse().ok()?;
            Some((major, name))
        })
        .max()
        .map(|(_, name)| name)
}
