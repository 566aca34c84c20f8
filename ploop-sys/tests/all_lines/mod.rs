//! The bindings of all lines, whatever is linked: the compiler checks their assertions for this machine.
#![allow(
    clashing_extern_declarations,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    missing_docs,
    non_camel_case_types,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

#[path = "../../src/bindings/v1_15.rs"]
#[rustfmt::skip]
mod v1;
#[path = "../../src/bindings/v7_0.rs"]
#[rustfmt::skip]
mod v7;
#[path = "../../src/bindings/v9_0.rs"]
#[rustfmt::skip]
mod v9;
