//! Stub.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ploop_sandbox_wire as wire;

use crate::state::State;

pub(crate) struct Driver;

pub(crate) struct Reservation {
    pub(crate) index: u32,
}

pub(crate) enum Entry {
    Directory(Vec<String>),
    File { text: String, mode: u16 },
    Event,
}

impl Driver {
    pub(crate) fn new(_state: Arc<State>) -> Driver {
        Driver
    }
    pub(crate) fn reserve(self: &Arc<Self>) -> io::Result<Reservation> {
        Err(io::ErrorKind::Unsupported.into())
    }
    pub(crate) fn entry(&self, _path: &[&str]) -> Option<Entry> {
        None
    }
    pub(crate) fn stopped(&self, _index: u32, _when: Box<dyn FnOnce(&str) + Send>) {}
    pub(crate) fn control(
        &self,
        _request: &wire::Request,
        _descriptors: Vec<OwnedFd>,
        _gone: &dyn Fn() -> bool,
    ) -> wire::Reply {
        wire::Reply::of(-22)
    }
    pub(crate) fn shut_down(&self) {}
}
