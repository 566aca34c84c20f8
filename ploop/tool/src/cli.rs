//! The command line: commands, options, help.

use std::path::PathBuf;

use clap::builder::Styles;
use clap::builder::styling::AnsiColor;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ploop::image::RepairGeometry;
use ploop::{ClusterSize, FormatVersion, Guid, ImageMode, Size};

/// The end of the help of the commands that change an image.
const CHANGES: &str = "Changes the image: under libploop's lock, and only while no device has it. What is cut short is finished or \
                       taken back by the next change.";

const DIFF: &str = "\
Examples:
  ploop-image diff root.hdd --from 5fbaabe3-6958-40ff-92a7-860e329aab41
  ploop-image diff root.hdd --from 5fbaabe3-6958-40ff-92a7-860e329aab41 --files

With --files, there is a line for each file of the ext2, ext3 or ext4 file system that differs, by path, with tabs between \
the fields:

  A PATH               was added
  D PATH               was removed
  M PATH WHAT          was changed
  T PATH WHAT          is of another type: a link instead of a file, say
  R PATH PATH [WHAT]   was moved from the first path to the second

WHAT are words with commas between them: type, content, target (of a link), device, size, mode, owner, mtime and xattrs \
(attributes and access control lists). Access times, flags and the number of links are not compared. A directory \
from which or to which files were moved has another mtime, and is listed for that.

The inode tells whether a file was moved: its number, generation and time of creation. What was moved with a directory \
above it is listed only if it differs. A file that was written anew under its old name is the same file; a path that \
another file was moved to is listed twice, with D for the file that was there.

Contents are read only where their place on the disk is another one, or has changed. Memory grows with the number of files \
that differ, by some 20 bytes for each directory, and with the names of the directories on the way.";

const COMPACT: &str = "\
Examples:
  ploop-image compact root.hdd --free --dry-run
  ploop-image compact root.hdd --free

Without --free, each state of the disk reads as before, byte for byte. With it, each snapshot does, and each file of the \
present state; but what the file system has free reads as zeros, or as what the snapshot below has there, and what was \
left of deleted files is gone. A file system with a journal that has to be replayed, with errors or with a wrong checksum \
keeps what it has; the output says why, and the exit status is 1.

Changes the image: under libploop's lock, and only while no device has it. What is cut short is finished or taken back by \
the next change.";

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Ploop images without the driver: look into them, get everything out
///
/// PATH is a DiskDescriptor.xml, a directory that holds one, or one delta. Nothing here needs root, the ploop driver or
/// libploop, and no command but those that say so writes to an image.
#[derive(Debug, Parser)]
#[command(
    name = "ploop-image",
    version,
    styles = STYLES,
    max_term_width = 100,
    after_help = "Exit status: 0 done (check: the image is sound), 1 could not be done (repair: something is left), 2 wrong usage (check: \
                  damaged), 3 (check: only space is lost)."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print no progress
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what an image consists of
    #[command(after_help = "Example:\n  ploop-image info /vz/private/101/root.hdd")]
    Info(Source),
    /// Look for damage; changes nothing
    #[command(after_help = "Example:\n  ploop-image check /vz/private/101/root.hdd && echo sound")]
    Check(Source),
    /// Show which parts of the disk have data, and in which file it is
    #[command(after_help = "Example:\n  ploop-image map --json root.hdd | jq '.[] | .len'")]
    Map(State),
    /// Show what changed between two states: parts of the disk, or with --files the files of the file system inside
    #[command(after_help = DIFF)]
    Diff(Diff),
    /// Write the disk, or a partition of it, into a raw file, a qcow2 image or a pipe
    #[command(
        after_help = "Examples:\n  ploop-image export root.hdd disk.raw\n  ploop-image export root.hdd disk.qcow2 --format qcow2\n  ploop-image export damaged.hdd rest.raw --salvage\n  ploop-image export root.hdd - | zstd > disk.zst"
    )]
    Export(Export),
    /// Show the disk of each state and its partitions as files in a directory (FUSE), read only
    #[command(
        after_help = "Example:\n  ploop-image mount root.hdd /mnt &\n  fdisk -l /mnt/top/disk\n  fusermount3 -u /mnt\n\n\
                      In DIRECTORY there are top and each snapshot by its GUID; in each, the file disk, and p1, p2, … for \
                      its partitions. The command ends when the directory is unmounted."
    )]
    Mount(Mount),
    /// List files of the file system inside, as ls -l
    #[command(after_help = "Example:\n  ploop-image ls root.hdd /etc")]
    Ls(List),
    /// Print files of the file system inside
    #[command(after_help = "Example:\n  ploop-image cat root.hdd /etc/os-release")]
    Cat(Cat),
    /// Copy files out of the file system inside
    #[command(
        after_help = "Example:\n  ploop-image cp -r root.hdd /home/alice ./alice\n\n\
                      Keeps permissions but the set-user-ID and set-group-ID bits, times and symbolic links; to keep these, owners and everything else, use tar. \
                      Devices, fifos and encrypted files are left out, and the exit status is 1 then."
    )]
    Cp(Copy),
    /// Write files of the file system inside to a tar archive, with all that belongs to them
    #[command(
        after_help = "Example:\n  ploop-image tar root.hdd / | docker import - container:latest\n\n\
                      The archive has owners, permissions, times, hard and symbolic links, devices, extended \
                      attributes, access control lists, and sparse files as such."
    )]
    Tar(Tar),
    /// Make an empty image, and print its descriptor
    #[command(after_help = "Example:\n  ploop-image create new.hdd --size 10G")]
    Create(Create),
    /// Make an image of a raw disk, and print its descriptor
    #[command(
        after_help = "Examples:\n  ploop-image import disk.raw new.hdd\n  zstdcat disk.zst | ploop-image import - new.hdd"
    )]
    Import(Import),
    /// Make a snapshot of the present state, and print its GUID
    #[command(after_help = CHANGES)]
    Snapshot(Snapshot),
    /// Go back to a snapshot: what was written since the last one is lost, unless it is kept
    #[command(after_help = CHANGES)]
    Switch(Switch),
    /// Delete a snapshot, or what was written since the last one; other states stay as they are
    #[command(after_help = CHANGES)]
    Delete(Delete),
    /// Merge deltas: the states between are gone, and the disk stays as it is
    #[command(after_help = CHANGES)]
    Merge(Merge),
    /// Make the disk larger; what is in it stays as it is, and has to be made larger by its own tools
    #[command(after_help = CHANGES)]
    Resize(Resize),
    /// Store the image in another way: expanded, preallocated, raw; format v2
    #[command(after_help = CHANGES)]
    Convert(Convert),
    /// Free the space of what is stored for nothing: zeros, what is the same below, clusters that were lost; with --free
    /// also what the file system inside does not use
    #[command(after_help = COMPACT)]
    Compact(Compact),
    /// Repair what check finds: what has one right answer, and the rest by the options below
    #[command(
        after_help = "Examples:\n  ploop-image repair root.hdd --dry-run\n  ploop-image repair root.hdd --undo before.undo --clear-entries\n  ploop-image repair root.hdd --revert before.undo\n\n\
                      Exit status: 0 if nothing is left, or with --dry-run nothing would be; 1 otherwise. Changes the image: under libploop's \
                      lock, and only while no device of this host has it. At each moment the image is no worse than before.\n\n\
                      A repair that corrects the size or the clusters that a header or the descriptor has does nothing else: look at the disk, and repair again."
    )]
    Repair(Repair),
    /// Make a lost descriptor anew, of the deltas of the image; prints the descriptor
    #[command(
        after_help = "Example:\n  ploop-image restore-descriptor root.hdd root.hdd/root.hds root.hdd/root.hds.{5fbaabe3-6958-40ff-92a7-860e329aab41}\n\n\
                      The deltas do not say how they stand upon each other. Their names and times may help; a disk is never larger \
                      in a delta than in those above."
    )]
    RestoreDescriptor(RestoreDescriptor),
}

/// The image.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// A DiskDescriptor.xml, a directory that holds one, or one delta
    pub(crate) path: PathBuf,
}

/// A state of the image: the present one, or that of a snapshot.
#[derive(Debug, Args)]
pub(crate) struct State {
    #[command(flatten)]
    pub(crate) source: Source,
    /// The disk as of this snapshot
    #[arg(long, value_name = "GUID")]
    pub(crate) snapshot: Option<Guid>,
    /// Read an image that is marked as in use: it is mounted, or was not unmounted before its host went down
    #[arg(long)]
    pub(crate) in_use: bool,
    /// Read what there is of a damaged image: zeros for what is lost
    #[arg(long)]
    pub(crate) salvage: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Mount {
    #[command(flatten)]
    pub(crate) source: Source,
    /// An empty directory
    pub(crate) directory: PathBuf,
    /// Let other users read the files, too
    #[arg(long)]
    pub(crate) allow_other: bool,
    /// Read an image that is marked as in use
    #[arg(long)]
    pub(crate) in_use: bool,
}

/// The file system inside.
#[derive(Debug, Args)]
pub(crate) struct FileSystemState {
    #[command(flatten)]
    pub(crate) state: State,
    /// The partition with the file system, by its number [default: the only one that has any]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) partition: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) file_system: FileSystemState,
    /// Files and directories [default: /]
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Cat {
    #[command(flatten)]
    pub(crate) file_system: FileSystemState,
    /// Files
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Copy {
    #[command(flatten)]
    pub(crate) file_system: FileSystemState,
    /// A file of the image
    pub(crate) from: PathBuf,
    /// Where it goes: a name that is not there, or a directory
    pub(crate) to: PathBuf,
    /// Copy directories with all that is in them
    #[arg(long, short)]
    pub(crate) recursive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Tar {
    #[command(flatten)]
    pub(crate) file_system: FileSystemState,
    /// Files and directories [default: /]
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// The archive [default: the standard output]
    #[arg(long, short, value_name = "ARCHIVE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Snapshot {
    #[command(flatten)]
    pub(crate) source: Source,
}

#[derive(Debug, Args)]
pub(crate) struct Switch {
    #[command(flatten)]
    pub(crate) source: Source,
    /// The snapshot
    pub(crate) guid: Guid,
    /// Keep what was written since the last snapshot as a snapshot, and print its GUID
    #[arg(long)]
    pub(crate) keep_top: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    #[command(flatten)]
    pub(crate) source: Source,
    /// The snapshot
    #[arg(required_unless_present = "top")]
    pub(crate) guid: Option<Guid>,
    /// What was written since the last snapshot
    #[arg(long, conflicts_with = "guid")]
    pub(crate) top: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Merge {
    #[command(flatten)]
    pub(crate) source: Source,
    /// This snapshot, into the one below [default: what was written since the last snapshot]
    #[arg(conflicts_with_all = ["all", "from", "to"])]
    pub(crate) guid: Option<Guid>,
    /// The whole chain of the present state
    #[arg(long, conflicts_with_all = ["from", "to"])]
    pub(crate) all: bool,
    /// All from this snapshot, which stays, …
    #[arg(long, value_name = "GUID", requires = "to")]
    pub(crate) from: Option<Guid>,
    /// … down to this one below it
    #[arg(long, value_name = "GUID", requires = "from")]
    pub(crate) to: Option<Guid>,
    /// Write the result to a new file, and leave the old ones as they are until it is there
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// How a new image stores its disk.
#[derive(Debug, Args)]
pub(crate) struct Shape {
    /// expanded, preallocated or raw
    #[arg(long, default_value = "expanded", value_name = "MODE")]
    pub(crate) mode: ImageMode,
    /// The size of a cluster, from 32K to 64M
    #[arg(long, default_value = "1M", value_name = "SIZE")]
    pub(crate) cluster: ClusterSize,
    /// v1 or v2
    #[arg(long, default_value = "v2", value_name = "VERSION")]
    pub(crate) format_version: FormatVersion,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The directory of the image, which is made if it is not there
    pub(crate) directory: PathBuf,
    /// The size of the disk: 10G, 512M
    #[arg(long, short)]
    pub(crate) size: Size,
    #[command(flatten)]
    pub(crate) shape: Shape,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// A raw disk: a file, a device, or - for the standard input
    pub(crate) source: PathBuf,
    /// The directory of the image, which is made if it is not there
    pub(crate) directory: PathBuf,
    #[command(flatten)]
    pub(crate) shape: Shape,
}

#[derive(Debug, Args)]
pub(crate) struct Resize {
    #[command(flatten)]
    pub(crate) source: Source,
    /// The new size of the disk: 20G
    pub(crate) size: Size,
}

#[derive(Debug, Args)]
pub(crate) struct Convert {
    #[command(flatten)]
    pub(crate) source: Source,
    /// expanded, preallocated or raw
    #[arg(long, value_name = "MODE", required_unless_present = "format_version")]
    pub(crate) mode: Option<ImageMode>,
    /// v2
    #[arg(long, value_name = "VERSION")]
    pub(crate) format_version: Option<FormatVersion>,
}

#[derive(Debug, Args)]
pub(crate) struct Compact {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Change nothing, and say how much would be freed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Free also what the ext2, ext3 and ext4 file systems of the present state do not use: what is left of deleted files
    /// is gone then
    #[arg(long)]
    pub(crate) free: bool,
}

#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own for the user"
)]
pub(crate) struct Repair {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Change nothing, and say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Save what is overwritten, cut off and removed in a new file, before anything is changed. What finishes an operation
    /// that was interrupted is not in it
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    pub(crate) undo: Option<PathBuf>,
    /// Put back what the repair has changed that has written this undo file
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "dry_run", "undo", "clear_entries", "copy_shared", "rebuild_headers", "drop_extensions",
        "drop_missing", "pad_raw", "fill_holes", "remove_orphans", "geometry",
    ])]
    pub(crate) revert: Option<PathBuf>,
    /// Clear table entries that lead to no cluster: these clusters read as in the deltas below, or as zeros
    #[arg(long, help_heading = "Choices")]
    pub(crate) clear_entries: bool,
    /// Give each table entry but the first that leads to the same cluster a copy of it
    #[arg(long, help_heading = "Choices")]
    pub(crate) copy_shared: bool,
    /// Make a header anew whose signature is gone
    #[arg(long, help_heading = "Choices")]
    pub(crate) rebuild_headers: bool,
    /// Drop format extensions (bitmaps of backup programs) that are damaged or in the way
    #[arg(long, help_heading = "Choices")]
    pub(crate) drop_extensions: bool,
    /// Remove snapshots from the descriptor whose delta is missing, if nothing stands upon them
    #[arg(long, help_heading = "Choices")]
    pub(crate) drop_missing: bool,
    /// Make a raw base that was cut short as long as the disk, with zeros
    #[arg(long, help_heading = "Choices")]
    pub(crate) pad_raw: bool,
    /// Give the holes of files that were copied sparsely space
    #[arg(long, help_heading = "Choices")]
    pub(crate) fill_holes: bool,
    /// Remove deltas and temporary files beside the descriptor that no descriptor there names
    #[arg(long, help_heading = "Choices")]
    pub(crate) remove_orphans: bool,
    /// The format, the cluster size and the size of the disk that are right, as in v2,1M,64G, where a repair has named more
    /// than one geometry that is possible
    #[arg(long, help_heading = "Choices", value_name = "FORMAT,CLUSTER,SIZE")]
    pub(crate) geometry: Option<RepairGeometry>,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreDescriptor {
    /// The descriptor to make, or the directory in which DiskDescriptor.xml is to be made
    pub(crate) path: PathBuf,
    /// The deltas, the base first and the top last
    #[arg(value_name = "DELTA", required = true)]
    pub(crate) deltas: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    #[command(flatten)]
    pub(crate) source: Source,
    /// The earlier state
    #[arg(long, value_name = "GUID")]
    pub(crate) from: Guid,
    /// The later state [default: the present one]
    #[arg(long, value_name = "GUID")]
    pub(crate) to: Option<Guid>,
    /// Show files instead of parts of the disk
    #[arg(long)]
    pub(crate) files: bool,
    /// The partition with the file system, by its number [default: the only one that has any]
    #[arg(long, value_name = "NUMBER", requires = "files")]
    pub(crate) partition: Option<u32>,
    /// Read an image that is marked as in use
    #[arg(long)]
    pub(crate) in_use: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    pub(crate) state: State,
    /// The file to make, or - for the standard output
    pub(crate) out: PathBuf,
    /// The format of the file
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    pub(crate) format: Format,
    /// This partition alone, by its number
    #[arg(long, value_name = "NUMBER")]
    pub(crate) partition: Option<u32>,
    /// Replace a file that is there, if it is no delta or descriptor, and no descriptor beside it names it
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Return before the data is on the disk
    #[arg(long)]
    pub(crate) no_sync: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The bytes of the disk, with holes
    Raw,
    /// QEMU's format, which stores the clusters that have data
    Qcow2,
}
