//! Compares the committed bindings of the line that is linked with the installed header, by a C compiler: bindgen has made
//! the bindings. That needs the header of the version that they were made from.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[cfg(ploop_abi = "v1")]
const BINDINGS: &str = include_str!("../src/bindings/v1_15.rs");
#[cfg(ploop_abi = "v7")]
const BINDINGS: &str = include_str!("../src/bindings/v7_0.rs");

/// Structures, constants and functions of the line, at least, and the headers.
#[cfg(ploop_abi = "v1")]
const LINE: (usize, usize, usize, &[&str]) = (19, 50, 53, &["libploop.h"]);
#[cfg(ploop_abi = "v7")]
const LINE: (usize, usize, usize, &[&str]) = (32, 60, 84, &["libploop.h", "libvolume.h"]);

/// The functions that no header of the line declares.
#[cfg(ploop_abi = "v1")]
const UNDECLARED: &str = "";
#[cfg(ploop_abi = "v7")]
const UNDECLARED: &str = include_str!("../abi/undeclared.h");

mod all_lines;

/// The layout assertions of bindgen, `["Size of X"][… - 168usize];` in one line or several: the label and the number.
fn asserts() -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut label = None;
    for line in BINDINGS.lines() {
        let line = line.trim();
        for word in ["Size of ", "Alignment of ", "Offset of field: "] {
            if let Some(at) = line.find(&format!("\"{word}")) {
                let text = &line[at + 1..];
                label = Some(text[..text.find('"').unwrap()].to_owned());
            }
        }
        if let Some(number) = line.strip_suffix("usize];") {
            let number = number.rsplit(' ').next().unwrap().parse().unwrap();
            found.push((label.take().expect("a number without a name"), number));
        }
    }
    found
}

/// The constants, `pub const NAME: type = number;`.
fn constants() -> Vec<(&'static str, i64)> {
    BINDINGS
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("pub const ")?.split_once(": ")?;
            let value = rest.split_once("= ")?.1.strip_suffix(';')?;
            Some((name, value.parse().ok()?))
        })
        .collect()
}

fn functions() -> Vec<&'static str> {
    BINDINGS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub fn ")?.split('(').next())
        .filter(|name| name.starts_with("ploop_"))
        .collect()
}

/// Whether the name is bindgen's, of a type that has none in C.
fn is_nameless(name: &str) -> bool {
    name.contains("__bindgen_")
}

/// Has the C compiler check a program. Writes no file.
fn compile(program: &str) {
    let mut command = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    command.args(["-std=gnu11", "-fsyntax-only", "-xc"]);
    if let Some(include) = option_env!("PLOOP_SYS_INCLUDE") {
        command.arg("-I").arg(PathBuf::from(include));
    }
    let mut child = command
        .arg("-")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test needs a C compiler (cc, or what CC names)");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(program.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "the header and the bindings differ:\n{words}"
    );
}

fn program(body: &str) -> String {
    let headers: String = LINE
        .3
        .iter()
        .map(|name| format!("#include <ploop/{name}>\n"))
        .collect();
    format!("#include <stddef.h>\n{headers}{UNDECLARED}\n{body}")
}

#[test]
#[cfg_attr(
    not(ploop_bound_header),
    ignore = "there is no header of the version that the bindings were made from"
)]
fn sizes_alignments_and_offsets_are_those_of_the_header() {
    let asserts = asserts();
    // Each structure has a size, an alignment and at least one member.
    assert!(asserts.len() > 3 * LINE.0, "only {} asserts", asserts.len());
    let mut body = String::new();
    for (label, number) in asserts.iter().filter(|(label, _)| !is_nameless(label)) {
        let c = if let Some(name) = label.strip_prefix("Size of ") {
            format!("sizeof(struct {name})")
        } else if let Some(name) = label.strip_prefix("Alignment of ") {
            format!("_Alignof(struct {name})")
        } else {
            let field = label.strip_prefix("Offset of field: ").unwrap();
            let (name, field) = field.split_once("::").unwrap();
            // bindgen's name for a member that is called as a keyword of Rust.
            let field = field.strip_suffix('_').unwrap_or(field);
            format!("offsetof(struct {name}, {field})")
        };
        body += &format!("_Static_assert({c} == {number}, \"{label}\");\n");
    }
    compile(&program(&body));
}

#[test]
#[cfg_attr(
    not(ploop_bound_header),
    ignore = "there is no header of the version that the bindings were made from"
)]
fn constants_are_those_of_the_header() {
    let constants = constants();
    assert!(constants.len() > LINE.1, "only {}", constants.len());
    let mut body = String::new();
    for (name, value) in constants {
        body += &format!("_Static_assert({name} == {value}, \"{name}\");\n");
    }
    compile(&program(&body));
}

#[test]
#[cfg_attr(
    not(ploop_bound_header),
    ignore = "there is no header of the version that the bindings were made from"
)]
fn every_function_of_the_header_is_bound() {
    // In C, taking the address of an undeclared function is an error. For the other direction, the header's text is read.
    let bound = functions();
    assert_eq!(bound.len(), LINE.2, "{bound:?}");
    let mut body = String::from("void *functions[] = {\n");
    for name in &bound {
        body += &format!("(void *){name},\n");
    }
    compile(&program(&(body + "};\n")));

    let include = option_env!("PLOOP_SYS_INCLUDE").unwrap_or("/usr/include");
    for header in LINE.3 {
        let file = PathBuf::from(include).join("ploop").join(header);
        let header = std::fs::read_to_string(file).unwrap();
        for line in header
            .lines()
            .filter(|l| !l.starts_with([' ', '\t', '/', '*', '#']))
        {
            let Some(before) = line.split('(').next().filter(|b| b.len() < line.len()) else {
                continue;
            };
            let name = before.rsplit([' ', '*']).next().unwrap();
            if name.starts_with("ploop_") {
                assert!(bound.contains(&name), "{name} is not bound");
            }
        }
    }
}
