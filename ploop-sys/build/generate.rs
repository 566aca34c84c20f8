//! Generates the bindings from the header. Both the build script (feature `bindgen`) and `cargo xtask bindgen` use this
//! file, so generated and committed bindings differ only where the headers do.

use std::path::Path;
use std::process::Command;

/// The functions that the library exports and its headers do not declare.
const UNDECLARED: &str = include_str!("../abi/undeclared.h");

/// Reads an interface description, `abi/v7.h`, and returns formatted Rust.
pub(crate) fn of_description(file: &Path) -> Result<String, String> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let origin = format!("ploop-sys/abi/{name}");
    let bindings = finish(&origin, &generated(builder_of(file))?);
    let late = late_functions(&bindings);
    Ok(bindings + &late_module(&late))
}

/// Reads the header `ploop/libploop.h` from `include`, or from the compiler's own path, and returns formatted Rust.
/// From line 7 on there is `ploop/libvolume.h`, too; the undeclared functions are added; and the line's description, in
/// `descriptions`, says which functions are late. A build script tells Cargo of the headers that were read.
pub(crate) fn of_header(
    include: Option<&Path>,
    line: u32,
    descriptions: &Path,
    is_build_script: bool,
) -> Result<String, String> {
    let mut builder = builder()
        // The header's text and not its path, so that no directory of this machine gets into the result.
        .header_contents("ploop-sys.h", &headers(line))
        .blocklist_type(KERNEL_TYPES)
        // The header has ordinary comments, and may be in a system directory.
        .clang_args([
            "-fparse-all-comments",
            "-fretain-comments-from-system-headers",
        ]);
    if let Some(dir) = include {
        builder = builder.clang_arg(format!("-I{}", dir.display()));
    }
    if is_build_script {
        builder = builder.parse_callbacks(Box::new(bindgen::CargoCallbacks::new()));
    }
    let mut bindings = finish("<ploop/libploop.h>", &generated(builder)?);
    if line >= 7 {
        let description = of_description(&descriptions.join(format!("v{line}.h")))?;
        let mut late = late_functions(&description);
        late.retain(|function| bindings.contains(&format!("pub fn {}(", function.name)));
        bindings += &late_module(&late);
    }
    Ok(bindings)
}

/// Everything that these headers declare, whatever its name. `libvolume` is empty where there is none.
pub(crate) fn of_public_headers(libploop: &str, libvolume: &str) -> Result<String, String> {
    let builder = builder()
        // As one text: the second uses types of the first. The oldest use a type that they do not declare.
        .header_contents(
            "public.h",
            &format!("#include <stddef.h>\n{libploop}\n{libvolume}"),
        )
        .allowlist_file("(.*/)?public\\.h")
        .blocklist_type(KERNEL_TYPES);
    Ok(finish("the public headers", &generated(builder)?))
}

/// C types that Rust already has.
const KERNEL_TYPES: &str = "__u8|__u32|__u64";

fn headers(line: u32) -> String {
    let mut text = String::from("#include <ploop/libploop.h>\n");
    if line >= 7 {
        text += "#include <ploop/libvolume.h>\n";
        text += UNDECLARED;
    }
    text
}

fn builder_of(description: &Path) -> bindgen::Builder {
    builder().header(description.to_string_lossy())
}

/// The settings that all bindings share.
fn builder() -> bindgen::Builder {
    let builder = bindgen::Builder::default()
        .allowlist_function("ploop_.*")
        .allowlist_type("ploop_.*|e2fsck_flags|quota_type")
        .allowlist_var("ploop_.*|PLOOP_.*|SYSEXIT_.*|DISKDESCRIPTOR_XML|QCOW_IMAGE_NAME")
        // It stands for an attribute, and is not a constant. The others are the guards of the descriptions.
        .blocklist_item("PLOOP_DEPRECATED|PLOOP_SYS_.*")
        // C types that `libc` already has.
        .blocklist_type("_*(off|pid|dev)_t")
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
        .parse_callbacks(Box::new(Types));
    // Debian's libclang1 comes without the compiler's own headers (stddef.h), so those of gcc are added. They come
    // last: a libclang with its own headers uses these.
    match compiler_headers() {
        Some(dir) => builder.clang_arg("-idirafter").clang_arg(dir),
        None => builder,
    }
}

fn generated(builder: bindgen::Builder) -> Result<String, String> {
    let builder = builder
        .rust_target(bindgen::RustTarget::stable(85, 0).map_err(|e| e.to_string())?)
        .rust_edition(bindgen::RustEdition::Edition2024);
    let bindings = without_panic(|| builder.generate())?.map_err(|e| e.to_string())?;
    Ok(bindings.to_string())
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
/// flags and codes are `int`, so they compare without a cast. Enumerations that have no name in C get none.
fn finish(origin: &str, text: &str) -> String {
    const NAMELESS: &str = "_bindgen_ty_";
    let mut out = format!("// @generated from {origin} by `cargo xtask bindgen`. Do not edit.\n\n");
    let named = |name: &&str| text.contains(&format!(" {name}"));
    let types: Vec<&str> = ["dev_t", "off_t", "pid_t"]
        .into_iter()
        .filter(named)
        .collect();
    out += &format!("use libc::{{{}}};\n", types.join(", "));
    for (name, rust) in [("__u8", "u8"), ("__u32", "u32"), ("__u64", "u64")] {
        if text.contains(&format!("{name},")) || text.contains(&format!("[{name};")) {
            out += &format!("type {name} = {rust};\n");
        }
    }
    out.push('\n');
    for line in line_comments(text).lines() {
        if line.starts_with(&format!("pub type {NAMELESS}")) {
            continue;
        }
        let line = match line.strip_suffix("= ::core::ffi::c_uint;") {
            Some(alias) if line.starts_with("pub type ") => {
                format!("{alias}= ::core::ffi::c_int;")
            }
            _ => match line.split_once(&format!(": {NAMELESS}")) {
                Some((name, value)) if line.starts_with("pub const ") => {
                    let value = value.trim_start_matches(|c: char| c.is_ascii_digit());
                    format!("{name}: ::core::ffi::c_int{value}")
                }
                _ => line.to_owned(),
            },
        };
        out.push_str(&line);
        out.push('\n');
    }
    out
}

/// Turns the comments of several lines, which bindgen writes as a block, into line comments.
fn line_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut indent = None;
    for line in text.lines() {
        let words = line.trim_start();
        if words.starts_with("/**") {
            indent = Some(line.len() - words.len());
        }
        let Some(width) = indent else {
            out += line;
            out.push('\n');
            continue;
        };
        let words = words.strip_prefix("/**").unwrap_or(words);
        let words = match words.strip_suffix("*/") {
            Some(last) => {
                indent = None;
                last
            }
            None => words,
        };
        out += &format!("{:width$}/// {}\n", "", words.trim());
    }
    out
}

/// A function that not every version of its line has: its comment in the description names the first that does.
struct LateFunction {
    name: String,
    since: String,
    /// The parameters and the result, `(image: *const c_char) -> c_int;`, in one line or several.
    signature: String,
}

/// The late functions of bindings that were made from a description.
fn late_functions(text: &str) -> Vec<LateFunction> {
    let mut late = Vec::new();
    let mut comment = String::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if let Some(words) = line.strip_prefix("///") {
            comment += words;
            continue;
        }
        let comment = std::mem::take(&mut comment);
        let Some((name, rest)) = line
            .strip_prefix("pub fn ")
            .and_then(|function| function.split_once('('))
        else {
            continue;
        };
        let mut signature = format!("({rest}");
        while !signature.ends_with(';') {
            let Some(line) = lines.next() else { break };
            signature.push_str(if line.starts_with(')') {
                "\n    "
            } else {
                "\n        "
            });
            signature.push_str(line);
        }
        let since = comment
            .split_once("Since ")
            .and_then(|(_, rest)| rest.split([',', ' ']).next())
            .map(|version| version.trim_end_matches('.').to_owned());
        if let Some(since) = since {
            late.push(LateFunction {
                name: name.to_owned(),
                since,
                signature,
            });
        }
    }
    late
}

/// The module `late`, with the type of each late function and the table of all.
fn late_module(late: &[LateFunction]) -> String {
    let mut out = String::from(
        "/// Functions that the first versions of the line do not have. A program that calls one of them as it is bound\n\
         /// above does not start where the library lacks it. Look it up by `dlsym` instead; these are the types.\n\
         pub mod late {\n    use super::*;\n\n    /// The names, and the first versions that have them.\n",
    );
    out += &format!(
        "    pub const SINCE: [(&::core::ffi::CStr, &str); {}] = [\n",
        late.len()
    );
    for LateFunction { name, since, .. } in late {
        out += &format!("        (c\"{name}\", \"{since}\"),\n");
    }
    out += "    ];\n";
    for LateFunction {
        name, signature, ..
    } in late
    {
        out += &format!("    pub type {name} = unsafe extern \"C\" fn{signature}\n");
    }
    out + "}\n"
}
