//! `cat`.

use std::io::Write;
use std::process::ExitCode;

use crate::cli::Cat;
use crate::file_system::{FileSystem, Kind, Node};
use crate::output::{Failure, Result, raw_stdout};

const BUFFER: usize = 512 << 10;

pub(crate) fn run(cat: &Cat) -> Result {
    let file_system = FileSystem::open(&cat.file_system)?;
    let mut out = raw_stdout()?;
    for path in &cat.files {
        let node = file_system.find(path, true)?;
        if node.kind() != Some(Kind::File) {
            return Err(Failure::Request(format!(
                "{}: this is no regular file",
                path.display()
            )));
        }
        write_contents(&file_system, &node, &mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the whole of a file, holes as zeros.
fn write_contents(file_system: &FileSystem, node: &Node, out: &mut impl Write) -> Result<()> {
    let mut at = 0;
    let zeros = vec![0; BUFFER];
    let fill = |out: &mut dyn Write, at: &mut u64, to: u64| -> Result<()> {
        while *at < to {
            let part = (to - *at).min(BUFFER as u64);
            out.write_all(&zeros[..part as usize])?;
            *at += part;
        }
        Ok(())
    };
    if let Some(data) = file_system.inline_data(node)? {
        out.write_all(&data)?;
        at = data.len() as u64;
    }
    let mut buffer = vec![0; BUFFER];
    for run in file_system.data(node)? {
        fill(out, &mut at, run.offset)?;
        let mut from = 0;
        while from < run.len {
            let part = &mut buffer[..(run.len - from).min(BUFFER as u64) as usize];
            file_system.read_run(&run, from, part)?;
            out.write_all(part)?;
            from += part.len() as u64;
        }
        at = run.offset + run.len;
    }
    fill(out, &mut at, node.inode.size)
}
