//! Extended attributes as ext4 stores them (`struct ext4_xattr_entry`), for names that are not UTF-8: the library takes
//! these for damage. It has checked the checksum of the block by then.

use fs_ext4::ea_inode::read_value_inode;
use fs_ext4::error::Error as Ext4Error;
use fs_ext4::xattr::{EXT4_XATTR_MAGIC, prefix_for_index};
use fs_ext4::{Filesystem, inode::Inode};

/// A name in bytes, with its prefix, and the value.
pub(crate) type Attribute = (Vec<u8>, Vec<u8>);

/// The size of an inode of ext2, behind which are the length of its further fields, these, and the attributes.
const OLD_INODE: usize = 128;
/// The header of a block with attributes.
const BLOCK_HEADER: usize = 32;
/// An entry without its name.
const ENTRY: usize = 16;

const DAMAGED: Ext4Error = Ext4Error::Corrupt("an attribute leads out of its place");

/// The attributes in the inode, and those in its block.
pub(crate) fn read(
    library: &Filesystem,
    inode: &Inode,
    raw: &[u8],
) -> fs_ext4::Result<Vec<Attribute>> {
    let mut found = Vec::new();
    let further = raw.get(OLD_INODE..OLD_INODE + 2);
    let further = further.map_or(0, |it| usize::from(u16::from_le_bytes([it[0], it[1]])));
    let end = raw.len().min(library.sb.inode_size.into());
    if let Some(place) = raw.get(OLD_INODE + further..end).filter(|_| further != 0) {
        if number(place, 0).is_ok_and(|it| it == EXT4_XATTR_MAGIC) {
            read_entries(library, &place[4..], 0, &mut found)?;
        }
    }
    if inode.file_acl != 0 {
        let block = library.read_block(inode.file_acl)?;
        read_entries(library, &block, BLOCK_HEADER, &mut found)?;
    }
    Ok(found)
}

/// Reads entries from `at` on, up to one that is zero. Values are counted from the start of `place`.
fn read_entries(
    library: &Filesystem,
    place: &[u8],
    mut at: usize,
    found: &mut Vec<Attribute>,
) -> fs_ext4::Result<()> {
    while at + ENTRY <= place.len() && number(place, at)? != 0 {
        let name = at + ENTRY..at + ENTRY + usize::from(place[at]);
        let prefix = prefix_for_index(place[at + 1]).unwrap_or_default();
        let start = usize::from(u16::from_le_bytes([place[at + 2], place[at + 3]]));
        let (inode, len) = (number(place, at + 4)?, number(place, at + 8)?);
        let value = match (inode, len) {
            (0, 0) => Vec::new(),
            (0, len) => {
                let end = start.saturating_add(len as usize);
                place.get(start..end).ok_or(DAMAGED)?.to_vec()
            }
            (inode, len) => read_value_inode(library, inode, len)?,
        };
        at = name.end.next_multiple_of(4);
        let name = place.get(name).ok_or(DAMAGED)?;
        found.push(([prefix.as_bytes(), name].concat(), value));
    }
    Ok(())
}

fn number(place: &[u8], at: usize) -> fs_ext4::Result<u32> {
    let bytes = place.get(at..at + 4).and_then(|it| it.try_into().ok());
    bytes.map(u32::from_le_bytes).ok_or(DAMAGED)
}
