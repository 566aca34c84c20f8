//! Finds the library and its header, and tells its line.

use crate::archive::Archive;
use crate::line::{self, Line};
use crate::shared_library::SharedLibrary;
use crate::{compiler, env};
use std::fs;
use std::path::{Path, PathBuf};

/// What was found.
pub(crate) struct Library {
    pub(crate) line: Line,
    /// As its .pc file or its file name says; else the newest version whose functions it has. `None` if nothing is known.
    pub(crate) version: Option<String>,
    pub(crate) file: LibraryFile,
    /// The directory that holds `ploop/libploop.h`, if it was found.
    pub(crate) include: Option<PathBuf>,
    /// Whether the linker must be told the directory of the file.
    pub(crate) search: bool,
}

/// The file that will be linked.
pub(crate) enum LibraryFile {
    Shared(PathBuf),
    Static(PathBuf, Archive),
    /// The linker is to find a shared one.
    Unknown,
}

impl LibraryFile {
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            LibraryFile::Shared(file) | LibraryFile::Static(file, _) => Some(file),
            LibraryFile::Unknown => None,
        }
    }

    fn has(&self, shared: Option<&SharedLibrary>, function: &str) -> bool {
        match self {
            LibraryFile::Static(_, archive) => archive.has(function),
            _ => shared.is_some_and(|library| library.has(function)),
        }
    }
}

/// Finds the library by the user's variables, or else by pkg-config.
pub(crate) fn find() -> Result<Library, String> {
    let lib_dir = directory("PLOOP_LIB_DIR")?;
    let include = directory("PLOOP_INCLUDE_DIR")?;
    let no_pkg_config = env::switch("PLOOP_NO_PKG_CONFIG").unwrap_or(false);

    if let Some(dir) = &include {
        if !dir.join("ploop/libploop.h").is_file() {
            return Err(format!(
                "PLOOP_INCLUDE_DIR is {}, but there is no ploop/libploop.h in it",
                dir.display()
            ));
        }
    }
    let mut library = match lib_dir {
        Some(dir) => library_in_directory(&dir)?,
        None if no_pkg_config => library_of_compiler()?,
        None => library_by_pkg_config()?,
    };
    if include.is_some() {
        library.include = include;
    }
    Ok(library)
}

/// A directory that the user has set.
fn directory(variable: &str) -> Result<Option<PathBuf>, String> {
    match env::target_var(variable).map(PathBuf::from) {
        // This runs in another directory than Cargo, and so does the linker.
        Some(dir) if dir.is_relative() => Err(format!(
            "{variable} is {}: give the whole path. (In .cargo/config.toml: {variable} = {{ value = \"{}\", relative = \
             true }}, from the directory that holds .cargo.)",
            dir.display(),
            dir.display()
        )),
        dir => Ok(dir),
    }
}

/// The library in the directory that the user has set. There may be no .pc file.
fn library_in_directory(dir: &Path) -> Result<Library, String> {
    let file = file_in(dir)?.ok_or_else(|| {
        let shown = dir.display();
        let names = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        match names.find(|name| name.starts_with("libploop.so.")) {
            Some(name) => format!(
                "PLOOP_LIB_DIR is {shown}, and the linker does not look for {name} in it: make the link that a development package \
                 has, by `ln -s {name} {shown}/libploop.so`"
            ),
            None if !dir.is_dir() => format!("PLOOP_LIB_DIR is {shown}, and there is no such directory"),
            None => format!(
                "PLOOP_LIB_DIR is {shown}, but there is neither libploop.so nor libploop.a in it"
            ),
        }
    })?;
    let pc_file = dir.join("pkgconfig/ploop.pc");
    let said = version_of_pc_file(&pc_file);
    Library::new(file, said, include_near(dir), true)
}

/// The library that the compiler finds, as the linker will.
fn library_of_compiler() -> Result<Library, String> {
    if wants_static() == Some(true) {
        let Some(file) = compiler::find("libploop.a") else {
            return Err(
                "static linking was asked for without pkg-config, but rustc itself opens libploop.a and has to be \
                 told where it is: name its directory in PLOOP_LIB_DIR"
                    .to_owned(),
            );
        };
        let archive = Archive::read(&file)?;
        return Library::new(LibraryFile::Static(file, archive), None, None, true);
    }
    match compiler::find("libploop.so") {
        Some(file) => {
            let include = file.parent().and_then(include_near);
            Library::new(LibraryFile::Shared(file), None, include, false)
        }
        None => {
            let line = line::LINES[0];
            println!(
                "cargo::warning=PLOOP_NO_PKG_CONFIG is set, and the compiler does not find libploop.so: it is taken \
                 for a {}. If it is another, name its directory in PLOOP_LIB_DIR.",
                line.soname
            );
            Ok(Library {
                line,
                version: None,
                file: LibraryFile::Unknown,
                include: None,
                search: false,
            })
        }
    }
}

fn library_by_pkg_config() -> Result<Library, String> {
    let found = query_pkg_config(true).map_err(|error| not_found(&error))?;
    let pc_file = variable("pcfiledir").map(|dir| PathBuf::from(dir).join("ploop.pc"));
    if let Some(file) = pc_file.filter(|file| file.is_file()) {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let dirs = directories(found.link_paths);
    let mut file = None;
    for dir in &dirs {
        file = file_in(dir)?;
        if file.is_some() {
            break;
        }
    }
    let file = match file {
        Some(file) => file,
        None if dirs.is_empty() => {
            compiler::find("libploop.so").map_or(LibraryFile::Unknown, LibraryFile::Shared)
        }
        None => {
            let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
            return Err(format!(
                "ploop.pc names {} as the directory of libploop {}, but there is neither libploop.so nor libploop.a in \
                 it: the linker would take another libploop. Name the right directory in PLOOP_LIB_DIR.",
                dirs.join(", "),
                found.version
            ));
        }
    };
    let include = file.path().and_then(Path::parent).and_then(include_near);
    // The linker is not told of a system directory: before the others, it would hide libraries that the user has put
    // there.
    let search = query_pkg_config(false).is_ok_and(|found| !found.link_paths.is_empty());
    Library::new(file, Some(found.version), include, search)
}

impl Library {
    /// The library of a file: the file itself tells the line, whatever is said beside it.
    fn new(
        file: LibraryFile,
        said_version: Option<String>,
        include: Option<PathBuf>,
        search: bool,
    ) -> Result<Library, String> {
        let shared = match &file {
            LibraryFile::Shared(path) => Some(SharedLibrary::read(path)?),
            _ => None,
        };
        let line = match (&file, &shared) {
            (_, Some(library)) => Line::of_soname(&library.soname)?,
            (LibraryFile::Static(path, archive), _) => {
                let by_version = said_version.as_deref().map(Line::of_version).transpose()?;
                match (Line::of_functions(|name| archive.has(name))?, by_version) {
                    (Some(line), None) | (None, Some(line)) => line,
                    (Some(line), Some(other)) if line == other => line,
                    (Some(line), Some(other)) => {
                        return Err(format!(
                            "{} is of the line of {}, but ploop.pc is of that of {}: name the directory of a libploop \
                             with a ploop.pc of its own in PLOOP_LIB_DIR",
                            path.display(),
                            line.soname,
                            other.soname
                        ));
                    }
                    (None, None) => {
                        return Err(format!("{} is no libploop that is known", path.display()));
                    }
                }
            }
            (_, None) => match &said_version {
                Some(version) => Line::of_version(version)?,
                None => line::LINES[0],
            },
        };
        let named = match &file {
            LibraryFile::Shared(path) => version_of_file_name(path),
            _ => None,
        };
        // A .pc file of another line says nothing about this file.
        let mut said = said_version.into_iter().chain(named);
        let version = match said.find(|version| line.includes(version)) {
            Some(version) => {
                line.require(&version)?;
                Some(version)
            }
            None if file.path().is_none() => None,
            None => {
                let has = |function: &str| file.has(shared.as_ref(), function);
                Some(line.version_by_functions(has)?.to_owned())
            }
        };
        if let Some(path) = file.path() {
            println!("cargo::rerun-if-changed={}", path.display());
            // `libploop.so` is a link: when another version is installed, the file behind it is another.
            if let Some(target) = path.canonicalize().ok().filter(|target| target != path) {
                println!("cargo::rerun-if-changed={}", target.display());
            }
        }
        Ok(Library {
            line,
            version,
            file,
            include,
            search,
        })
    }
}

/// Whether a static library was asked for: by the variable, or by the feature. The variable wins: any crate of the tree
/// can switch on the feature, but only the user sets the variable.
pub(crate) fn wants_static() -> Option<bool> {
    env::switch("PLOOP_STATIC").or(cfg!(feature = "static").then_some(true))
}

/// The file of a directory that will be linked, if there is one.
fn file_in(dir: &Path) -> Result<Option<LibraryFile>, String> {
    let (shared, archive) = (dir.join("libploop.so"), dir.join("libploop.a"));
    let is_static = match wants_static() {
        Some(true) if !archive.exists() && shared.exists() => {
            return Err(format!(
                "static linking was asked for, but there is no libploop.a in {} (Debian, Ubuntu: package libploop-dev; \
                 RHEL-like: ploop-devel)",
                dir.display()
            ));
        }
        Some(false) if !shared.exists() && archive.exists() => {
            return Err(format!(
                "PLOOP_STATIC asks for a shared library, but in {} there is libploop.a alone, and no libploop.so",
                dir.display()
            ));
        }
        Some(wanted) => wanted,
        None => !shared.exists(),
    };
    if is_static && archive.exists() {
        let contents = Archive::read(&archive)?;
        return Ok(Some(LibraryFile::Static(archive, contents)));
    }
    Ok(shared.exists().then_some(LibraryFile::Shared(shared)))
}

/// The directories of the library. pkg-config writes one with a space in its name so that it looks like two.
fn directories(of_pkg_config: Vec<PathBuf>) -> Vec<PathBuf> {
    match variable("libdir").filter(|libdir| libdir.contains(' ')) {
        None => of_pkg_config,
        Some(libdir) => {
            let inside = env::var("PKG_CONFIG_SYSROOT_DIR").map(|root| {
                let mut path = root;
                path.push(&libdir);
                PathBuf::from(path)
            });
            inside.into_iter().chain([libdir.into()]).collect()
        }
    }
}

/// With a version: for `ploop` alone the crate would look at our own variables, and take PLOOP_STATIC=0 and
/// PLOOP_NO_PKG_CONFIG=0 for a yes.
const PACKAGE: &str = "ploop >= 1";

fn query_pkg_config(system_dirs_too: bool) -> Result<pkg_config::Library, pkg_config::Error> {
    // Without cflags and static: for either, pkg-config follows the private requirement of ploop.pc, libxml-2.0, and
    // fails where only libploop-dev is installed. The header needs no cflags, and `link` knows what a static library
    // needs. `link` also tells Cargo.
    pkg_config::Config::new()
        .probe_cflags(false)
        .statik(false)
        .print_system_libs(system_dirs_too)
        .cargo_metadata(false)
        .probe(PACKAGE)
}

/// A variable of ploop.pc. pkg-config puts a backslash before a space.
fn variable(name: &str) -> Option<String> {
    let text = pkg_config::get_variable(PACKAGE, name).ok()?;
    (!text.is_empty()).then(|| text.replace("\\ ", " "))
}

/// The directory of the header: `include` beside `lib` or `lib/<multiarch>`.
fn include_near(lib_dir: &Path) -> Option<PathBuf> {
    lib_dir
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("include"))
        .find(|dir| dir.join("ploop/libploop.h").is_file())
}

fn version_of_pc_file(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    println!("cargo::rerun-if-changed={}", file.display());
    let line = text.lines().find_map(|l| l.strip_prefix("Version:"))?;
    Some(line.trim().to_owned())
}

/// The version in the name of the file to which `libploop.so` links, such as `libploop.so.1.15`.
fn version_of_file_name(shared: &Path) -> Option<String> {
    let file = shared.canonicalize().ok()?;
    let name = file.file_name()?.to_str()?;
    let version = name.strip_prefix("libploop.so.")?;
    // The major number alone is not enough.
    version.contains('.').then(|| version.to_owned())
}

fn not_found(error: &pkg_config::Error) -> String {
    let cause = match error {
        pkg_config::Error::CrossCompilation => {
            "pkg-config is not set up for this target: set PKG_CONFIG_SYSROOT_DIR or a \
             target's own PKG_CONFIG, or name the library's directory in PLOOP_LIB_DIR"
                .to_owned()
        }
        pkg_config::Error::Command { cause, .. } => {
            format!("pkg-config cannot be run ({cause}): install package pkg-config")
        }
        pkg_config::Error::Failure { output, .. }
        | pkg_config::Error::ProbeFailure { output, .. } => {
            let words = String::from_utf8_lossy(&output.stderr);
            let first = words.lines().find(|l| !l.trim().is_empty());
            first
                .unwrap_or("pkg-config found no ploop.pc")
                .trim()
                .to_owned()
        }
        other => other.to_string(),
    };
    format!(
        "libploop was not found: {cause}\n\
         ploop-sys needs libploop {}, with its pkg-config file ploop.pc:\n\
         \x20 Debian, Ubuntu:  apt-get install libploop-dev pkg-config\n\
         \x20 RHEL-like:       dnf install ploop-devel pkgconf-pkg-config (from the OpenVZ repositories)\n\
         If it is installed elsewhere, name the directory of ploop.pc in PKG_CONFIG_PATH, or that of libploop.so in \
         PLOOP_LIB_DIR (and that of ploop/libploop.h in PLOOP_INCLUDE_DIR); each may carry the target as prefix. \
         PLOOP_STATIC=1 links libploop.a, PLOOP_NO_PKG_CONFIG=1 leaves finding it to the linker.\n\
         To only read images, crate `ploop` with `default-features = false, features = [\"image\"]` needs no C library.",
        line::supported()
    )
}
