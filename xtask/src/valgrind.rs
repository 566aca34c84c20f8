//! The step `valgrind` of `cargo xtask ci`: the test programs with libploop in them, under `ci/valgrind.sh`.

use crate::jobs::{self, Job, Share};
use crate::packages::{self, Program};
use crate::stub::{self, StubTests};
use crate::{run, steps};
use anyhow::{Result, bail};

/// Tests that are left out, by a part of their names, with the reasons.
const SKIPPED_TESTS: [(&str, &str); 5] = [
    ("linear_time", "measures time"),
    ("image::", "the module is safe Rust and calls no C"),
    (
        "on_an_old_kernel",
        "runs its program again as a child, which valgrind does not follow",
    ),
    (
        "a_silent_failure_has_no_words_of_an_earlier_one",
        "provokes a failure by a null path, which libploop hands to access()",
    ),
    (
        "the_text_of_an_earlier_call_is_forgotten",
        "provokes a failure by a null path, which libploop hands to access()",
    ),
];

/// Test programs that are left out, with the reasons.
const SKIPPED_PROGRAMS: [(&str, &str); 9] = [
    ("image", "calls no C"),
    ("offline", "calls no C"),
    ("repair", "calls no C"),
    ("fuzz_corpus", "calls no C"),
    ("real_driver", "calls no C"),
    (
        stub::TESTS,
        "is linked with a stub of libploop, and runs by itself",
    ),
    (
        "hazards",
        "child processes do its work, and some crash on purpose",
    ),
    ("bad_input", "child processes do its work"),
    (
        "threads",
        "valgrind runs one thread at a time; this takes many minutes",
    ),
];

/// The test program that takes longer than all others together.
const SLOW_PROGRAM: &str = "operations";

/// Splits the tests of a program into parts: the arguments that choose each.
fn parts(program: &Program, number: usize) -> Result<Vec<Vec<String>>> {
    let list = run::output(run::command(&program.path).arg("--list"))?;
    let skipped = |name: &str| SKIPPED_TESTS.iter().any(|(part, _)| name.contains(part));
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    // They are left out here, because `--exact` makes `--skip` exact, too.
    let names = names.filter(|name| !skipped(name));
    let mut parts = vec![vec!["--exact".to_owned()]; number];
    // Neighbours in the list take similar times, so they go to different parts.
    for (at, name) in names.enumerate() {
        parts[at % number].push(name.to_owned());
    }
    // A part without a name would run all tests.
    parts.retain(|part| part.len() > 1);
    if parts.is_empty() {
        bail!("{} has no tests", program.name);
    }
    Ok(parts)
}

/// The exit code of `ci/valgrind.sh` for a program without libploop.
const WITHOUT_LIBPLOOP: i32 = 4;

/// Runs one program at a time on each processor, because a program under valgrind uses one.
pub(crate) fn run() -> Result<()> {
    let left_out = |name: &str| SKIPPED_PROGRAMS.iter().any(|(other, _)| *other == name);
    let tests = packages::tests(&["ploop", "ploop-sys"])?;
    let tests = tests.iter().filter(|name| !left_out(name));
    let programs = packages::build(
        // Linked statically, because suppressions name functions and the shared library has no names of them. The crate
        // is not optimized, because optimized code compares bytes that it does not use, which valgrind reports as
        // uninitialised. Dependencies are as in other builds: an XML parser without optimization takes two thirds of
        // the time.
        run::cargo(
            "test -p ploop -p ploop-sys --lib --no-run --features ploop-sys/static \
             --config profile.dev.package.ploop.opt-level=0",
        )
        .args(tests.flat_map(|name| ["--test", name])),
    )?;
    let mut skips = Vec::new();
    for (name, reason) in SKIPPED_TESTS {
        println!("left out: *{name}* ({reason})");
        skips.extend(["--skip", name]);
    }
    for (name, reason) in SKIPPED_PROGRAMS {
        println!("left out: the test program {name} ({reason})");
    }
    let on_stub = StubTests::build()?;
    let job = |program: &Program, part: &str, tests: &[String]| {
        let mut command = run::command("bash");
        command
            .arg(run::root().join("ci/valgrind.sh"))
            .arg(&program.path)
            .arg("--")
            .args(&skips)
            .args(tests)
            .current_dir(&program.package)
            .env("CARGO_MANIFEST_DIR", &program.package)
            // Hundreds of random cases and whole disks would take too long.
            .env("PROPTEST_CASES", "8")
            .env("PLOOP_TESTS_UNDER_VALGRIND", "1");
        Job {
            name: format!("{}{part} under valgrind", program.title()),
            command,
            share: Share::One,
        }
    };
    let mut programs: Vec<&Program> = programs.iter().collect();
    let at_once = jobs::processors();
    // The slow one comes first, in parts.
    programs.sort_by_key(|program| program.name != SLOW_PROGRAM);
    let mut all = Vec::new();
    for program in programs {
        if program.name == SLOW_PROGRAM {
            let parts = parts(program, 2 * at_once)?;
            for (number, tests) in parts.iter().enumerate() {
                let part = format!(", part {} of {}", number + 1, parts.len());
                all.push(job(program, &part, tests));
            }
        } else {
            all.push(job(program, "", &[]));
        }
    }
    let of_stub = on_stub.programs.iter();
    for program in of_stub.filter(|program| program.name == stub::TESTS) {
        let mut job = job(program, ", on a stub", &[]);
        job.command.env("LD_LIBRARY_PATH", &on_stub.library);
        all.push(job);
    }
    let (mut watched, mut failed) = (0, Vec::new());
    jobs::run(all, at_once, |done| {
        let code = done.status.code();
        let word = match code {
            Some(0) => "ok",
            Some(WITHOUT_LIBPLOOP) => "left out, without libploop",
            _ => "FAILED",
        };
        println!("{:>12}  {}: {word}", steps::seconds(done.time), done.name);
        watched += usize::from(code == Some(0));
        if ![Some(0), Some(WITHOUT_LIBPLOOP)].contains(&code) {
            done.print_output();
            failed.push(done.name);
        }
        Ok(())
    })?;
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    if watched == 0 {
        bail!("none of the programs has libploop in it");
    }
    println!("{watched} programs, no error outside ci/valgrind.supp");
    Ok(())
}
