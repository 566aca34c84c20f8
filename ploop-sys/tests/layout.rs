//! Compares the committed bindings with the installed header, by a C compiler: bindgen has made the bindings.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const BINDINGS: &str = include_str!("../src/bindings/v1_15.rs");

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
        .collect()
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
    format!("#include <stddef.h>\n#include <ploop/libploop.h>\n{body}")
}

#[test]
fn sizes_alignments_and_offsets_are_those_of_the_header() {
    let asserts = asserts();
    // 19 structures, each with a size, an alignment and at least two members.
    assert!(asserts.len() > 4 * 19, "only {} asserts", asserts.len());
    let mut body = String::new();
    for (label, number) in asserts {
        let c = if let Some(name) = label.strip_prefix("Size of ") {
            format!("sizeof(struct {name})")
        } else if let Some(name) = label.strip_prefix("Alignment of ") {
            format!("_Alignof(struct {name})")
        } else {
            let field = label.strip_prefix("Offset of field: ").unwrap();
            let (name, field) = field.split_once("::").unwrap();
            format!("offsetof(struct {name}, {field})")
        };
        body += &format!("_Static_assert({c} == {number}, \"{label}\");\n");
    }
    compile(&program(&body));
}

#[test]
fn constants_are_those_of_the_header() {
    let constants = constants();
    assert!(constants.len() > 50, "only {}", constants.len());
    let mut body = String::new();
    for (name, value) in constants {
        body += &format!("_Static_assert({name} == {value}, \"{name}\");\n");
    }
    compile(&program(&body));
}

#[test]
fn every_function_of_the_header_is_bound() {
    // In C, taking the address of an undeclared function is an error. For the other direction, the header's text is read.
    let bound = functions();
    assert_eq!(bound.len(), 53, "{bound:?}");
    let mut body = String::from("void *functions[] = {\n");
    for name in &bound {
        body += &format!("(void *){name},\n");
    }
    compile(&program(&(body + "};\n")));

    let include = option_env!("PLOOP_SYS_INCLUDE").unwrap_or("/usr/include");
    let header = std::fs::read_to_string(PathBuf::from(include).join("ploop/libploop.h")).unwrap();
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
