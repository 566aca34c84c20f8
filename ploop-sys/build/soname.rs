//! The soname of a shared library (`DT_SONAME`): what the dynamic linker will look for, and so the ABI of what is linked.

use std::path::Path;

const DT_NULL: u64 = 0;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;

/// The soname of a 64-bit ELF file; an error says what the file is instead.
pub(crate) fn of(file: &Path) -> Result<String, String> {
    let bytes =
        std::fs::read(file).map_err(|e| format!("{} cannot be read: {e}", file.display()))?;
    parse(&bytes).map_err(|what| format!("{} {what}", file.display()))
}

fn parse(bytes: &[u8]) -> Result<String, &'static str> {
    const BROKEN: &str = "is not a whole shared library";
    if !bytes.starts_with(b"\x7fELF\x02") {
        return Err("is not a 64-bit shared library (ELF)");
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
    let entries: Vec<(u64, u64)> = (0..dynamic.size / 16)
        .map_while(|n| {
            let at = dynamic.offset.checked_add(n * 16)?;
            Some((elf.number::<8>(at)?, elf.number::<8>(at.checked_add(8)?)?))
        })
        .take_while(|(tag, _)| *tag != DT_NULL)
        .collect();
    let value = |wanted: u64| {
        let (_, value) = entries.iter().find(|(tag, _)| *tag == wanted)?;
        Some(*value)
    };
    let name = value(DT_SONAME).ok_or("has no soname")?;
    // The table's address is that in memory; the segment that is loaded there says where it is in the file.
    let table = value(DT_STRTAB).ok_or(BROKEN)?;
    let segment = segments
        .iter()
        .find(|s| s.kind == PT_LOAD && table >= s.address && table - s.address < s.size)
        .ok_or(BROKEN)?;
    let at = (table - segment.address)
        .checked_add(segment.offset)
        .and_then(|at| at.checked_add(name))
        .and_then(|at| usize::try_from(at).ok())
        .ok_or(BROKEN)?;
    let text = bytes.get(at..).ok_or(BROKEN)?;
    let end = text.iter().position(|byte| *byte == 0).ok_or(BROKEN)?;
    String::from_utf8(text[..end].to_vec()).map_err(|_| BROKEN)
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

impl Elf<'_> {
    fn segments(&self) -> Option<Vec<Segment>> {
        let (start, entry, count) = (
            self.number::<8>(32)?,
            self.number::<2>(54)?,
            self.number::<2>(56)?,
        );
        (0..count)
            .map(|n| {
                let at = start.checked_add(n * entry)?;
                Some(Segment {
                    kind: self.number::<4>(at)? as u32,
                    offset: self.number::<8>(at + 8)?,
                    address: self.number::<8>(at + 16)?,
                    size: self.number::<8>(at + 32)?,
                })
            })
            .collect()
    }

    /// The number of `N` bytes at an offset.
    fn number<const N: usize>(&self, at: u64) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let mut bytes: Vec<u8> = self.bytes.get(at..at.checked_add(N)?)?.to_vec();
        if !self.little_endian {
            bytes.reverse();
        }
        bytes.resize(8, 0);
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }
}
