//! Grows and shrinks a mounted image, and gives back what its file system no longer uses.
//!
//! ```text
//! cargo run --example sizes
//! ```

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;

use ploop::{CreateParam, DiscardParam, MountParam, Ploop, ResizeMode, Size, fs_info};

fn main() -> Result<(), Box<dyn Error>> {
    let scratch = tempfile::tempdir()?;
    let (home, target) = (scratch.path().join("image"), scratch.path().join("mnt"));
    fs::create_dir(&home)?;
    fs::create_dir(&target)?;

    let param = CreateParam::new(home.join("root.hds"), Size::from_mib(512));
    let mut image = Ploop::create(&param)?;
    let mut guard = image.mount_guard(&MountParam::new().target(&target))?;

    // The disk and its file system grow.
    guard.resize(Size::from_gib(1), ResizeMode::Online)?;
    let show = |when| -> ploop::Result<()> {
        let info = fs_info(home.join("DiskDescriptor.xml"))?;
        println!("{when}: {:.1} free of {:.1}", info.free(), info.size());
        Ok(())
    };
    show("grown")?;

    // The disk stays as large; the balloon takes the space from the file system.
    guard.resize(Size::from_mib(768), ResizeMode::Online)?;
    show("shrunk")?;

    // A file that is removed leaves its clusters allocated, until a discard.
    let file = target.join("large");
    let mut large = File::create(&file)?;
    large.write_all(&vec![1; 100 << 20])?;
    large.sync_all()?;
    drop(large);
    fs::remove_file(&file)?;
    let before = guard.discard_stat()?.image_size;
    guard.discard(&DiscardParam::new())?;
    let after = guard.discard_stat()?.image_size;
    println!("the discard made {before} on the host {after}");
    guard.umount()?;
    Ok(())
}
