//! GUIDs are unique: in all threads, and in a process and its fork.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::thread;

use ploop::Guid;

use crate::pipe::pipe;

const COUNT: usize = 10_000;

#[test]
fn threads_make_no_guid_twice() {
    let threads: Vec<_> = (0..8)
        .map(|_| thread::spawn(|| (0..COUNT).map(|_| Guid::generate()).collect::<Vec<_>>()))
        .collect();
    let all: Vec<Guid> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    for guid in &all {
        assert_eq!(guid.as_uuid().get_version_num(), 4);
        assert_eq!(guid.as_uuid().get_variant(), uuid::Variant::RFC4122);
    }
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
}

/// If the process kept anything for its next GUID, the fork would make the same GUID from it.
#[test]
fn a_fork_makes_none_of_its_parents() {
    for made_before in [0, 1, 255] {
        for _ in 0..made_before {
            let _ = Guid::generate();
        }
        let (mut from_child, mut to_parent) = pipe();
        // SAFETY: the child makes GUIDs without allocating, and ends.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let sent = (0..COUNT)
                .try_for_each(|_| to_parent.write_all(Guid::generate().as_uuid().as_bytes()));
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(i32::from(sent.is_err())) };
        }
        drop(to_parent);
        let mine: HashSet<Guid> = (0..COUNT).map(|_| Guid::generate()).collect();
        let mut bytes = Vec::new();
        from_child.read_to_end(&mut bytes).unwrap();
        let mut status = 0;
        // SAFETY: the child is this test's own; `status` outlives the call.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        let theirs: HashSet<Guid> = bytes
            .chunks_exact(16)
            .map(|bytes| uuid::Uuid::from_slice(bytes).unwrap().into())
            .collect();
        assert_eq!((mine.len(), theirs.len()), (COUNT, COUNT));
        assert!(mine.is_disjoint(&theirs));
    }
}
