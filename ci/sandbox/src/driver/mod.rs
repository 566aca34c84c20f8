//! The driver: the devices, which of them a program is given, and which device answers which request.

mod attached;
mod attributes;
mod balloon;
mod block_tracking;
mod changed_blocks;
mod changed_ranges;
mod contents;
mod contents_lock;
mod deltas;
mod device;
mod discard;
mod discard_queue;
mod errors;
mod freeze;
mod generation;
mod maintenance;
mod merge;
mod range_set;
mod request;
mod stack;
mod track;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use ploop_sandbox_wire::{Alias, Node, Reply, Request, call};
use rustix::io::Errno;

use crate::block::{BlockDevice, MINORS};
use crate::lock::lock;
use crate::sandbox_directory::SandboxDirectory;
pub(crate) use attached::list_in as list_attached_in;
pub(crate) use attributes::SysfsEntry;
use device::Device;
pub(crate) use generation::{Generation, GenerationChoice};
use request::Ioctl;

/// The numbers of devices.
const NUMBERS: std::ops::Range<u32> = 10_000..65_536;

/// All devices.
pub(crate) struct Driver {
    sandbox: Arc<SandboxDirectory>,
    generation: Arc<GenerationChoice>,
    /// Ordered by their numbers.
    devices: Mutex<Vec<DeviceEntry>>,
}

struct DeviceEntry {
    device: Arc<Device>,
    reserved: bool,
}

/// A device that no other program is given until this is dropped.
pub(crate) struct Reservation {
    driver: Weak<Driver>,
    pub(crate) index: u32,
}

impl Reservation {
    /// The text of `/proc/vz/ploop_minor`.
    pub(crate) fn text(&self) -> String {
        format!("{}\n", self.index * MINORS)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.upgrade() {
            let mut devices = lock(&driver.devices);
            if let Some(entry) = devices
                .iter_mut()
                .find(|entry| entry.device.index == self.index)
            {
                entry.reserved = false;
            }
        }
    }
}

impl Driver {
    /// `generation`: which driver to stand for; that of the libploop in use if it is none.
    pub(crate) fn new(
        sandbox: Arc<SandboxDirectory>,
        generation: Option<Generation>,
    ) -> Arc<Driver> {
        let driver = Arc::new(Driver {
            sandbox,
            generation: Arc::new(GenerationChoice::new(generation)),
            devices: Mutex::new(Vec::new()),
        });
        let weak = Arc::downgrade(&driver);
        // The thread ends with the driver.
        thread::spawn(move || {
            while let Some(driver) = weak.upgrade() {
                for device in driver.all() {
                    device.release_abandoned_discards();
                }
                drop(driver);
                thread::sleep(Duration::from_millis(500));
            }
        });
        driver
    }

    fn all(&self) -> Vec<Arc<Device>> {
        let devices = lock(&self.devices);
        devices
            .iter()
            .map(|entry| Arc::clone(&entry.device))
            .collect()
    }

    fn device(&self, index: u32) -> Option<Arc<Device>> {
        let devices = lock(&self.devices);
        devices
            .iter()
            .find(|entry| entry.device.index == index)
            .map(|entry| Arc::clone(&entry.device))
    }

    /// The free device of the lowest number, or a new one.
    pub(crate) fn reserve(self: &Arc<Self>) -> io::Result<Reservation> {
        let mut devices = lock(&self.devices);
        let free = devices
            .iter_mut()
            .find(|entry| !entry.reserved && entry.device.is_empty());
        let index = match free {
            Some(entry) => {
                entry.reserved = true;
                entry.device.index
            }
            None => {
                let device = self.create()?;
                let index = device.index;
                devices.push(DeviceEntry {
                    device,
                    reserved: true,
                });
                devices.sort_by_key(|entry| entry.device.index);
                index
            }
        };
        Ok(Reservation {
            driver: Arc::downgrade(self),
            index,
        })
    }

    fn create(&self) -> io::Result<Arc<Device>> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..64 {
            let mut random = [0; 4];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
            let span = NUMBERS.end - NUMBERS.start;
            let index = NUMBERS.start + u32::from_le_bytes(random) % span;
            let device = Arc::new(Device::new(index, Arc::clone(&self.generation)));
            match BlockDevice::create(index, &self.sandbox, device.clone()) {
                Ok(block) => {
                    device.set_block_device(block);
                    return Ok(device);
                }
                // The loop device of this number is another sandbox's.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The entry at a path below `/sys/devices/virtual/block`.
    pub(crate) fn entry(&self, path: &[&str]) -> Option<SysfsEntry> {
        if path.is_empty() {
            let names = self.all().iter().map(|device| device.name()).collect();
            return Some(SysfsEntry::Directory(names));
        }
        let (device, rest) = self.device_at(path)?;
        device.entry(rest)
    }

    /// Whether a file below `/sys/devices/virtual/block` can be written to.
    pub(crate) fn is_writable(&self, path: &[&str]) -> bool {
        self.device_at(path)
            .is_some_and(|(device, rest)| device.is_writable(rest))
    }

    /// Writes to a file below `/sys/devices/virtual/block`.
    pub(crate) fn store(&self, path: &[&str], text: &str) -> Result<(), Errno> {
        let (device, rest) = self.device_at(path).ok_or(Errno::NODEV)?;
        device.store(rest, text)
    }

    /// The device of a path, and what follows its name.
    fn device_at<'p>(&self, path: &'p [&'p str]) -> Option<(Arc<Device>, &'p [&'p str])> {
        let (name, rest) = path.split_first()?;
        let index = name.strip_prefix("ploop")?.parse().ok()?;
        Some((self.device(index)?, rest))
    }

    /// Calls back with the text of `pstate/event` when the device does not run any more.
    pub(crate) fn when_stopped(&self, index: u32, callback: Box<dyn FnOnce(&str) + Send>) {
        match self.device(index) {
            Some(device) => device.when_stopped(callback),
            None => callback(""),
        }
    }

    /// Answers one request of a program.
    pub(crate) fn reply_to(
        &self,
        request: &Request,
        descriptors: Vec<OwnedFd>,
        caller_gone: &dyn Fn() -> bool,
    ) -> Reply {
        match self.answer(request, descriptors, caller_gone) {
            Ok(reply) => reply,
            Err(errno) => Reply::of(-errno.raw_os_error()),
        }
    }

    fn answer(
        &self,
        request: &Request,
        descriptors: Vec<OwnedFd>,
        caller_gone: &dyn Fn() -> bool,
    ) -> Result<Reply, Errno> {
        let (index, partition) = match request.node {
            Node::Whole(index) => (index, false),
            Node::Partition(index) => (index, true),
            Node::None if request.call == call::ALIASES => return Ok(self.aliases()),
            Node::None if request.call == call::LIBPLOOP => {
                self.generation.note_libploop(request.argument);
                return Ok(Reply::of(0));
            }
            Node::None => return Err(Errno::INVAL),
        };
        let device = self.device(index).ok_or(Errno::NXIO)?;
        if request.call == call::ALIASES {
            return Ok(self.aliases());
        }
        if request.call == call::BALLOON_INODE {
            let number = std::str::from_utf8(&request.payload).ok();
            let number: Option<u64> = number.and_then(|text| text.trim().parse().ok());
            device.set_balloon_inode(Some(number.ok_or(Errno::INVAL)?).filter(|inode| *inode != 0));
            return Ok(Reply::of(0));
        }
        if request.call == call::OPENED && !partition {
            return device.opened().map(|()| Reply::of(0));
        }
        let ioctl = Ioctl {
            number: request.call,
            partition,
            argument: request.argument,
            payload: &request.payload,
            descriptors,
            caller_gone,
        };
        device.ioctl(ioctl)
    }

    fn aliases(&self) -> Reply {
        let aliases: Vec<Alias> = self.all().iter().filter_map(|d| d.alias()).collect();
        Reply {
            result: 0,
            payload: Alias::to_payload(&aliases),
        }
    }

    /// Stops and clears every device that nothing uses any more, so that the images are closed, and removes the loop
    /// devices.
    pub(crate) fn shut_down(&self) {
        for entry in lock(&self.devices).drain(..) {
            entry.device.shut_down();
        }
    }
}
