//! `ploop-image`: ploop images without the driver.

mod archive;
mod cat;
mod changed_parts;
mod check;
mod cli;
mod compact;
mod contents;
mod convert;
mod copy;
mod create;
mod diff;
mod export;
mod file_changes;
mod file_system;
mod free_space;
mod info;
mod list;
mod long_list;
mod map;
mod mount;
mod output;
mod progress;
mod qcow2;
mod repair;
mod snapshots;
mod source;
mod stored_attributes;
mod streams;

use std::process::ExitCode;

use clap::Parser as _;
use cli::{Cli, Command};
use output::Output;

/// The status of a command that could not do what it was asked to.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    // Before a wrong option is an error.
    if let Err(failure) = streams::require_no_image_file() {
        Output::new(false, false).failure(&failure);
        return ExitCode::from(FAILED);
    }
    let cli = Cli::parse();
    let output = Output::new(cli.json, cli.quiet);
    if let Err(error) = progress::survive_file_size_limit() {
        output.failure(&error.into());
        return ExitCode::from(FAILED);
    }
    let result = match &cli.command {
        Command::Info(source) => info::run(source, &output),
        Command::Check(source) => check::run(source, &output),
        Command::Map(state) => map::run(state, &output),
        Command::Diff(diff) => diff::run(diff, &output),
        Command::Export(export) => export::run(export, &output),
        Command::Mount(mount) => mount::run(mount, &output),
        Command::Ls(list) => file_system::guarded(|| list::run(list, &output)),
        Command::Cat(cat) => file_system::guarded(|| cat::run(cat)),
        Command::Cp(copy) => file_system::guarded(|| copy::run(copy, &output)),
        Command::Tar(tar) => file_system::guarded(|| archive::run(tar, &output)),
        Command::Create(create) => create::create(create, &output),
        Command::Import(import) => create::import(import, &output),
        Command::Snapshot(snapshot) => snapshots::snapshot(snapshot, &output),
        Command::Switch(switch) => snapshots::switch(switch, &output),
        Command::Delete(delete) => snapshots::delete(delete, &output),
        Command::Merge(merge) => snapshots::merge(merge, &output),
        Command::Resize(resize) => convert::resize(resize),
        Command::Convert(convert) => convert::convert(convert, &output),
        Command::Compact(compact) => compact::run(compact, &output),
        Command::Repair(repair) => repair::run(repair, &output),
        Command::RestoreDescriptor(restore) => repair::restore_descriptor(restore, &output),
    };
    match result {
        Ok(status) => status,
        // Whoever reads the output has seen enough, and knows: `ploop-image map … | head`. For all others, not all was
        // done.
        Err(failure) if failure.is_closed_pipe() => ExitCode::from(FAILED),
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(FAILED)
        }
    }
}
