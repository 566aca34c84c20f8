//! What a shared library (ELF) says about itself: the soname (`DT_SONAME`), by which the dynamic linker will look for it,
//! and the functions that it has.

use std::path::Path;

const DT_NULL: u64 = 0;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;
const DT_SONAME: u64 = 14;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;

#[derive(Debug)]
pub(crate) struct SharedLibrary {
    pub(crate) soname: String,
    /// The names of all its dynamic symbols, each with a zero byte at its end.
    names: Vec<u8>,
}

impl SharedLibrary {
    /// Of a 64-bit ELF file; an error says what the file is instead.
    pub(crate) fn read(file: &Path) -> Result<SharedLibrary, String> {
        let bytes =
            std::fs::read(file).map_err(|e| format!("{} cannot be read: {e}", file.display()))?;
        SharedLibrary::parse(&bytes).map_err(|what| format!("{} {what}", file.display()))
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<SharedLibrary, &'static str> {
        const BROKEN: &str = "is not a whole shared library";
        if !bytes.starts_with(b"\x7fELF") {
            return Err("is not a shared library (ELF)");
        }
        if bytes.get(4) != Some(&2) {
            return Err("is not a 64-bit shared library");
        }
        let elf = Elf {
            bytes,
            little_endian: bytes.get(5) == Some(&1),
        };
        let segments = elf.segments().ok_or(BROKEN)?;
        let dynamic = segments
            .iter()
            .find(|segment| segment.kind == PT_DYNAMIC)
            .ok_or("is no shared library")?;
        let entries = elf.dynamic_entries(dynamic).ok_or(BROKEN)?;
        let value = |wanted: u64| {
            let (_, value) = entries.iter().find(|(tag, _)| *tag == wanted)?;
            Some(*value)
        };
        let soname = value(DT_SONAME).ok_or("has no soname")?;
        let names = value(DT_STRTAB)
            .and_then(|address| {
                // The table's address is that in memory; the segment that is loaded there says where it is in the file.
                let segment = segments.iter().find(|s| {
                    s.kind == PT_LOAD && address >= s.address && address - s.address < s.size
                })?;
                let at = (address - segment.address).checked_add(segment.offset)?;
                elf.range(at, value(DT_STRSZ)?)
            })
            .ok_or(BROKEN)?;
        let soname = usize::try_from(soname).ok().and_then(|at| names.get(at..));
        let soname = soname
            .and_then(|text| text.split_inclusive(|byte| *byte == 0).next())
            .and_then(|text| text.strip_suffix(&[0]))
            .ok_or(BROKEN)?;
        Ok(SharedLibrary {
            soname: String::from_utf8(soname.to_vec()).map_err(|_| BROKEN)?,
            names: names.to_vec(),
        })
    }

    /// Whether it has a function of this name. (Names of functions that it uses are not told apart from those that it
    /// has: libploop uses none of its own names.)
    pub(crate) fn has(&self, function: &str) -> bool {
        self.names
            .split(|byte| *byte == 0)
            .any(|name| name == function.as_bytes())
    }
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

struct Elf<'a> {
    bytes: &'a [u8],
    little_endian: bool,
}

impl<'a> Elf<'a> {
    fn segments(&self) -> Option<Vec<Segment>> {
        let (start, entry, count) = (
            self.number::<8>(32)?,
            self.number::<2>(54)?,
            self.number::<2>(56)?,
        );
        (0..count)
            .map(|n| {
                let at = start.checked_add(n * entry)?;
                let number = |offset: u64| self.number::<8>(at.checked_add(offset)?);
                Some(Segment {
                    kind: u32::try_from(self.number::<4>(at)?).ok()?,
                    offset: number(8)?,
                    address: number(16)?,
                    size: number(32)?,
                })
            })
            .collect()
    }

    /// The tags and values of the dynamic segment, up to its end mark.
    fn dynamic_entries(&self, dynamic: &Segment) -> Option<Vec<(u64, u64)>> {
        let mut entries = Vec::new();
        let bytes = self.range(dynamic.offset, dynamic.size)?;
        let part = Elf {
            bytes,
            little_endian: self.little_endian,
        };
        for at in (0..bytes.len() as u64).step_by(16) {
            match part.number::<8>(at)? {
                DT_NULL => break,
                tag => entries.push((tag, part.number::<8>(at + 8)?)),
            }
        }
        Some(entries)
    }

    fn range(&self, at: u64, size: u64) -> Option<&'a [u8]> {
        let at = usize::try_from(at).ok()?;
        self.bytes
            .get(at..at.checked_add(usize::try_from(size).ok()?)?)
    }

    /// The number of `N` bytes at an offset.
    fn number<const N: usize>(&self, at: u64) -> Option<u64> {
        let mut bytes: Vec<u8> = self.range(at, N as u64)?.to_vec();
        if !self.little_endian {
            bytes.reverse();
        }
        bytes.resize(8, 0);
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }
}
