//! Images that no device has, after operations of libploop that were cut short.

mod detached;
mod merge;
