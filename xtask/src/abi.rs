//! `cargo xtask abi`: compares a committed binding with headers of libploop, or tells since which version of the C
//! library each function and each member is there.

mod interface;

use crate::bindgen::{BINDINGS, Bindings, generate};
use crate::{Install, run, setup};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use interface::{Interface, Key};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

#[derive(Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(crate) struct Options {
    /// Compare with the headers in this directory: it has ploop/libploop.h, or libploop.h
    #[arg(long, value_name = "DIR", group = "what")]
    header: Option<PathBuf>,
    /// Tell the history of the interface by all tags of this clone of the C library's repository
    #[arg(long, value_name = "CLONE", group = "what")]
    tags: Option<PathBuf>,
    /// The line to compare with, or the only one to tell of: 1, 7 or 9. Else the headers tell the line
    #[arg(long)]
    line: Option<u32>,
    #[command(flatten)]
    install: Install,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&["build", "bindgen"], options.install.no_install)?;
    match (&options.header, &options.tags) {
        (Some(dir), _) => compare(dir, options.line),
        (None, Some(clone)) => tell(clone, options.line),
        (None, None) => bail!("name headers or a clone"),
    }
}

/// The text of the public headers; the second is empty where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Headers {
    libploop: String,
    libvolume: String,
}

impl Headers {
    fn read(dir: &Path) -> Result<Headers> {
        let dir = [dir.join("ploop"), dir.to_path_buf()]
            .into_iter()
            .find(|dir| dir.join("libploop.h").is_file())
            .with_context(|| {
                let dir = dir.display();
                format!("there is neither ploop/libploop.h nor libploop.h in {dir}")
            })?;
        let read = |name: &str| std::fs::read_to_string(dir.join(name));
        Ok(Headers {
            libploop: read("libploop.h").with_context(|| format!("in {}", dir.display()))?,
            libvolume: read("libvolume.h").unwrap_or_default(),
        })
    }

    fn interface(&self) -> Result<Interface> {
        let bindings = generate::of_public_headers(&self.libploop, &self.libvolume)
            .map_err(|error| anyhow!(error))?;
        Interface::parse(&bindings)
    }
}

fn compare(dir: &Path, line: Option<u32>) -> Result<()> {
    let header = Headers::read(dir)?.interface()?;
    let line = line.unwrap_or_else(|| line_of(&header));
    let bindings = bindings_of(line)?;
    let bound = Interface::parse(&bindings.committed()?)?;
    let differences = differences(&bound, &header, &undeclared()?);
    let (file, dir) = (bindings.file, dir.display());
    if differences.is_empty() {
        println!("{file} and the headers in {dir}: no difference");
        return Ok(());
    }
    for difference in &differences {
        println!("{difference}");
    }
    bail!(
        "{file} and the headers in {dir} differ in {} items",
        differences.len()
    )
}

fn bindings_of(line: u32) -> Result<&'static Bindings> {
    let bindings = BINDINGS.iter().find(|bindings| bindings.line == line);
    bindings.with_context(|| format!("there is no binding of line {line}, but of 1, 7 and 9"))
}

/// The line of an interface, by functions that only later lines have.
fn line_of(interface: &Interface) -> u32 {
    let has = |name: &str| interface.0.contains_key(&Key::Function(name.to_owned()));
    if has("ploop_dm_message") {
        9
    } else if has("ploop_set_umount_timeout") {
        7
    } else {
        1
    }
}

/// The functions that the bindings have although no header declares them.
fn undeclared() -> Result<BTreeSet<Key>> {
    let path = run::root().join("ploop-sys/abi/undeclared.h");
    let text = std::fs::read_to_string(&path).context("cannot read abi/undeclared.h")?;
    let names = text
        .lines()
        .filter(|line| !line.starts_with(['/', '#', '\t']))
        .filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next())
        .map(|name| Key::Function(name.to_owned()));
    Ok(names.collect())
}

/// A line for each item that is not the same in both.
fn differences(bound: &Interface, header: &Interface, undeclared: &BTreeSet<Key>) -> Vec<String> {
    let keys: BTreeSet<&Key> = bound.0.keys().chain(header.0.keys()).collect();
    let describe = |key: &Key| match (bound.0.get(key), header.0.get(key)) {
        (Some(bound), Some(header)) if bound == header => None,
        (Some(bound), Some(header)) => {
            Some(format!("{key}: bound as {bound}, declared as {header}"))
        }
        (Some(_), None) if undeclared.contains(key) => None,
        (Some(bound), None) => Some(format!("{key}: bound as {bound}, not declared")),
        (None, Some(header)) => Some(format!("{key}: not bound, declared as {header}")),
        (None, None) => None,
    };
    keys.into_iter().filter_map(describe).collect()
}

/// A tag such as `v7.0.163.2`, and its numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Tag {
    numbers: Vec<u32>,
    name: String,
}

impl Tag {
    fn parse(name: &str) -> Option<Tag> {
        let (_, version) = name.split_at(name.find(|c: char| c.is_ascii_digit())?);
        let numbers: Option<Vec<u32>> = version.split('.').map(|n| n.parse().ok()).collect();
        Some(Tag {
            numbers: numbers?,
            name: name.to_owned(),
        })
    }

    /// The line that the version belongs to: 8 and 9 are one.
    fn line(&self) -> u32 {
        match self.numbers.first() {
            Some(0..7) | None => 1,
            Some(7) => 7,
            Some(_) => 9,
        }
    }

    fn version(&self) -> &str {
        self.name.trim_start_matches(|c: char| !c.is_ascii_digit())
    }
}

fn tell(clone: &Path, line: Option<u32>) -> Result<()> {
    let tags = tags(clone)?;
    for wanted in [1, 7, 9] {
        let tags: Vec<&Tag> = tags
            .iter()
            .filter(|tag| tag.line() == wanted && line.is_none_or(|line| line == wanted))
            .collect();
        if let (Some(first), Some(last)) = (tags.first(), tags.last()) {
            println!(
                "line {wanted}: {} tags, {} to {}",
                tags.len(),
                first.version(),
                last.version()
            );
            let history = history(clone, &tags)?;
            for text in history.iter().map(|(key, item)| item.shown(key, &tags)) {
                println!("  {text}");
            }
        }
    }
    Ok(())
}

fn tags(clone: &Path) -> Result<Vec<Tag>> {
    let list = run::output(run::command("git").arg("-C").arg(clone).arg("tag"))?;
    let mut tags: Vec<Tag> = list.lines().filter_map(Tag::parse).collect();
    if tags.is_empty() {
        bail!("{} has no tags such as v7.0.280", clone.display());
    }
    tags.sort();
    Ok(tags)
}

/// What is said of an item, for each tag.
#[derive(Debug, Default)]
struct Item(Vec<Option<String>>);

fn history(clone: &Path, tags: &[&Tag]) -> Result<BTreeMap<Key, Item>> {
    let mut known: HashMap<Headers, Interface> = HashMap::new();
    let mut history: BTreeMap<Key, Item> = BTreeMap::new();
    for (at, tag) in tags.iter().enumerate() {
        let Some(libploop) = file_of(clone, tag, "include/libploop.h")? else {
            continue;
        };
        let headers = Headers {
            libploop,
            libvolume: file_of(clone, tag, "include/libvolume.h")?.unwrap_or_default(),
        };
        if !known.contains_key(&headers) {
            let interface = headers
                .interface()
                .with_context(|| format!("the headers of {}", tag.name))?;
            known.insert(headers.clone(), interface);
        }
        for (key, text) in &known[&headers].0 {
            let item = history.entry(key.clone()).or_default();
            item.0.resize(tags.len(), None);
            item.0[at] = Some(text.clone());
        }
    }
    Ok(history)
}

/// The text of a file at a tag, if there is such a file.
fn file_of(clone: &Path, tag: &Tag, file: &str) -> Result<Option<String>> {
    let mut git = run::command("git");
    git.arg("-C").arg(clone).arg("show");
    let output = git
        .arg(format!("{}:{file}", tag.name))
        .output()
        .context("cannot run git")?;
    if !output.status.success() {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}

impl Item {
    /// Since when the item is there, and what it was before it was what it is.
    fn shown(&self, key: &Key, tags: &[&Tag]) -> String {
        let mut spans: Vec<(usize, usize, &str)> = Vec::new();
        for (at, text) in self.0.iter().enumerate() {
            let Some(text) = text else { continue };
            match spans.last_mut() {
                Some((_, end, last)) if *last == text && *end + 1 == at => *end = at,
                _ => spans.push((at, at, text)),
            }
        }
        let shown = spans.iter().map(|(begin, end, text)| {
            let since = tags[*begin].version();
            let span = match (*begin == 0, *end + 1 == tags.len()) {
                (true, true) => "always".to_owned(),
                (true, false) => format!("until {}", tags[*end].version()),
                (false, true) => format!("since {since}"),
                (false, false) => format!("{since} to {}", tags[*end].version()),
            };
            format!("{span}: {text}")
        });
        format!("{key}  {}", shown.collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(line: u32) -> (String, Interface) {
        let text = bindings_of(line).unwrap().committed().unwrap();
        let interface = Interface::parse(&text).unwrap();
        (text, interface)
    }

    #[test]
    fn equal_interfaces_have_no_difference() {
        for line in [1, 7, 9] {
            let (_, interface) = bound(line);
            assert!(interface.0.len() > 200, "{}", interface.0.len());
            let none = differences(&interface, &interface, &BTreeSet::new());
            assert_eq!(none, Vec::<String>::new());
            assert_eq!(line_of(&interface), line);
        }
    }

    #[test]
    fn what_is_changed_is_a_difference() {
        let (text, interface) = bound(7);
        for (from, to, difference) in [
            (
                "pub const SYSEXIT_CRYPT: ::core::ffi::c_int = 45;",
                "pub const SYSEXIT_CRYPT: ::core::ffi::c_int = 54;",
                "SYSEXIT_CRYPT: bound as 45, declared as 54",
            ),
            (
                "offset_of!(ploop_discard_stat, native_discard) - 32usize",
                "offset_of!(ploop_discard_stat, native_discard) - 36usize",
                "ploop_discard_stat.native_discard: bound as int at 32, declared as int at 36",
            ),
            (
                "size_of::<ploop_spec>() - 48usize",
                "size_of::<ploop_spec>() - 56usize",
                "struct ploop_spec: bound as 48 bytes, aligned to 8, declared as 56 bytes, aligned to 8",
            ),
            (
                "pub fn ploop_receive(dst: *const ",
                "pub fn ploop_receive(dst: *mut ",
                "ploop_receive(): bound as (const char *) -> int, declared as (char *) -> int",
            ),
            (
                "pub const PLOOP_ENC_WIPE: ::core::ffi::c_int = 2;",
                "",
                "PLOOP_ENC_WIPE: bound as 2, not declared",
            ),
            (
                "pub const PLOOP_ENC_WIPE: ::core::ffi::c_int = 2;",
                "pub const PLOOP_ENC_WIPE: ::core::ffi::c_int = 2; pub const PLOOP_ENC_KEEP: i32 = -4;",
                "PLOOP_ENC_KEEP: not bound, declared as -4",
            ),
            (
                "pub fn ploop_volume_delete(path: *const ",
                "pub fn ploop_volume_remove(path: *const ",
                "ploop_volume_delete(): bound as (const char *) -> int, not declared\nploop_volume_remove(): not bound, declared as (const char *) -> int",
            ),
        ] {
            assert_eq!(text.matches(from).count(), 1, "{from}");
            let header = Interface::parse(&text.replace(from, to)).unwrap();
            let found = differences(&interface, &header, &BTreeSet::new());
            assert_eq!(found.join("\n"), difference);
        }
    }

    #[test]
    fn undeclared_functions_are_no_difference() {
        let undeclared = undeclared().unwrap();
        let (_, interface) = bound(7);
        let mut header = interface.clone();
        header.0.retain(|key, _| !undeclared.contains(key));
        assert_eq!(interface.0.len() - header.0.len(), 7);
        assert!(differences(&interface, &header, &undeclared).is_empty());
        // One that a header declares, as 9 does, is compared.
        let key = Key::Function("ploop_copy_receiver".to_owned());
        header.0.insert(key, "() -> void".to_owned());
        assert_eq!(differences(&interface, &header, &undeclared).len(), 1);
    }

    #[test]
    fn tags_are_in_the_order_of_their_versions() {
        let mut tags: Vec<Tag> = [
            "v7.0.163.10",
            "v7.0.95",
            "v7.0.163.2",
            "v9.0.1",
            "ploop-1.15",
        ]
        .into_iter()
        .filter_map(Tag::parse)
        .collect();
        tags.sort();
        let shown: Vec<_> = tags.iter().map(|tag| (tag.version(), tag.line())).collect();
        let order = [
            ("1.15", 1),
            ("7.0.95", 7),
            ("7.0.163.2", 7),
            ("7.0.163.10", 7),
            ("9.0.1", 9),
        ];
        assert_eq!(shown, order);
        assert_eq!(Tag::parse("vz7-beta1-freeze"), None);
    }

    #[test]
    fn the_history_of_an_item_says_since_when_it_is_there() {
        let tags: Vec<Tag> = ["v7.0.1", "v7.0.2", "v7.0.3", "v7.0.4"]
            .into_iter()
            .filter_map(Tag::parse)
            .collect();
        let tags: Vec<&Tag> = tags.iter().collect();
        let key = Key::Member("s".to_owned(), "m".to_owned());
        for (texts, shown) in [
            (["a", "a", "a", "a"], "s.m  always: a"),
            (["", "", "a", "a"], "s.m  since 7.0.3: a"),
            (["a", "a", "b", "b"], "s.m  until 7.0.2: a; since 7.0.3: b"),
            (["", "a", "", "a"], "s.m  7.0.2 to 7.0.2: a; since 7.0.4: a"),
        ] {
            let item = Item(
                texts
                    .into_iter()
                    .map(|text| (!text.is_empty()).then(|| text.to_owned()))
                    .collect(),
            );
            assert_eq!(item.shown(&key, &tags), shown);
        }
    }
}
