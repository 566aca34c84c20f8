//! What the tests said: passed on as it comes, and counted on the way.

use std::collections::BTreeMap;
use std::io::{Read, Write};

/// The tests of one or more runs.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// As the summary lines say.
    pub(crate) ignored: usize,
    pub(crate) filtered: usize,
    /// The ignored tests by reason; one that is ignored in two runs is here once.
    pub(crate) reasons: BTreeMap<String, Vec<String>>,
}

impl Report {
    /// Copies everything from `input` to `output` at once, so that a slow test's name is seen while it runs.
    pub(crate) fn follow(
        &mut self,
        mut input: impl Read,
        output: &mut impl Write,
    ) -> std::io::Result<()> {
        let mut line = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            let read = match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => &buffer[..read],
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            output.write_all(read)?;
            output.flush()?;
            for &byte in read {
                if byte == b'\n' {
                    self.line(&String::from_utf8_lossy(&line));
                    line.clear();
                } else {
                    line.push(byte);
                }
            }
        }
        self.line(&String::from_utf8_lossy(&line));
        Ok(())
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
                    "ignored" => self.ignored += number,
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
            let (name, names) = (name.trim(), self.reasons.entry(reason).or_default());
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
    }

    /// The end of the output: how many, and what could not run and why.
    pub(crate) fn summary(&self) -> String {
        let mut text = format!(
            "Tests: {} passed, {} failed, {} ignored",
            self.passed, self.failed, self.ignored
        );
        if self.filtered > 0 {
            text += &format!(", {} filtered out", self.filtered);
        }
        text.push('\n');
        for (reason, names) in &self.reasons {
            text += &format!("  ignored ({}): {reason}\n", names.len());
            for name in names {
                text += &format!("    {name}\n");
            }
        }
        text
    }
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
        let mut report = Report::default();
        let mut copy = Vec::new();
        report.follow(output.as_bytes(), &mut copy).unwrap();
        assert_eq!(copy, output.as_bytes());
        report
    }

    #[test]
    fn summary_lines_are_added_up() {
        let report = report(&OUTPUT.repeat(2));
        assert_eq!((report.passed, report.failed), (2, 0));
        assert_eq!((report.ignored, report.filtered), (4, 8));
    }

    #[test]
    fn every_ignored_test_is_named_with_its_reason() {
        let text = report(&OUTPUT.repeat(2)).summary();
        assert!(text.contains("ignored (1): needs the ploop kernel module\n    mount::quota\n"));
        assert!(text.contains("ignored (1): no reason given\n    src/lib.rs - Ploop::mount"));
    }

    #[test]
    fn a_kind_is_a_reason() {
        let text =
            report("test [no [big] disk] a_b   ... ignored\ntest a_c     ... ignored\n").summary();
        assert!(
            text.contains("ignored (1): no [big] disk\n    a_b\n"),
            "{text}"
        );
        assert!(text.contains("no reason given\n    a_c\n"), "{text}");
    }

    #[test]
    fn a_failure_without_a_last_newline_counts() {
        let report = report("test result: FAILED. 0 passed; 2 failed; 0 ignored");
        assert_eq!(report.failed, 2);
    }
}
