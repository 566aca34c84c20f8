//! Writes the disk of an image into a plain, sparse file.
//!
//! ```text
//! cargo run --release --example export -- /vz/private/101/root.hdd/DiskDescriptor.xml disk.raw
//! ```

use std::error::Error;

use ploop::image::{Disk, ExportOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [descriptor, target] = &*arguments else {
        return Err("name a descriptor and a file that is not there".into());
    };
    let disk = Disk::open(descriptor)?;
    disk.export(target, &ExportOptions::new(), |progress| {
        eprint!("\r{:.1} of {:.1} ", progress.copied, progress.total);
    })?;
    eprintln!();
    Ok(())
}
