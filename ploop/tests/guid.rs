//! GUIDs are unique: in all threads, and in a process and its fork.
#![cfg(feature = "libploop")]

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::thread;

use ploop::Guid;

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

/// Whatever were kept in the process for the next GUID, its copy would make the same one of.
#[test]
fn a_fork_makes_none_of_its_parents() {
    for made_before in [0, 1, 255] {
        for _ in 0..made_before {
            let _ = Guid::generate();
        }
        let mut ends = [0; 2];
        // SAFETY: there is room for two descriptors, which are owned by one `File` each; the child
        // uses the one, makes GUIDs without allocating, and ends.
        let (child, mut from_child) = unsafe {
            assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
            let child = libc::fork();
            assert!(child >= 0);
            if child == 0 {
                let mut to_parent = File::from_raw_fd(ends[1]);
                for _ in 0..COUNT {
                    if to_parent
                        .write_all(Guid::generate().as_uuid().as_bytes())
                        .is_err()
                    {
                        libc::_exit(1);
                    }
                }
                libc::_exit(0);
            }
            libc::close(ends[1]);
            (child, File::from_raw_fd(ends[0]))
        };
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
