//! What the tests said, counted.

use std::collections::{BTreeMap, BTreeSet};

/// The tests of one or more programs.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// Those that `cargo test` calls ignored, by its summary lines.
    pub(crate) skipped: usize,
    pub(crate) filtered: usize,
    /// The skipped tests by reason; one that is skipped in two runs is here once.
    pub(crate) reasons: BTreeMap<String, Vec<String>>,
    /// The tests that ran.
    pub(crate) ran: BTreeSet<String>,
    /// The tests that failed.
    pub(crate) failures: Vec<String>,
    /// How many were skipped, and ran in a run that was added.
    pub(crate) made_up: usize,
}

impl Report {
    /// Of one program's output.
    pub(crate) fn of<'a>(lines: impl IntoIterator<Item = &'a str>) -> Report {
        let mut report = Report::default();
        lines.into_iter().for_each(|line| report.line(line));
        report
    }

    /// Adds what another program said.
    pub(crate) fn extend(&mut self, other: Report) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.filtered += other.filtered;
        self.skipped += other.skipped;
        for (reason, names) in other.reasons {
            for name in names {
                self.name(reason.clone(), &name);
            }
        }
        self.ran.extend(other.ran);
        self.failures.extend(other.failures);
    }

    /// Adds another run of the same tests. A test that was skipped here and ran there is no longer listed as skipped.
    pub(crate) fn add(&mut self, other: Report) {
        for names in self.reasons.values_mut() {
            let before = names.len();
            names.retain(|name| !other.ran.contains(name));
            self.made_up += before - names.len();
        }
        self.reasons.retain(|_, names| !names.is_empty());
        self.extend(other);
    }

    /// Names what could not even be counted.
    pub(crate) fn not_run(&mut self, reason: &str, name: &str) {
        self.name(reason.to_owned(), name);
    }

    fn name(&mut self, reason: String, name: &str) {
        let names = self.reasons.entry(reason).or_default();
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }

    fn line(&mut self, line: &str) {
        let line = line.trim_end();
        // test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
        if let Some(rest) = line.strip_prefix("test result: ") {
            for part in rest.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let (Some(number), Some(what)) = (words.next(), words.next()) else {
                    continue;
                };
                let Ok(number) = number.parse::<usize>() else {
                    continue;
                };
                match what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    "ignored" => self.skipped += number,
                    "filtered" => self.filtered += number,
                    _ => {}
                }
            }
        } else if let Some((name, rest)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... ignored"))
        {
            // libtest prints the reason behind the word. libtest-mimic has none, but a kind in brackets in front of the
            // name, which our tests say the reason with; and it pads the names.
            let (kind, name) = match name.strip_prefix('[').and_then(|n| n.rsplit_once("] ")) {
                Some((kind, name)) => (Some(kind), name),
                None => (None, name),
            };
            let reason = rest.strip_prefix(", ").or(kind);
            let reason = reason.unwrap_or("no reason given").to_owned();
            self.name(reason, name.trim());
        } else if let Some((name, passed)) = ended(line) {
            self.ran.insert(name.to_owned());
            if !passed {
                self.failures.push(name.to_owned());
            }
        }
    }

    /// Whether no test ran or was skipped.
    pub(crate) fn is_empty(&self) -> bool {
        self.passed + self.failed + self.skipped == 0
    }

    /// All in a few words, in the form that programs look for which read the output of tests.
    pub(crate) fn counts(&self) -> String {
        let mut text = format!(
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        );
        if self.made_up > 0 {
            text += &format!(", {} of which ran in the sandbox", self.made_up);
        }
        if self.filtered > 0 {
            text += &format!(", {} filtered out", self.filtered);
        }
        text
    }

    /// What could not run, and why.
    pub(crate) fn skips(&self) -> String {
        let mut text = String::new();
        for (reason, names) in &self.reasons {
            text += &format!("  skipped ({}): {reason}\n", names.len());
            for name in names {
                text += &format!("    {name}\n");
            }
        }
        text
    }
}

/// The name of the test that ended, and whether it passed, if this line says that one ended.
pub(crate) fn ended(line: &str) -> Option<(&str, bool)> {
    let (begin, result @ ("ok" | "FAILED")) = line.trim_end().rsplit_once(" ... ")? else {
        return None;
    };
    // A program that the test ran may have left its last line without an end.
    let (_, name) = begin.rsplit_once("test ")?;
    Some((name.trim(), result == "ok"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
running 3 tests
test create::bare ... ok
test mount::quota ... ignored, needs the ploop kernel module
test src/lib.rs - Ploop::mount (line 5) ... ignored

test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 4 filtered out; finished in 0.00s
";

    fn report(output: &str) -> Report {
        Report::of(output.lines())
    }

    #[test]
    fn summary_lines_are_added_up() {
        let report = report(&OUTPUT.repeat(2));
        assert_eq!((report.passed, report.failed), (2, 0));
        assert_eq!((report.skipped, report.filtered), (4, 8));
    }

    #[test]
    fn every_skipped_test_is_named_with_its_reason() {
        let text = report(&OUTPUT.repeat(2)).skips();
        assert!(text.contains("skipped (1): needs the ploop kernel module\n    mount::quota\n"));
        assert!(text.contains("skipped (1): no reason given\n    src/lib.rs - Ploop::mount"));
    }

    #[test]
    fn a_kind_is_a_reason() {
        let text =
            report("test [no [big] disk] a_b   ... ignored\ntest a_c     ... ignored\n").skips();
        assert!(
            text.contains("skipped (1): no [big] disk\n    a_b\n"),
            "{text}"
        );
        assert!(text.contains("no reason given\n    a_c\n"), "{text}");
    }

    #[test]
    fn what_runs_later_is_skipped_no_more() {
        let mut first = report(OUTPUT);
        let later = report(
            "a program's wordstest mount::quota ... ok\ntest [no disk] new ... ignored\n\
             test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
        );
        first.add(later);
        let text = first.skips();
        assert_eq!(
            first.counts(),
            "2 passed, 0 failed, 3 skipped, 1 of which ran in the sandbox, 4 filtered out"
        );
        assert!(!text.contains("mount::quota"), "{text}");
        assert!(text.contains("skipped (1): no disk\n    new\n"), "{text}");
        first.not_run("needs root", "all of it");
        assert!(first.skips().contains("needs root\n    all of it\n"));
    }

    #[test]
    fn programs_are_added_up() {
        let mut all = report(OUTPUT);
        // Skipped here, whether or not a test of that name ran elsewhere.
        all.extend(report(
            "test mount::quota ... ok\ntest new ... FAILED\ntest result: FAILED. 1 passed; 1 failed",
        ));
        assert_eq!(
            all.counts(),
            "2 passed, 1 failed, 2 skipped, 4 filtered out"
        );
        assert_eq!(all.failures, ["new"]);
        assert!(all.skips().contains("mount::quota"));
        assert!(!all.is_empty());
        assert!(report("running 0 tests\n").is_empty());
    }

    #[test]
    fn a_failure_without_a_last_newline_counts() {
        let report = report("test result: FAILED. 0 passed; 2 failed; 0 ignored");
        assert_eq!(report.failed, 2);
    }
}
