//! Backs up a running image, and moves it as for a migration.
//!
//! ```text
//! cargo run --example live_copy
//! ```

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;

use ploop::{ComponentName, CreateParam, MountParam, Ploop, Size, TemporarySnapshotParam, copy};

fn main() -> Result<(), Box<dyn Error>> {
    let scratch = tempfile::tempdir()?;
    let directories = ["image", "other", "mnt"];
    let [home, other, target] = directories.map(|name| scratch.path().join(name));
    for directory in [&home, &other, &target] {
        fs::create_dir(directory)?;
    }
    let param = CreateParam::new(home.join("root.hds"), Size::from_mib(512));
    let mut image = Ploop::create(&param)?;
    let mut guard = image.mount_guard(&MountParam::new().target(&target))?;
    fs::write(target.join("greeting"), "hello")?;

    // A backup: the disk as it is now, whatever is written meanwhile.
    let param = TemporarySnapshotParam::new(ComponentName::new("backup")?);
    let snapshot = guard.temporary_snapshot(&param)?;
    fs::write(target.join("greeting"), "goodbye")?;
    let mut backup = File::create(scratch.path().join("backup.raw"))?;
    let copied = io::copy(&mut File::open(&snapshot.device)?, &mut backup)?;
    println!("the backup has {}", Size::from_bytes(copied));
    // Once it is not used, the next snapshot, deletion or mount would merge it, too.
    let guid = snapshot.guid;
    drop(snapshot);
    guard.delete_snapshot(guid)?;

    // A move: the top delta over one socket, the answers of the other end over a second one.
    let (sender, receiver) = UnixStream::pair()?;
    let (answers, questions) = UnixStream::pair()?;
    let device = guard.mounted().device.clone();
    let sending = thread::spawn(move || copy::send(device, sender, Some(questions.as_fd())));
    let file = other.join("root.hds");
    copy::receive(&file, receiver, Some(answers.as_fd()))?;
    sending.join().expect("the thread does not panic")?;
    guard.umount()?;

    // With a descriptor, what has arrived is an image.
    let param = CreateParam::new(&file, Size::from_mib(512));
    let mut moved = Ploop::create_descriptor(other.join("DiskDescriptor.xml"), &param)?;
    let guard = moved.mount_guard(&MountParam::new().target(&target).fsck(true))?;
    assert_eq!(fs::read_to_string(target.join("greeting"))?, "goodbye");
    guard.umount()?;
    Ok(())
}
