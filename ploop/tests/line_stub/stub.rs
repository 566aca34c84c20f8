//! The stub's record and script: see `ci/stub/stub.h`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ploop::image::HeaderFlags;
use ploop::{FormatVersion, Guid, Ploop};

use crate::fixture::disk::{CLUSTER, SIZE};
use crate::fixture::harness::Need;
use crate::fixture::mounts;
use crate::fixture::written_image::{self, Delta, describe};

/// What each test needs: one record and one script are there for all.
pub(crate) const NEEDS: &[Need] = &[Need::Stub, Need::Root, Need::Alone];

/// What those need that show a device.
pub(crate) const NEEDS_DEVICE: &[Need] = &[Need::Stub, Need::Root, Need::Mounts, Need::Alone];

static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// Where the stub finds its script and leaves its record. Called before there are threads.
pub(crate) fn use_directory(directory: &Path) {
    DIRECTORY.set(directory.to_owned()).unwrap();
    for (name, file) in [
        ("PLOOP_STUB_RECORD", "record"),
        ("PLOOP_STUB_SCRIPT", "script"),
    ] {
        // SAFETY: no other thread is there to read the environment.
        unsafe { std::env::set_var(name, directory.join(file)) };
    }
}

fn file(name: &str) -> PathBuf {
    DIRECTORY.get().unwrap().join(name)
}

/// Begins anew: the record is empty from here on.
pub(crate) fn script(lines: &str) {
    fs::write(file("record"), "").unwrap();
    // A new file, so that the stub counts anew.
    let _ = fs::remove_file(file("script"));
    fs::write(file("script"), lines).unwrap();
}

/// A call of a function.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) function: String,
    values: BTreeMap<String, Value>,
    /// What it returned; `None` where it did not return.
    pub(crate) code: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
    /// The path that the handle was opened with.
    Handle(PathBuf),
    Pointer,
    Null,
}

impl Call {
    #[track_caller]
    fn value(&self, name: &str) -> &Value {
        let value = self.values.get(name);
        value.unwrap_or_else(|| panic!("{} has no {name}: {self:?}", self.function))
    }

    #[track_caller]
    pub(crate) fn number(&self, name: &str) -> i64 {
        match self.value(name) {
            Value::Number(number) => *number,
            other => panic!("{}: {name} is {other:?}", self.function),
        }
    }

    /// `None` for NULL.
    #[track_caller]
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.value(name) {
            Value::Text(text) => Some(text),
            Value::Null => None,
            other => panic!("{}: {name} is {other:?}", self.function),
        }
    }

    #[track_caller]
    pub(crate) fn bytes(&self, name: &str) -> &[u8] {
        match self.value(name) {
            Value::Bytes(bytes) => bytes,
            other => panic!("{}: {name} is {other:?}", self.function),
        }
    }

    #[track_caller]
    pub(crate) fn handle(&self) -> &Path {
        match self.value("di") {
            Value::Handle(path) => path,
            other => panic!("{}: the handle is {other:?}", self.function),
        }
    }

    /// The component name of the handle.
    pub(crate) fn component(&self) -> Option<&str> {
        match self.values.get("di.component") {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn is_null(&self, name: &str) -> bool {
        *self.value(name) == Value::Null
    }

    /// The members of a structure that are not named here have to be 0 or NULL, as C expects of what it does not know.
    #[track_caller]
    pub(crate) fn assert_rest_is_zero(&self, structure: &str, named: &[&str]) {
        let prefix = format!("{structure}.");
        for (name, value) in &self.values {
            let Some(member) = name.strip_prefix(&prefix) else {
                continue;
            };
            let is_zero = match value {
                Value::Number(number) => *number == 0,
                Value::Bytes(bytes) => bytes.iter().all(|byte| *byte == 0),
                Value::Null => true,
                Value::Text(_) | Value::Pointer | Value::Handle(_) => false,
            };
            assert!(
                is_zero || named.contains(&member),
                "{}: {name} is {value:?}",
                self.function
            );
        }
    }
}

/// What accompanies each call.
const OTHERS: [&str; 4] = [
    "ploop_get_last_error",
    "ploop_set_verbose_level",
    "ploop_set_log_level",
    "ploop_set_log_file",
];

/// The calls since [`script`], without those that accompany each.
pub(crate) fn calls() -> Vec<Call> {
    let text = fs::read_to_string(file("record")).unwrap();
    let mut calls: Vec<Call> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split('\t').collect();
        match words.as_slice() {
            ["call", function] => {
                open.push(calls.len());
                calls.push(Call {
                    function: (*function).to_owned(),
                    values: BTreeMap::new(),
                    code: None,
                });
            }
            ["end", function, code] => {
                let at = open.pop().expect("an end without a beginning");
                assert_eq!(calls[at].function, *function, "{text}");
                calls[at].code = Some(code.parse().unwrap());
            }
            [name, kind, value] => {
                let at = *open.last().expect("a value without a call");
                let value = Value::parse(kind, value);
                calls[at].values.insert((*name).to_owned(), value);
            }
            _ => panic!("{line}"),
        }
    }
    calls.retain(|call| !OTHERS.contains(&&*call.function));
    calls
}

impl Value {
    fn parse(kind: &str, value: &str) -> Value {
        let bytes = || -> Vec<u8> {
            let digit = |at| u8::from_str_radix(&value[at..at + 2], 16).unwrap();
            (0..value.len()).step_by(2).map(digit).collect()
        };
        let text = || String::from_utf8(bytes()).unwrap();
        match kind {
            "number" => Value::Number(value.parse().unwrap()),
            "text" => Value::Text(text()),
            "bytes" => Value::Bytes(bytes()),
            "handle" => Value::Handle(text().into()),
            "pointer" => Value::Pointer,
            "null" => Value::Null,
            other => panic!("{other}"),
        }
    }
}

/// The one call of a function since [`script`].
#[track_caller]
pub(crate) fn call(function: &str) -> Call {
    let mut found = calls_of(function);
    assert_eq!(found.len(), 1, "{function}: {found:?}");
    found.remove(0)
}

pub(crate) fn calls_of(function: &str) -> Vec<Call> {
    let mut found = calls();
    found.retain(|call| call.function == function);
    found
}

/// The names of the functions that were called, in order, but for what makes and frees a handle.
pub(crate) fn functions() -> Vec<String> {
    let names = calls().into_iter().map(|call| call.function);
    names
        .filter(|name| !["ploop_open_dd", "ploop_close_dd"].contains(&&**name))
        .collect()
}

/// That no function was called since [`script`].
#[track_caller]
pub(crate) fn assert_not_called() {
    assert_eq!(functions(), [""; 0]);
}

/// An image whose files are written without libploop: a chain with as many snapshots, each delta with a cluster of its
/// own.
pub(crate) fn image(
    directory: &Path,
    version: FormatVersion,
    snapshots: usize,
) -> (Ploop, Vec<Guid>) {
    let names: Vec<String> = (0..=snapshots)
        .map(|level| format!("root.hds.{level}"))
        .collect();
    for (level, name) in names.iter().enumerate() {
        delta(version, level).write(&directory.join(name));
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let path = describe(directory, &names, SIZE.bytes(), CLUSTER, false);
    let guids = (0..snapshots).map(written_image::snapshot).collect();
    (Ploop::open(path).unwrap(), guids)
}

/// The delta of a level of [`image`].
pub(crate) fn delta(version: FormatVersion, level: usize) -> Delta {
    let mut delta = Delta::new(version, CLUSTER, SIZE.bytes());
    let level = u8::try_from(level).unwrap();
    delta.clusters.push((u32::from(level), level + 1));
    let flags = delta.header().flags;
    assert!(!flags.contains(HeaderFlags::EMPTY));
    delta
}

/// Runs `body` where sysfs shows one device, `/dev/ploop7`, that runs with the image.
pub(crate) fn with_device<T: Send>(
    mut image: Ploop,
    body: impl FnOnce(&mut Ploop) -> T + Send,
) -> T {
    let descriptor = image.descriptor().unwrap();
    mounts::private(move || {
        let component = image.component().map_or("", |component| component.as_str());
        let block = Path::new("/sys/block");
        mounts::tmpfs(block, 1 << 20);
        let device = block.join("ploop7");
        let attribute = |name: &str, text: String| {
            let path = device.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text + "\n").unwrap();
        };
        let chain = descriptor.chain(descriptor.top);
        for (level, delta) in chain.iter().enumerate() {
            let ro = u8::from(level + 1 < chain.len());
            let delta = fs::canonicalize(&delta.file).unwrap();
            attribute(
                &format!("pdelta/{level}/image"),
                delta.to_str().unwrap().to_owned(),
            );
            attribute(&format!("pdelta/{level}/ro"), ro.to_string());
        }
        attribute("pstate/top", (chain.len() - 1).to_string());
        attribute("pstate/running", "1".to_owned());
        attribute("pstate/cookie", component.to_owned());
        let top = format!("pdelta/{}/format", chain.len() - 1);
        attribute(&top, "ploop1".to_owned());
        attribute("pstate/block_size", (CLUSTER / 512).to_string());
        // Its file system is, for want of another, one that every process has mounted.
        let numbers = fs::metadata("/proc").unwrap().dev();
        let (major, minor) = (libc::major(numbers), libc::minor(numbers));
        attribute("dev", format!("{major}:{minor}"));
        body(&mut image)
    })
}
