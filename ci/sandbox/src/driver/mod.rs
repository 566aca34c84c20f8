//! Stub: a device whose data is in memory, for trying the plumbing.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use ploop_sandbox_wire as wire;

use crate::block::Block;
use crate::data::{Data, Done};
use crate::state::State;

struct Ram {
    size: AtomicU64,
    bytes: RwLock<Vec<u8>>,
    held: Mutex<Vec<Done>>,
    hold: AtomicU64,
}

impl Data for Ram {
    fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.bytes.read().unwrap();
        buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]);
        Ok(())
    }
    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.bytes.write().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn punch(&self, offset: u64, len: u64, done: Done) {
        self.bytes.write().unwrap()[offset as usize..][..len as usize].fill(0);
        if self.hold.load(Ordering::SeqCst) == 1 {
            self.held.lock().unwrap().push(done);
        } else {
            done.answer(Ok(()));
        }
    }
}

struct Device {
    ram: Arc<Ram>,
    block: Block,
    when: Mutex<Vec<Box<dyn FnOnce(&str) + Send>>>,
}

pub(crate) struct Driver {
    state: Arc<State>,
    devices: Mutex<HashMap<u32, Arc<Device>>>,
}

pub(crate) struct Reservation {
    pub(crate) index: u32,
}

pub(crate) enum Entry {
    Directory(Vec<String>),
    File { text: String, mode: u16 },
    Event,
}

impl Driver {
    pub(crate) fn new(state: Arc<State>) -> Driver {
        Driver {
            state,
            devices: Mutex::default(),
        }
    }
    pub(crate) fn reserve(self: &Arc<Self>) -> io::Result<Reservation> {
        let mut devices = self.devices.lock().unwrap();
        let index = 10000 + (std::process::id() * 7 % 50000) + devices.len() as u32;
        let ram = Arc::new(Ram {
            size: AtomicU64::new(0),
            bytes: RwLock::default(),
            held: Mutex::default(),
            hold: AtomicU64::new(0),
        });
        let block = Block::create(index, &self.state, ram.clone())?;
        devices.insert(
            index,
            Arc::new(Device {
                ram,
                block,
                when: Mutex::default(),
            }),
        );
        Ok(Reservation { index })
    }
    pub(crate) fn entry(&self, path: &[&str]) -> Option<Entry> {
        let devices = self.devices.lock().unwrap();
        let file = |text: String| Some(Entry::File { text, mode: 0o444 });
        let names = |names: &[&str]| {
            Some(Entry::Directory(
                names.iter().map(|n| n.to_string()).collect(),
            ))
        };
        let Some(first) = path.first() else {
            return Some(Entry::Directory(
                devices
                    .keys()
                    .map(|index| format!("ploop{index}"))
                    .collect(),
            ));
        };
        let index: u32 = first.strip_prefix("ploop")?.parse().ok()?;
        let device = devices.get(&index)?;
        match path[1..] {
            [] => names(&["dev", "event", "size"]),
            ["dev"] => file(format!("182:{}\n", index * 16)),
            ["size"] => file(format!("{}\n", device.ram.size() / 512)),
            ["openers"] => file(format!("{}\n", device.block.openers())),
            ["event"] => Some(Entry::Event),
            _ => None,
        }
    }
    pub(crate) fn stopped(&self, index: u32, when: Box<dyn FnOnce(&str) + Send>) {
        if let Some(device) = self.devices.lock().unwrap().get(&index) {
            device.when.lock().unwrap().push(when);
        }
    }
    pub(crate) fn control(
        &self,
        request: &wire::Request,
        _descriptors: Vec<OwnedFd>,
        _gone: &dyn Fn() -> bool,
    ) -> wire::Reply {
        let wire::Node::Whole(index) = request.node else {
            return wire::Reply::of(-22);
        };
        let Some(device) = self.devices.lock().unwrap().get(&index).cloned() else {
            return wire::Reply::of(-19);
        };
        let result = match request.call {
            1 => {
                device
                    .ram
                    .bytes
                    .write()
                    .unwrap()
                    .resize(request.argument as usize, 0);
                device.ram.size.store(request.argument, Ordering::SeqCst);
                device.block.attach(false)
            }
            2 => device.block.detach().map(|()| {
                for when in device.when.lock().unwrap().drain(..) {
                    when("2\n");
                }
            }),
            3 => device.block.reread_partitions(),
            4 => {
                device
                    .ram
                    .bytes
                    .write()
                    .unwrap()
                    .resize(request.argument as usize, 0);
                device.ram.size.store(request.argument, Ordering::SeqCst);
                device.block.resized()
            }
            5 => device.block.freeze().map(|frozen| {
                eprintln!("frozen: {:?}", device.block.mounts());
                std::thread::sleep(Duration::from_secs(request.argument));
                drop(frozen);
            }),
            6 => {
                eprintln!(
                    "openers {} partition {:?} alias {:?} mounts {:?}",
                    device.block.openers(),
                    device.block.partition(),
                    device.block.alias(),
                    device.block.mounts()
                );
                Ok(())
            }
            7 => {
                device.ram.hold.store(request.argument, Ordering::SeqCst);
                if request.argument == 0 {
                    device.ram.held.lock().unwrap().clear();
                }
                Ok(())
            }
            _ => return wire::Reply::of(-22),
        };
        match result {
            Ok(()) => wire::Reply::of(0),
            Err(error) => {
                eprintln!("call {}: {error}", request.call);
                wire::Reply::of(-error.raw_os_error().unwrap_or(5))
            }
        }
    }
    pub(crate) fn shut_down(&self) {
        let devices = std::mem::take(&mut *self.devices.lock().unwrap());
        for (index, device) in devices {
            if let Err(error) = device.block.detach() {
                eprintln!("shut down {index}: {error}");
            }
        }
    }
}
