//! A userspace stand-in for the ploop kernel driver.

#![deny(unsafe_code)]

mod block;
mod data;
mod driver;
mod state;

fn main() {}
