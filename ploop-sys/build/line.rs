//! The lines of libploop: which versions the bindings fit, and how a file tells its version.

/// A line of libploop: versions with one soname, whose structures the same bindings fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    /// For `DEP_PLOOP_ABI` and the cfg `ploop_abi`.
    pub(crate) abi: &'static str,
    pub(crate) soname: &'static str,
    /// The version whose interface the committed bindings were made from.
    pub(crate) bound_version: &'static str,
    /// What is bound here and not in every line, for `DEP_PLOOP_CAPABILITIES`.
    pub(crate) capabilities: &'static [&'static str],
    /// Versions, and functions that were new in them. The first is the oldest version that the bindings fit.
    functions: &'static [(&'static str, &'static str)],
    /// The first version that does not belong to the line.
    end: &'static str,
    /// What is said of a version before the oldest.
    before: &'static str,
}

pub(crate) const LINES: [Line; 2] = [
    Line {
        abi: "v1",
        soname: "libploop.so.1",
        bound_version: "1.15",
        capabilities: &["copy_streams", "merge_ranges"],
        functions: &[
            ("1.12", "ploop_copy_receive"),
            ("1.13", "ploop_set_max_delta_size"),
            ("1.15", "ploop_get_base_delta_fname"),
        ],
        end: "2",
        before: "1.12 brought functions that are bound here.",
    },
    Line {
        abi: "v7",
        soname: "libploop.so.7",
        bound_version: "7.0.280",
        capabilities: &[
            "bitmaps",
            "clones",
            "copy_iterations",
            "defragmentation",
            "encryption",
            "suspend",
            "tracking",
            "umount_timeout",
            "volumes",
        ],
        functions: &[
            ("7.0.95", "ploop_volume_create"),
            ("7.0.104", "ploop_volume_get_tree"),
            ("7.0.106", "ploop_init_image"),
            ("7.0.114", "ploop_clone_dd"),
            ("7.0.115", "ploop_get_used_bitmap_from_image"),
            ("7.0.116", "ploop_get_tracking_bitmap_from_image"),
            ("7.0.138", "ploop_get_fs_info"),
            ("7.0.163.2", "ploop_image_defrag"),
            ("7.0.199", "ploop_get_devname"),
            ("7.0.226", "ploop_suspend_device"),
            ("7.0.277.1", "ploop_store_statfs_info"),
        ],
        end: "7.1",
        before: "Before 7.0.95 the structures that the library allocates are smaller, and a program would read members \
                 that are not there.",
    },
];

impl Line {
    /// The line whose shared libraries have this name.
    pub(crate) fn of_soname(soname: &str) -> Result<Line, String> {
        let line = LINES.into_iter().find(|line| line.soname == soname);
        line.ok_or_else(|| match soname {
            "libploop.so.8" | "libploop.so.9" => refusal(soname, NOT_YET),
            _ => refusal(soname, UNKNOWN),
        })
    }

    /// The line that a version belongs to, also a version that is too old.
    pub(crate) fn of_version(version: &str) -> Result<Line, String> {
        let line = LINES.into_iter().find(|line| line.includes(version));
        line.ok_or_else(|| {
            let found = format!("libploop {version}");
            match numbers(version).first() {
                Some(8 | 9) => refusal(&found, NOT_YET),
                _ => refusal(&found, UNKNOWN),
            }
        })
    }

    /// The line of a static library, which has no soname, by functions that only some lines have; `None` where it has
    /// none of them. They are not those of shared libraries: the objects of line 7 have `ploop_dm_message` and
    /// `ploop_store_diskdescriptor`, and the library does not export them.
    pub(crate) fn of_functions(has: impl Fn(&str) -> bool) -> Result<Option<Line>, String> {
        // Since 8.0.59.
        if has("ploop_tg_init") {
            return Err(refusal("libploop 8 or 9", NOT_YET));
        }
        let [line_1, line_7] = LINES;
        Ok(if has("ploop_set_umount_timeout") {
            Some(line_7)
        } else if has("ploop_store_diskdescriptor") {
            Some(line_1)
        } else {
            None
        })
    }

    /// The major number.
    pub(crate) fn major(&self) -> u32 {
        numbers(self.oldest()).first().copied().unwrap_or_default()
    }

    fn oldest(&self) -> &'static str {
        self.functions[0].0
    }

    /// Whether a version is of the line; it may be too old.
    pub(crate) fn includes(&self, version: &str) -> bool {
        let version = numbers(version);
        version >= vec![self.major()] && version < numbers(self.end)
    }

    /// Refuses a version of the line that is too old.
    pub(crate) fn require(&self, version: &str) -> Result<(), String> {
        if numbers(version) >= numbers(self.oldest()) {
            return Ok(());
        }
        let found = format!("libploop {version} ({})", self.soname);
        Err(refusal(&found, self.before))
    }

    /// The newest version of which a library has a new function: the library is not older. An error says that it is
    /// older than what the bindings fit.
    pub(crate) fn version_by_functions(
        &self,
        has: impl Fn(&str) -> bool,
    ) -> Result<&'static str, String> {
        let mut newest_first = self.functions.iter().rev();
        let found = newest_first.find(|(_, function)| has(function));
        found.map(|(version, _)| *version).ok_or_else(|| {
            let found = format!("a {} older than {}", self.soname, self.oldest());
            refusal(&found, self.before)
        })
    }
}

const NOT_YET: &str =
    "Lines 8 and 9 are known, but this version of ploop-sys does not support them yet.";
const UNKNOWN: &str = "This version of ploop-sys does not know it.";

/// The message for a library that the bindings do not fit.
fn refusal(found: &str, reason: &str) -> String {
    format!(
        "{found} was found. {reason}\n\
         ploop-sys needs libploop {}. If one of these is installed elsewhere, name its directory in PLOOP_LIB_DIR.",
        supported()
    )
}

/// The versions that the bindings fit.
pub(crate) fn supported() -> String {
    let ranges = LINES.map(|line| {
        format!(
            "{} and later, below {} ({})",
            line.oldest(),
            line.end,
            line.soname
        )
    });
    ranges.join(", or ")
}

/// The numbers of a version: `7.0.95` is less than `7.0.163.2`.
pub(crate) fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map_while(|n| n.parse().ok()).collect()
}
