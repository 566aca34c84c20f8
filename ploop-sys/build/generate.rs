//! Generates the bindings from the header. Both the build script (feature `bindgen`) and `cargo xtask bindgen` use this
//! file, so generated and committed bindings differ only where the headers do.

use std::path::Path;
use std::process::Command;

/// Reads `ploop/libploop.h` from `include`, or from the compiler's own path, and returns formatted Rust.
pub(crate) fn bindings(include: Option<&Path>) -> Result<String, String> {
    let mut builder = bindgen::Builder::default()
        // The header's text and not its path, so that no directory of this machine gets into the result.
        .header_contents("ploop-sys.h", "#include <ploop/libploop.h>\n")
        .allowlist_function("ploop_.*")
        .allowlist_type("ploop_.*")
        .allowlist_var("ploop_.*|PLOOP_.*|SYSEXIT_.*|DISKDESCRIPTOR_XML")
        // It stands for an attribute, and is not a constant.
        .blocklist_item("PLOOP_DEPRECATED")
        // C types that Rust or `libc` already has.
        .blocklist_type("__u32|__u64|_*off_t|_*pid_t")
        .raw_line("use libc::{off_t, pid_t};")
        .raw_line("type __u32 = u32;")
        .raw_line("type __u64 = u64;")
        .use_core()
        .generate_cstr(true)
        // The library's flags, modes and codes are `int`.
        .default_macro_constant_type(bindgen::MacroTypeVariation::Signed)
        .prepend_enum_name(false)
        .derive_debug(true)
        // Members of parameter structs that are not filled in must be zero.
        .derive_default(true)
        .layout_tests(true)
        .merge_extern_blocks(true)
        .disable_header_comment()
        .formatter(bindgen::Formatter::Prettyplease)
        .rust_target(bindgen::RustTarget::stable(85, 0).map_err(|e| e.to_string())?)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .parse_callbacks(Box::new(Types))
        // The header has ordinary comments, and may be in a system directory.
        .clang_args([
            "-fparse-all-comments",
            "-fretain-comments-from-system-headers",
        ]);
    if let Some(dir) = include {
        builder = builder.clang_arg(format!("-I{}", dir.display()));
    }
    // Debian's libclang1 comes without the compiler's own headers (stddef.h), so those of gcc are added. They come
    // last: a libclang with its own headers uses these.
    if let Some(dir) = compiler_headers() {
        builder = builder.clang_arg("-idirafter").clang_arg(dir);
    }
    let text = without_panic(|| builder.generate())?
        .map_err(|e| e.to_string())?
        .to_string();
    Ok(finish(&text))
}

/// Turns a panic into an error: bindgen panics where it finds no libclang.
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

/// The directory of the C compiler's own headers, if there is such a compiler.
fn compiler_headers() -> Option<String> {
    let output = Command::new("cc")
        .arg("-print-file-name=include")
        .output()
        .ok()?;
    let dir = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    Path::new(&dir).is_absolute().then_some(dir)
}

/// Tells bindgen about the types that it leaves out.
#[derive(Debug)]
struct Types;

impl bindgen::callbacks::ParseCallbacks for Types {
    // They are integers, so structs with such members may derive all traits.
    fn blocklisted_type_implements_trait(
        &self,
        _name: &str,
        _trait: bindgen::callbacks::DeriveTrait,
    ) -> Option<bindgen::callbacks::ImplementsTrait> {
        Some(bindgen::callbacks::ImplementsTrait::Yes)
    }
}

/// Gives enumerators the type `c_int`, as in C: bindgen gives them the type of the enumeration. The library's modes,
/// flags and codes are `int`, so they compare without a cast. The enumeration of the codes has no name in C, and gets
/// none.
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
