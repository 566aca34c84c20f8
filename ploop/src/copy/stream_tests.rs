//! The stream of a copy: what is sent arrives, and what is damaged is found. Beside the file that the fuzz target includes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::stream::*;

/// A file in memory, which refuses positions that no stream of these tests has.
#[derive(Debug, Default, PartialEq)]
struct Memory {
    bytes: Vec<u8>,
    syncs: usize,
}

#[derive(Debug, PartialEq)]
struct TooFar;

const END: usize = 1 << 16;

impl Target for Memory {
    type Error = TooFar;

    fn write(&mut self, bytes: &[u8], position: u64) -> Result<(), TooFar> {
        let end = position + bytes.len() as u64;
        if end > END as u64 {
            return Err(TooFar);
        }
        let (start, end) = (position as usize, end as usize);
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), TooFar> {
        self.syncs += 1;
        Ok(())
    }
}

type Received = (Memory, Result<(), ReceiveError<TooFar>>);

fn received(mut stream: &[u8], memory: usize) -> Received {
    let mut target = Memory::default();
    let result = receive(&mut stream, &mut vec![0; memory], &mut target);
    (target, result)
}

fn streams() -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
    vec((0..60_000u64, vec(any::<u8>(), 1..3000)), 0..8)
}

fn stream_of(blocks: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (position, data) in blocks {
        stream.extend(header(data.len() as u32, *position));
        stream.extend(data);
    }
    stream.extend(header(0, 0));
    stream
}

proptest! {
    /// Whatever is sent arrives, with as little memory as there is.
    #[test]
    fn what_is_sent_arrives(blocks in streams(), memory in 1..5000usize) {
        let mut expected = Memory::default();
        for (position, data) in &blocks {
            match data.len() {
                SYNC => expected.syncs += 1,
                _ => expected.write(data, *position).unwrap(),
            }
        }
        let (found, result) = received(&stream_of(&blocks), memory);
        prop_assert!(result.is_ok());
        prop_assert_eq!(found, expected);
    }

    /// A stream that is cut off anywhere is not taken for a whole one.
    #[test]
    fn what_is_cut_off_is_not_whole(blocks in streams(), cut in any::<prop::sample::Index>()) {
        let stream = stream_of(&blocks);
        let (_, result) = received(&stream[..cut.index(stream.len())], 100);
        prop_assert!(matches!(result, Err(ReceiveError::Ended)), "{result:?}");
    }

    /// Changed bytes change contents, or are found; they do nothing else.
    #[test]
    fn what_is_damaged_does_no_harm(
        blocks in streams(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut stream = stream_of(&blocks);
        for (at, byte) in changes {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        let (found, result) = received(&stream, 100);
        prop_assert!(found.bytes.len() <= END);
        if let Err(ReceiveError::Corrupt(offset)) = result {
            prop_assert!(offset < stream.len() as u64);
        }
    }

    #[test]
    fn noise_is_no_stream(stream in vec(any::<u8>(), 0..2000)) {
        prop_assert!(received(&stream, 100).1.is_err());
    }
}

#[test]
fn a_header_has_16_bytes_in_the_order_of_libploop() {
    let bytes = header(0x0102_0304, 0x1112_1314_1516_1718);
    let mut expected = 0x4cc0_ac3du32.to_ne_bytes().to_vec();
    expected.extend(0x0102_0304u32.to_ne_bytes());
    expected.extend(0x1112_1314_1516_1718u64.to_ne_bytes());
    assert_eq!(bytes.as_slice(), expected);
}

#[test]
fn other_kinds_are_told_apart() {
    let of = |marker: u32| OtherStream::of(marker.to_ne_bytes());
    assert_eq!(of(MARKER), None);
    assert_eq!(of(PACKET_MARKER), Some(OtherStream::Packets));
    assert_eq!(of(PACKET_MARKER.swap_bytes()), Some(OtherStream::Packets));
    assert_eq!(of(MARKER.swap_bytes()), Some(OtherStream::OtherByteOrder));
    assert_eq!(of(0), Some(OtherStream::Unknown));
}
