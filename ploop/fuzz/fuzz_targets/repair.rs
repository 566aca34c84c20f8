#![no_main]

#[path = "../repair.rs"]
mod repair;
#[path = "../targets.rs"]
#[allow(dead_code)]
mod targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| repair::repair(input));
