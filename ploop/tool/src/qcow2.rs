//! A qcow2 image that is being written.

use std::io;
use std::path::{Path, PathBuf};

use imago::file::File;
use imago::qcow2::{Qcow2, Qcow2CreateBuilder, Qcow2OpenBuilder};
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder as _, FormatDriverBuilder as _,
};
use ploop::Size;
use ploop::image::ExportTarget;
use tempfile::NamedTempFile;

use crate::output::{Failure, Result};

/// It gets its name when it is complete, and is gone if it is dropped before.
pub(crate) struct Qcow2File {
    image: FormatAccess<File>,
    file: NamedTempFile,
    path: PathBuf,
    overwrite: bool,
}

impl Qcow2File {
    /// For a path that [`Disk::require_other_file`](ploop::image::Disk::require_other_file) takes.
    pub(crate) fn create(path: &Path, size: Size, overwrite: bool) -> Result<Qcow2File> {
        let failed = |error: io::Error| cannot("be created", path, &error);
        let dir = match path.parent() {
            Some(dir) if dir != Path::new("") => dir,
            _ => Path::new("."),
        };
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(path.file_name().unwrap_or_default());
        prefix.push(".");
        let file = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".partial")
            .tempfile_in(dir)
            .map_err(failed)?;
        let storage = File::try_from(file.reopen().map_err(failed)?).map_err(failed)?;
        let open = |storage| Ok(Qcow2OpenBuilder::<File>::new(storage).write(true));
        let image: Qcow2<File> = Qcow2CreateBuilder::<File>::new(storage)
            .size(size.bytes())
            .create_open(DenyImplicitOpenGate::default(), open)
            .map_err(failed)?;
        Ok(Qcow2File {
            image: FormatAccess::new(image),
            file,
            path: path.to_owned(),
            overwrite,
        })
    }

    /// Writes what is left of the tables, and gives the file its name.
    pub(crate) fn publish(self, sync: bool) -> Result<()> {
        let failed = |error: io::Error| cannot("be written", &self.path, &error);
        self.image.flush().map_err(failed)?;
        if sync {
            self.image.sync().map_err(failed)?;
        }
        drop(self.image);
        let named = if self.overwrite {
            self.file.persist(&self.path)
        } else {
            self.file.persist_noclobber(&self.path)
        };
        match named {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                Err(is_there(&self.path))
            }
            Err(error) => Err(cannot("be named", &self.path, &error.error)),
        }
    }
}

impl ExportTarget for Qcow2File {
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.image.write(data, offset)
    }
}

fn is_there(path: &Path) -> Failure {
    Failure::Request(format!(
        "{}: a file of that name is there already",
        path.display()
    ))
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::Request(format!("{} cannot {what}: {error}", path.display()))
}
