//! `cat`.

use std::io::Write;
use std::process::ExitCode;

use crate::cli::Cat;
use crate::contents::Contents;
use crate::file_system::{FileSystem, Kind, Node};
use crate::output::{Failure, Result, raw_stdout};

pub(crate) fn run(cat: &Cat) -> Result {
    let file_system = FileSystem::open(&cat.file_system)?;
    let mut out = raw_stdout()?;
    cat.file_system.state.require_other_output(&out)?;
    for path in &cat.files {
        let node = file_system.find(path, true)?;
        if node.kind() != Some(Kind::File) {
            return Err(Failure::Request(format!(
                "{}: this is no regular file",
                path.display()
            )));
        }
        if node.is_encrypted() {
            return Err(Failure::Request(format!(
                "{}: this file is encrypted, and the key is not in the image",
                path.display()
            )));
        }
        write_contents(&file_system, &node, &mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the whole of a file, holes as zeros.
fn write_contents(file_system: &FileSystem, node: &Node, out: &mut impl Write) -> Result<()> {
    let inline = file_system.inline_data(node)?.unwrap_or_default();
    out.write_all(&inline)?;
    let runs = file_system.data(node)?;
    let range = inline.len() as u64..node.inode.size;
    Contents::new(file_system, &runs, range).for_each(|_, part| Ok(out.write_all(part)?))
}
