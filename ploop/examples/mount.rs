//! Makes an image with a file system, mounts it, and goes back to a snapshot.
//!
//! ```text
//! cargo run --example mount
//! ```

use std::error::Error;
use std::fs;

use ploop::{CreateParam, MountParam, Ploop, Size, device};

fn main() -> Result<(), Box<dyn Error>> {
    let scratch = tempfile::tempdir()?;
    let (home, target) = (scratch.path().join("image"), scratch.path().join("mnt"));
    fs::create_dir(&home)?;
    fs::create_dir(&target)?;

    let param = CreateParam::new(home.join("root.hds"), Size::from_mib(512));
    let mut image = Ploop::create(&param)?;

    // The guard is used like the image, for as long as that is mounted.
    let mount = MountParam::new().target(&target);
    let mut guard = image.mount_guard(&mount)?;
    println!("mounted from {}", guard.mounted().device.display());
    fs::write(target.join("greeting"), "hello")?;
    let snapshot = guard.snapshot()?;
    fs::write(target.join("greeting"), "goodbye")?;
    guard.umount()?; // Dropping it unmounts, too, but does not tell of an error.

    image.switch_snapshot(snapshot)?;
    let mounted = image.mount(&mount)?;
    assert_eq!(fs::read_to_string(target.join("greeting"))?, "hello");

    // This mount stays until somebody unmounts it: this program, or another one.
    assert_eq!(device::mount_point(&mounted.device)?, Some(target));
    Ploop::open(home.join("DiskDescriptor.xml"))?.umount()?;
    Ok(())
}
