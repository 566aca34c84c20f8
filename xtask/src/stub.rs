//! `cargo xtask stub`: builds a library with the soname of a line of libploop that does none of its work. It records the
//! calls, answers as a test has written in a script, and imitates what is dangerous in the real one (`ci/stub/models.c`).
//!
//! The functions are generated from the committed bindings, which bindgen has made from the interface descriptions in
//! `ploop-sys/abi`. The C compiler reads the descriptions themselves: it finds where the two differ.

use crate::bindgen::BINDINGS;
use crate::packages::Program;
use crate::{Install, packages, run, setup};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    install: Install,
    /// The line: the major number of the soname
    #[arg(long, value_parser = PossibleValuesParser::new(["7", "9"]))]
    line: String,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&["build"], options.install.no_install)?;
    let directory = build(options.line.parse()?)?;
    println!("{}", directory.display());
    Ok(())
}

/// The programs that test the crate on the stub.
pub(crate) struct StubTests {
    pub(crate) programs: Vec<Program>,
    /// The directory of the stub.
    pub(crate) library: PathBuf,
}

/// The program whose tests are all for the stub.
pub(crate) const TESTS: &str = "line_stub";

/// What of the operations of libploop 7 this crate does by itself needs no more of the library than the stub does.
const PROGRAMS: [&str; 2] = [TESTS, "line7"];

/// The line whose stub the tests are linked with: the bindings that the crate has beside those of line 1.
const LINE: u32 = 7;

impl StubTests {
    /// Builds the stub and the programs, in a target directory of its own: another library changes every crate from
    /// ploop-sys on.
    pub(crate) fn build() -> Result<StubTests> {
        let library = build(LINE)?;
        let target = PathBuf::from(packages::metadata()?.target_directory);
        let mut command = run::cargo("test -p ploop --no-run");
        command
            .args(PROGRAMS.iter().flat_map(|name| ["--test", name]))
            // Not optimized: for valgrind, and because there is little to do.
            .args(["--config", "profile.dev.package.ploop.opt-level=0"])
            .args(["--config", "profile.dev.package.sha2.opt-level=0"])
            .env("CARGO_INCREMENTAL", "0")
            .env("PLOOP_LIB_DIR", &library)
            .env("CARGO_TARGET_DIR", target.join("line-stub"));
        let programs = packages::build(&mut command)?;
        if programs.len() != PROGRAMS.len() {
            bail!("the tests on the stub were not built");
        }
        Ok(StubTests { programs, library })
    }
}

/// The name of a run on the stub.
pub(crate) fn title(program: &Program) -> String {
    format!("{}, on a stub of libploop {LINE}", program.title())
}

/// The sources beside the generated one.
const SOURCES: [&str; 2] = ["ci/stub/stub.c", "ci/stub/models.c"];

/// Builds the library, and returns its directory: `libploop.so`, its names, and a `.pc` file.
pub(crate) fn build(line: u32) -> Result<PathBuf> {
    let bindings = BINDINGS.iter().find(|bindings| bindings.line == line);
    let bindings = bindings.with_context(|| format!("there are no bindings of line {line}"))?;
    let interface = Interface::parse(&bindings.committed()?)?;
    let version = version(line);

    let target = PathBuf::from(packages::metadata()?.target_directory);
    let directory = target.join("stub").join(line.to_string());
    let write = |name: &str, text: String| -> Result<PathBuf> {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&directory))
            .and_then(|()| std::fs::write(&path, text))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    write("source/models.h", interface.models(line))?;
    let functions = write("source/functions.c", interface.functions())?;
    write("pkgconfig/ploop.pc", pkg_config(&directory, &version))?;

    let soname = format!("libploop.so.{line}");
    let library = directory.join(format!("libploop.so.{version}"));
    let root = run::root();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    run::run(
        run::command(compiler)
            .args([
                "-std=gnu11",
                "-shared",
                "-fPIC",
                "-fvisibility=hidden",
                "-pthread",
                "-g",
                "-O1",
            ])
            .args(["-Wall", "-Wextra", "-Wno-format-truncation", "-Wl,-z,defs"])
            .arg(format!("-Wl,-soname,{soname}"))
            .arg(format!("-DLINE={line}"))
            .arg("-I")
            .arg(root.join("ploop-sys/abi"))
            .arg("-I")
            .arg(root.join("ci/stub"))
            .arg("-I")
            .arg(directory.join("source"))
            .arg("-o")
            .arg(&library)
            .args(SOURCES.map(|source| root.join(source)))
            .arg(functions),
    )?;
    let name = library.file_name().context("a library without a name")?;
    for link in ["libploop.so", &soname] {
        let link = directory.join(link);
        // Cargo looks at the time of the link's target, and the link stays.
        if std::fs::read_link(&link).is_ok_and(|old| old.as_os_str() == name) {
            continue;
        }
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(name, &link)
            .with_context(|| format!("cannot make {}", link.display()))?;
    }
    Ok(directory)
}

/// The version that the stub says it is: the last that is known of the line.
fn version(line: u32) -> String {
    match line {
        7 => "7.0.280".to_owned(),
        9 => "9.0.30".to_owned(),
        other => format!("{other}.0"),
    }
}

fn pkg_config(directory: &Path, version: &str) -> String {
    format!(
        "libdir={}\n\nName: ploop\nDescription: a stub of libploop, for tests\nVersion: {version}\n\
         Libs: -L${{libdir}} -lploop\n",
        directory.display()
    )
}

/// What a binding says of a type, as far as the stub has to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Type {
    Nothing,
    /// By the name in C.
    Number(String),
    /// A text that is read. C has `char *` for many of these.
    Text,
    /// `char *`: a buffer, or a text that happens not to be `const`.
    TextBuffer,
    /// Bytes in a structure.
    Bytes(usize),
    Struct(String),
    PointerTo(Box<Type>),
    /// Without meaning to the stub.
    Other(String),
}

impl Type {
    fn parse(rust: &str) -> Type {
        let rust = rust.trim();
        if let Some(inner) = rust
            .strip_prefix("*mut ")
            .or_else(|| rust.strip_prefix("*const "))
        {
            let is_const = rust.starts_with("*const ");
            return match Type::parse(inner) {
                Type::Number(name) if name == "char" && is_const => Type::Text,
                Type::Number(name) if name == "char" => Type::TextBuffer,
                inner => Type::PointerTo(Box::new(inner)),
            };
        }
        if let Some(inner) = rust.strip_prefix('[') {
            let (element, len) = inner.split_once("; ").unwrap_or((inner, ""));
            let len = len.trim_end_matches(']').trim_end_matches("usize");
            return match (Type::parse(element), len.parse()) {
                (Type::Number(name), Ok(len)) if ["char", "uint8_t"].contains(&&*name) => {
                    Type::Bytes(len)
                }
                _ => Type::Other(rust.to_owned()),
            };
        }
        match rust.trim_start_matches("::core::ffi::") {
            "" | "()" => Type::Nothing,
            "c_char" => Type::Number("char".into()),
            "c_int" | "i32" => Type::Number("int".into()),
            "c_uint" => Type::Number("unsigned int".into()),
            "c_ulonglong" => Type::Number("unsigned long long".into()),
            "usize" => Type::Number("size_t".into()),
            "u8" => Type::Number("uint8_t".into()),
            "u32" => Type::Number("uint32_t".into()),
            "u64" => Type::Number("uint64_t".into()),
            "off_t" | "pid_t" | "dev_t" => Type::Number(rust.into()),
            name if name.starts_with("ploop_") || name.ends_with("_data") => {
                Type::Struct(name.into())
            }
            other => Type::Other(other.into()),
        }
    }
}

#[derive(Debug)]
struct Function {
    name: String,
    parameters: Vec<(String, Type)>,
    result: Type,
}

#[derive(Debug)]
struct Structure {
    name: String,
    members: Vec<(String, Type)>,
}

/// The functions and structures of a file of bindings.
struct Interface {
    functions: Vec<Function>,
    structures: Vec<Structure>,
}

impl Interface {
    fn parse(bindings: &str) -> Result<Interface> {
        let mut functions = Vec::new();
        let mut structures = Vec::new();
        let mut lines = bindings.lines().map(str::trim);
        while let Some(line) = lines.next() {
            if let Some(declaration) = line.strip_prefix("pub fn ploop_") {
                // In one line or several.
                let mut text = format!("ploop_{declaration}");
                while !text.ends_with(';') {
                    text += lines.next().context("a declaration without an end")?;
                }
                functions.push(function(&text)?);
            } else if let Some(name) = line.strip_prefix("pub struct ") {
                structures.extend(structure(name, &mut lines));
            } else if let Some(name) = line.strip_prefix("pub union ") {
                structures.extend(structure(name, &mut lines));
            }
        }
        if functions.len() < 50 {
            bail!("{} functions in these bindings", functions.len());
        }
        Ok(Interface {
            functions,
            structures,
        })
    }

    fn structure(&self, name: &str) -> Option<&Structure> {
        self.structures.iter().find(|it| it.name == name)
    }

    /// The members of a structure, with those of the structures and unions in it.
    fn members(&self, name: &str) -> Vec<(String, Type)> {
        let mut all = Vec::new();
        for (member, kind) in self.structure(name).into_iter().flat_map(|it| &it.members) {
            let Type::Struct(inner) = kind else {
                all.push((c_name(member), kind.clone()));
                continue;
            };
            // A union in C has no name here.
            let prefix = match member.starts_with("__bindgen_anon") {
                true => String::new(),
                false => format!("{member}."),
            };
            let inner = self.members(inner);
            all.extend(
                inner
                    .into_iter()
                    .map(|(name, kind)| (prefix.clone() + &name, kind)),
            );
        }
        all
    }

    /// The prototypes of the models, each of which has the parameters of its function.
    fn models(&self, line: u32) -> String {
        let mut text = format!(
            "// Generated by `cargo xtask stub`.\n#include \"v{line}.h\"\n\nstruct call;\n\n"
        );
        for function in &self.functions {
            let name = c_type(&function.result, &format!("model_{}", function.name));
            let parameters = c_parameters(function, Some("struct call *call"));
            let _ = writeln!(text, "__attribute__((weak)) {name}({parameters});");
        }
        text
    }

    fn functions(&self) -> String {
        let mut text = String::from(
            "// Generated by `cargo xtask stub`.\n#include \"stub.h\"\n#include \"models.h\"\n",
        );
        for function in &self.functions {
            text.push('\n');
            self.function(&mut text, function);
        }
        text
    }

    fn function(&self, text: &mut String, function: &Function) {
        let name = &function.name;
        let returns = function.result != Type::Nothing;
        let mut line = |indent: usize, words: String| {
            let _ = writeln!(text, "{}{words}", "\t".repeat(indent));
        };
        let declared = c_type(&function.result, name);
        line(0, "__attribute__((visibility(\"default\")))".into());
        line(0, format!("{declared}({})", c_parameters(function, None)));
        line(0, "{".into());
        line(1, format!("struct call *call = call_begin(\"{name}\");"));
        for (at, (parameter, kind)) in function.parameters.iter().enumerate() {
            let next = function.parameters.get(at + 1);
            let is_buffer =
                *kind == Type::TextBuffer && next.is_some_and(|(_, kind)| is_length(kind));
            match kind {
                Type::Number(_) => line(
                    1,
                    format!("put_number(call, \"{parameter}\", {parameter});"),
                ),
                Type::TextBuffer if is_buffer => {
                    line(
                        1,
                        format!("put_pointer(call, \"{parameter}\", {parameter});"),
                    );
                }
                Type::Text | Type::TextBuffer => {
                    line(1, format!("put_text(call, \"{parameter}\", {parameter});"));
                }
                Type::PointerTo(inner) => match &**inner {
                    Type::Struct(handle) if handle == HANDLE => {
                        line(
                            1,
                            format!("put_handle(call, \"{parameter}\", {parameter});"),
                        );
                    }
                    Type::Struct(inner) if self.is_plain(inner) => {
                        line(
                            1,
                            format!(
                                "if (put_bytes(call, \"{parameter}\", {parameter}, sizeof *{parameter})) {{"
                            ),
                        );
                        for (member, kind) in self.members(inner) {
                            let at = format!("\"{parameter}.{member}\", {parameter}->{member}");
                            match kind {
                                Type::Number(_) => line(2, format!("put_number(call, {at});")),
                                Type::Text | Type::TextBuffer => {
                                    line(2, format!("put_text(call, {at});"))
                                }
                                Type::Bytes(_) => line(
                                    2,
                                    format!("put_bytes(call, {at}, sizeof {parameter}->{member});"),
                                ),
                                Type::PointerTo(_) => line(2, format!("put_pointer(call, {at});")),
                                _ => {}
                            }
                        }
                        line(1, "}".into());
                    }
                    _ => line(
                        1,
                        format!("put_pointer(call, \"{parameter}\", {parameter});"),
                    ),
                },
                _ => line(
                    1,
                    format!("put_pointer(call, \"{parameter}\", {parameter});"),
                ),
            }
        }
        line(1, "call_written(call);".into());
        let arguments: Vec<&str> = ["call"]
            .into_iter()
            .chain(function.parameters.iter().map(|(name, _)| name.as_str()))
            .collect();
        let arguments = arguments.join(", ");
        let number = matches!(function.result, Type::Number(_));
        if returns {
            let none = if number { "0" } else { "NULL" };
            line(1, format!("{} = {none};", c_type(&function.result, "code")));
        }
        let assign = if returns { "code = " } else { "" };
        let unless = if number {
            "!scripted_code(call, &code) && "
        } else {
            ""
        };
        line(1, format!("if ({unless}model_{name})"));
        line(2, format!("{assign}model_{name}({arguments});"));
        for (at, (parameter, kind)) in function.parameters.iter().enumerate() {
            let next = function.parameters.get(at + 1);
            match (kind, next) {
                (Type::TextBuffer, Some((len, kind))) if is_length(kind) => {
                    line(
                        1,
                        format!("take_text(call, \"{parameter}\", {parameter}, {len});"),
                    );
                }
                (Type::PointerTo(inner), _) => match &**inner {
                    Type::Number(_) => line(
                        1,
                        format!("TAKE_NUMBER(call, \"{parameter}\", {parameter});"),
                    ),
                    Type::Struct(inner) if inner != HANDLE && self.is_plain(inner) => {
                        for (member, kind) in self.members(inner) {
                            let place = format!("call, \"{parameter}.{member}\"");
                            match kind {
                                Type::Number(_) => line(
                                    1,
                                    format!(
                                        "if ({parameter}) TAKE_NUMBER({place}, &{parameter}->{member});"
                                    ),
                                ),
                                Type::Bytes(_) => line(
                                    1,
                                    format!(
                                        "if ({parameter}) take_bytes({place}, (char *){parameter}->{member}, sizeof {parameter}->{member});"
                                    ),
                                ),
                                _ => {}
                            }
                        }
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        let returned = if number { "code" } else { "0" };
        line(1, format!("call_end(call, {returned});"));
        if returns {
            line(1, "return code;".into());
        }
        line(0, "}".into());
    }

    /// Whether the members are known: the library does not allocate it, and its size is that of its type.
    fn is_plain(&self, name: &str) -> bool {
        self.structure(name).is_some_and(|it| {
            let is_open = |(_, kind): &(String, Type)| {
                matches!(kind, Type::Other(name) if name.contains("IncompleteArray"))
            };
            !it.members.is_empty() && !it.members.iter().any(is_open) && name != "ploop_copy_handle"
        })
    }
}

/// The handle of an image, which the stub allocates.
const HANDLE: &str = "ploop_disk_images_data";

fn is_length(kind: &Type) -> bool {
    matches!(kind, Type::Number(name) if ["int", "size_t"].contains(&&**name))
}

/// The parameters of a function in C, behind `first`.
fn c_parameters(function: &Function, first: Option<&str>) -> String {
    let own = function.parameters.iter();
    let own = own.map(|(name, kind)| c_type(kind, name));
    let all: Vec<String> = first.map(str::to_owned).into_iter().chain(own).collect();
    match all.is_empty() {
        true => "void".to_owned(),
        false => all.join(", "),
    }
}

/// bindgen puts an underscore behind what is a keyword in Rust.
fn c_name(rust: &str) -> String {
    rust.trim_end_matches('_').to_owned()
}

/// A declaration of this name, or the type alone.
fn c_type(kind: &Type, name: &str) -> String {
    let (words, stars) = match kind {
        Type::Nothing => ("void".to_owned(), String::new()),
        Type::Number(number) => (number.clone(), String::new()),
        Type::Text => ("const char".to_owned(), "*".to_owned()),
        Type::TextBuffer => ("char".to_owned(), "*".to_owned()),
        Type::Struct(name) => (format!("struct {name}"), String::new()),
        Type::PointerTo(inner) => {
            let inner = c_type(inner, "");
            let inner = inner.trim_end();
            let at = inner.find('*').unwrap_or(inner.len());
            let stars = format!("{}*", &inner[at..]);
            (inner[..at].trim_end().to_owned(), stars)
        }
        Type::Bytes(_) | Type::Other(_) => ("void".to_owned(), String::new()),
    };
    format!("{words} {stars}{name}")
}

/// `ploop_get_dev(di: *mut ploop_disk_images_data, …) -> ::core::ffi::c_int;`
fn function(text: &str) -> Result<Function> {
    let broken = || format!("this declaration is not understood: {text}");
    let (name, rest) = text.split_once('(').with_context(broken)?;
    let (parameters, result) = rest.split_once(')').with_context(broken)?;
    let parameters = parameters
        .split(',')
        .filter(|word| !word.trim().is_empty())
        .map(|word| {
            let (name, kind) = word.split_once(':').with_context(broken)?;
            Ok((name.trim().to_owned(), Type::parse(kind)))
        });
    let result = result.trim_end_matches(';').trim();
    Ok(Function {
        name: name.to_owned(),
        parameters: parameters.collect::<Result<_>>()?,
        result: Type::parse(result.trim_start_matches("->")),
    })
}

/// The members, up to the end of the structure; `None` for one without.
fn structure<'a>(name: &str, lines: &mut impl Iterator<Item = &'a str>) -> Option<Structure> {
    let name = name.strip_suffix(" {")?;
    let mut members = Vec::new();
    for line in lines.take_while(|line| *line != "}") {
        let member = line.strip_prefix("pub ").and_then(|it| it.split_once(": "));
        if let Some((name, kind)) = member {
            members.push((name.to_owned(), Type::parse(kind.trim_end_matches(','))));
        }
    }
    Some(Structure {
        name: name.to_owned(),
        members,
    })
}
