//! The findings of a check, of which a limited number of each kind is listed.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::image::report::{Finding, Issue, Severity};
use crate::{Error, ErrorKind};

/// How many findings of one kind about one file are listed. The rest is counted.
const LISTED: u64 = 16;

/// Findings. There may be as many as a table has entries, so a limited number of each kind is listed.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) list: Vec<Finding>,
    counts: HashMap<(Issue, Option<PathBuf>), (Severity, u64)>,
}

impl Findings {
    pub(super) fn add(
        &mut self,
        severity: Severity,
        issue: Issue,
        file: Option<&Path>,
        offset: Option<u64>,
        message: impl Into<String>,
    ) {
        let file = file.map(Path::to_owned);
        let (_, count) = self
            .counts
            .entry((issue, file.clone()))
            .or_insert((severity, 0));
        *count += 1;
        if *count <= LISTED {
            self.list.push(Finding {
                severity,
                issue,
                file,
                offset,
                message: message.into(),
            });
        }
    }

    pub(super) fn add_error(&mut self, issue: Issue, error: &Error) {
        self.add(
            Severity::Error,
            issue,
            error.path(),
            error.offset(),
            error.reason(),
        );
    }

    pub(super) fn add_unreadable(&mut self, error: &Error) {
        let issue = match error.kind() {
            ErrorKind::NotFound => Issue::Missing,
            ErrorKind::Corrupt => Issue::Header,
            _ => Issue::Unreadable,
        };
        self.add_error(issue, error);
    }

    pub(super) fn has_errors(&self) -> bool {
        self.list.iter().any(|it| it.severity == Severity::Error)
    }

    pub(super) fn finish(mut self) -> Vec<Finding> {
        let more: BTreeMap<_, _> = self
            .counts
            .into_iter()
            .filter(|(_, (_, count))| *count > LISTED)
            .map(|((issue, file), more)| ((file, format!("{issue:?}")), (issue, more)))
            .collect();
        for ((file, _), (issue, (severity, count))) in more {
            self.list.push(Finding {
                severity,
                issue,
                file,
                offset: None,
                message: format!("there are {} more of these", count - LISTED),
            });
        }
        self.list
    }
}
