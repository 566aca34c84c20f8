//! The life of an image, from its making to its conversion, on the real libploop.
//!
//! ```text
//! cargo run --example lifecycle
//! ```
//!
//! The first part needs no kernel driver. It makes an image in a temporary directory, takes it
//! through everything that can be done to one that is not mounted, and shows after each step what the
//! image consists of. The second part mounts an image and works on its file system; it runs where the
//! ploop driver is loaded, and says so where it is not. Nothing is left behind.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use ploop::{
    ClusterSize, CreateParam, Descriptor, Guid, ImageMode, MergeParam, MergeTarget, MountParam,
    Ploop, ReplaceFlag, ReplaceParam, ReplaceTarget, ResizeMode, Result, Size, SwitchFlag, fs_info,
    kernel,
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lifecycle: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    // Cleans up when it is dropped, after an error too.
    let dir = tempfile::tempdir()?;
    println!("libploop {}", kernel::library_version());
    offline(dir.path())?;
    if kernel::is_driver_present() {
        mounted(dir.path())?;
    } else {
        step("Mount and resize");
        println!(
            "  skipped: the ploop kernel driver is not loaded (see ploop::load_kernel_modules)"
        );
    }
    println!("\nDone; nothing is left behind.");
    Ok(())
}

/// What needs no driver.
fn offline(dir: &Path) -> Result<(), Box<dyn Error>> {
    step("Create");
    let base = dir.join("root.hds");
    let param = CreateParam::new(&base, Size::from_mib(64))
        .cluster(ClusterSize::from_bytes(256 << 10)?)
        // With the default, ext4, the driver would be needed.
        .fs(None);
    let mut image = Ploop::create(&param)?;
    show(&image)?;

    step("Inspect");
    let info = image.image_info()?;
    fact("size", info.size());
    fact("cluster", image.descriptor()?.cluster);
    fact("format", format_args!("v{}", info.version));
    fact("mounted", image.is_mounted()?);
    fact("base delta", image.base_delta_file()?.display());
    fact("top delta", image.top_delta_file()?.display());
    fact("at most", kernel::max_size(ClusterSize::DEFAULT)?);

    step("Snapshot, twice");
    let first = image.snapshot()?;
    let second = image.snapshot()?;
    fact("first", first);
    fact("second", second);
    show(&image)?;

    step("Switch back to the first, and keep what was the top");
    let kept = image.switch_snapshot_with(first, SwitchFlag::SKIP_DESTROY)?;
    if let Some(kept) = kept {
        fact("kept as", kept);
    }
    show(&image)?;

    step("Delete the branch that was left");
    for guid in kept.into_iter().chain([second]) {
        image.delete_snapshot(guid)?;
    }
    show(&image)?;

    step("Merge the top into the base");
    image.merge(&MergeParam::new(MergeTarget::Top))?;
    show(&image)?;

    step("Replace the base by a copy, under its old name");
    let copy = dir.join("copy.hds");
    fs::copy(&base, &copy)?;
    let before = fs::metadata(&base)?.ino();
    let target = ReplaceTarget::Guid(Guid::TOP);
    image.replace(&ReplaceParam::new(&copy, target).flags(ReplaceFlag::KEEP_NAME))?;
    fact(
        "inode",
        format_args!("{before} -> {}", fs::metadata(&base)?.ino()),
    );
    show(&image)?;

    for mode in [ImageMode::Preallocated, ImageMode::Raw] {
        step(&format!("Convert to {}", mode.to_string().to_lowercase()));
        image.convert(mode)?;
        show(&image)?;
    }
    image.close();
    Ok(())
}

/// What needs the driver, and root.
fn mounted(dir: &Path) -> Result<(), Box<dyn Error>> {
    let home = dir.join("mounted");
    let target = dir.join("target");
    fs::create_dir(&home)?;
    fs::create_dir(&target)?;
    let file = target.join("greeting");

    step("Create with a file system, and mount");
    let mut image = Ploop::create(&CreateParam::new(
        home.join("root.hds"),
        Size::from_mib(512),
    ))?;
    let mount = MountParam::new().target(&target);
    let mut guard = image.mount_guard(&mount)?;
    fact("device", guard.mounted().device.display());
    fs::write(&file, "hello")?;

    step("Snapshot while mounted, then write on");
    let snapshot = guard.snapshot()?;
    fs::write(&file, "goodbye")?;
    fact("now", fs::read_to_string(&file)?);
    guard.umount()?;

    step("Switch back");
    image.switch_snapshot(snapshot)?;
    let mut guard = image.mount_guard(&mount)?;
    fact("now", fs::read_to_string(&file)?);

    step("Grow while mounted");
    guard.resize(Size::from_mib(768), ResizeMode::Online)?;
    guard.umount()?;
    let info = fs_info(home.join("DiskDescriptor.xml"))?;
    fact("file system", info.size());
    fact("free", info.free());
    show(&image)?;
    Ok(())
}

fn step(title: &str) {
    println!("\n{title}");
}

fn fact(name: &str, value: impl std::fmt::Display) {
    println!("  {name:<12} {value}");
}

/// The snapshot tree, each delta with its file and what that takes on the disk.
fn show(image: &Ploop) -> Result<(), Box<dyn Error>> {
    let descriptor = image.descriptor()?;
    println!("  {:<44} {:>10} {:>10}  file", "delta", "length", "on disk");
    for child in descriptor.children(Guid::NONE) {
        show_branch(&descriptor, child, 0)?;
    }
    Ok(())
}

fn show_branch(descriptor: &Descriptor, guid: Guid, depth: usize) -> Result<(), Box<dyn Error>> {
    let Some(image) = descriptor.image(guid) else {
        return Ok(());
    };
    let name = match guid {
        Guid::TOP => "top".to_owned(),
        guid => guid.to_string(),
    };
    let file = fs::metadata(&image.file)?;
    let file_name = image.file.file_name().unwrap_or_default();
    println!(
        "  {:<44} {:>10} {:>10}  {}",
        format!("{}{name}", "  ".repeat(depth)),
        Size::from_bytes(file.len()).to_string(),
        Size::from_sectors(file.blocks()).to_string(),
        file_name.to_string_lossy(),
    );
    for child in descriptor.children(guid) {
        show_branch(descriptor, child, depth + 1)?;
    }
    Ok(())
}
