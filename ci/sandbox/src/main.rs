//! A userspace stand-in for the ploop kernel driver.

fn main() {}
