//! The bindings' text, from the header. One place for the build script (feature `bindgen`) and for `cargo xtask bindgen`,
//! so that generated and committed bindings can only differ where the headers do.

use std::path::Path;
use std::process::Command;

/// Reads `ploop/libploop.h` in `include`, or on the compiler's own path, and returns formatted Rust.
pub(crate) fn bindings(include: Option<&Path>) -> Result<String, String> {
    let mut builder = bindgen::Builder::default()
        // By text and not by path, so that no machine's directory can get into the result.
        .header_contents("ploop-sys.h", "#include <ploop/libploop.h>\n")
        .allowlist_function("ploop_.*")
        .allowlist_type("ploop_.*")
        .allowlist_var("ploop_.*|PLOOP_.*|SYSEXIT_.*|DISKDESCRIPTOR_XML")
        // An attribute's spelling, not a constant.
        .blocklist_item("PLOOP_DEPRECATED")
        // C types that Rust or `libc` already has.
        .blocklist_type("__u32|__u64|_*off_t|_*pid_t")
        .raw_line("use libc::{off_t, pid_t};")
        .raw_line("type __u32 = u32;")
        .raw_line("type __u64 = u64;")
        .use_core()
        .generate_cstr(true)
        // The library takes flags and modes and returns codes as `int`.
        .default_macro_constant_type(bindgen::MacroTypeVariation::Signed)
        .prepend_enum_name(false)
        .derive_debug(true)
        // All parameter structs of the library must be zeroed where they are not filled in.
        .derive_default(true)
        .layout_tests(true)
        .merge_extern_blocks(true)
        .disable_header_comment()
        .formatter(bindgen::Formatter::Prettyplease)
        .rust_target(bindgen::RustTarget::stable(85, 0).map_err(|e| e.to_string())?)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .parse_callbacks(Box::new(Types))
        // The header's comments are ordinary ones, and its directory may count as a system one.
        .clang_args([
            "-fparse-all-comments",
            "-fretain-comments-from-system-headers",
        ]);
    if let Some(dir) = include {
        builder = builder.clang_arg(format!("-I{}", dir.display()));
    }
    // Debian's libclang1 comes without the compiler's own headers (stddef.h); gcc's will do. They go last, so that
    // a libclang that has its own uses those.
    if let Some(dir) = compiler_headers() {
        builder = builder.clang_arg("-idirafter").clang_arg(dir);
    }
    let text = without_panic(|| builder.generate())?
        .map_err(|e| e.to_string())?
        .to_string();
    Ok(finish(&text))
}

/// bindgen panics where it finds no libclang, which reads badly.
fn without_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    std::panic::set_hook(hook);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        format!(
            "the bindings could not be generated: {}\n\
             Generating them needs libclang (Debian, Ubuntu: package libclang1; RHEL-like: clang-libs); \
             the committed ones, without feature `bindgen`, do not.",
            text.unwrap_or("bindgen panicked")
        )
    })
}

/// The directory of the C compiler's own headers, if there is a C compiler that says.
fn compiler_headers() -> Option<String> {
    let output = Command::new("cc")
        .arg("-print-file-name=include")
        .output()
        .ok()?;
    let dir = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    Path::new(&dir).is_absolute().then_some(dir)
}

/// What bindgen cannot know of the types it is told to leave out.
#[derive(Debug)]
struct Types;

impl bindgen::callbacks::ParseCallbacks for Types {
    // All of them are integers, so what contains them may derive like the rest.
    fn blocklisted_type_implements_trait(
        &self,
        _name: &str,
        _trait: bindgen::callbacks::DeriveTrait,
    ) -> Option<bindgen::callbacks::ImplementsTrait> {
        Some(bindgen::callbacks::ImplementsTrait::Yes)
    }
}

/// C's enumerators are `int`, whatever type the compiler keeps the enumeration in; bindgen goes by the latter.
/// Every mode, flag and code of the library is an `int` too, so with `c_int` they compare without a cast.
/// The codes' own enumeration has no name in C and gets none here.
fn finish(text: &str) -> String {
    const NAMELESS: &str = "_bindgen_ty_1";
    let mut out = String::with_capacity(text.len() + 128);
    out.push_str(
        "// @generated from <ploop/libploop.h> by `cargo xtask bindgen`. Do not edit.\n\n",
    );
    for line in text.lines() {
        if line.starts_with(&format!("pub type {NAMELESS} ")) {
            continue;
        }
        let line = match line.strip_suffix("= ::core::ffi::c_uint;") {
            Some(alias) if line.starts_with("pub type ") => {
                format!("{alias}= ::core::ffi::c_int;")
            }
            _ => line.replace(&format!(": {NAMELESS} ="), ": ::core::ffi::c_int ="),
        };
        out.push_str(&line);
        out.push('\n');
    }
    out
}
