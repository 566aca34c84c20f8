//! Finds the library and its header, and checks the version.

use crate::{env, soname};
use std::path::{Path, PathBuf};

/// A line of libploop: versions with one soname, whose structures the same bindings fit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    /// For `DEP_PLOOP_ABI` and the cfg `ploop_abi`.
    pub(crate) abi: &'static str,
    pub(crate) soname: &'static str,
    /// The version whose interface the committed bindings were made from.
    pub(crate) bound_version: &'static str,
    /// The oldest version that the bindings fit.
    oldest: &'static str,
    /// The first version that does not belong to the line.
    end: &'static str,
}

pub(crate) const LINES: [Line; 2] = [
    Line {
        abi: "v1",
        soname: "libploop.so.1",
        bound_version: "1.15",
        oldest: "1.12",
        end: "2",
    },
    Line {
        abi: "v7",
        soname: "libploop.so.7",
        bound_version: "7.0.280",
        oldest: "7.0.95",
        end: "7.1",
    },
];

/// What was found.
pub(crate) struct Library {
    pub(crate) line: Line,
    /// From the .pc file or from the file name; if there is neither, the version of the bindings.
    pub(crate) version: String,
    /// The directory of `libploop.so` or `libploop.a`; `None` where the linker is to find it.
    pub(crate) lib_dir: Option<PathBuf>,
    /// The directory that holds `ploop/libploop.h`, if it was found.
    pub(crate) include: Option<PathBuf>,
    /// Whether the linker must be told `lib_dir`.
    pub(crate) search: bool,
}

/// Finds the library by the user's variables, or else by pkg-config.
pub(crate) fn find() -> Result<Library, String> {
    let lib_dir = env::target_var("PLOOP_LIB_DIR").map(PathBuf::from);
    let include = env::target_var("PLOOP_INCLUDE_DIR").map(PathBuf::from);
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
        Some(dir) => library_in_directory(dir)?,
        None if no_pkg_config => Library {
            line: LINES[0],
            version: LINES[0].bound_version.to_owned(),
            lib_dir: None,
            include: None,
            search: false,
        },
        None => library_by_pkg_config()?,
    };
    if include.is_some() {
        library.include = include;
    }
    Ok(library)
}

/// The library in the directory that the user has set. There may be no .pc file; then the file name has the version.
fn library_in_directory(dir: PathBuf) -> Result<Library, String> {
    let shared = dir.join("libploop.so");
    if !shared.exists() && !dir.join("libploop.a").exists() {
        return Err(format!(
            "PLOOP_LIB_DIR is {}, but there is neither libploop.so nor libploop.a in it",
            dir.display()
        ));
    }
    let version = version_of_pc_file(&dir.join("pkgconfig/ploop.pc"))
        .or_else(|| version_of_file_name(&shared));
    let line = if shared.exists() {
        line_of_file(&shared)?
    } else {
        version.as_deref().map_or(Ok(LINES[0]), line_of_version)?
    };
    let version = version.unwrap_or_else(|| line.bound_version.to_owned());
    require_in_range(line, &version)?;
    Ok(Library {
        line,
        include: include_near(&dir),
        version,
        lib_dir: Some(dir),
        search: true,
    })
}

fn library_by_pkg_config() -> Result<Library, String> {
    let found = query_pkg_config(true).map_err(|error| not_found(&error))?;
    let lib_dir = found.link_paths.into_iter().next();
    let shared = lib_dir.as_ref().map(|dir| dir.join("libploop.so"));
    let line = match shared.filter(|file| file.exists()) {
        Some(file) => line_of_file(&file)?,
        None => line_of_version(&found.version)?,
    };
    require_in_range(line, &found.version)?;
    // The linker is not told of a system directory: before the others, it would hide libraries that the user has put
    // there.
    let search = query_pkg_config(false).is_ok_and(|found| !found.link_paths.is_empty());
    Ok(Library {
        line,
        version: found.version,
        include: lib_dir.as_deref().and_then(include_near),
        lib_dir,
        search,
    })
}

fn query_pkg_config(system_dirs_too: bool) -> Result<pkg_config::Library, pkg_config::Error> {
    // Without cflags and static: for either, pkg-config follows the private requirement of ploop.pc, libxml-2.0, and
    // fails where only libploop-dev is installed. The header needs no cflags, and `link` knows what a static library
    // needs. `link` also tells Cargo.
    pkg_config::Config::new()
        .probe_cflags(false)
        .statik(false)
        .print_system_libs(system_dirs_too)
        .cargo_metadata(false)
        .probe("ploop")
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

/// The line of the file that is linked: its soname decides, whatever the version strings beside it say.
fn line_of_file(file: &Path) -> Result<Line, String> {
    let soname = soname::of(file)?;
    LINES
        .into_iter()
        .find(|line| line.soname == soname)
        .ok_or_else(|| not_supported(&soname))
}

/// The line of a version, where there is no file to look into.
fn line_of_version(version: &str) -> Result<Line, String> {
    LINES
        .into_iter()
        .find(|line| line.holds(version))
        .ok_or_else(|| not_supported(version))
}

fn require_in_range(line: Line, version: &str) -> Result<(), String> {
    if line.holds(version) {
        Ok(())
    } else {
        Err(not_supported(version))
    }
}

impl Line {
    /// The major number of the soname.
    #[cfg(feature = "bindgen")]
    pub(crate) fn number(&self) -> u32 {
        self.abi.trim_start_matches('v').parse().unwrap_or(1)
    }

    fn holds(&self, version: &str) -> bool {
        let version = numbers(version);
        version >= numbers(self.oldest) && version < numbers(self.end)
    }
}

fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map_while(|n| n.parse().ok()).collect()
}

fn supported() -> String {
    let ranges = LINES.map(|line| {
        format!(
            "{} and later, below {} ({})",
            line.oldest, line.end, line.soname
        )
    });
    ranges.join(", or ")
}

fn not_supported(found: &str) -> String {
    format!(
        "libploop {found} was found, but these bindings are for libploop {}: the structures of other versions differ in \
         size. If a fitting one is installed elsewhere, name its directory in PLOOP_LIB_DIR.",
        supported()
    )
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
        supported()
    )
}
