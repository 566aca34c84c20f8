//! A system call filter (seccomp) for `ploop_discard`, which may kill every process (hazard 22).
//!
//! When `fork` fails inside `ploop_discard`, libploop passes its result, -1, to `kill` with SIGKILL, and every process
//! that the caller may signal dies. It also passes -1 to `waitpid`, and takes the end of any child for the end of its
//! own. So in the process of a discard, the filter answers `kill(-1, …)` with EPERM and `wait4(-1, …)` with ECHILD.

use std::io;
use std::mem::offset_of;

/// The distance of a BPF jump to the next instruction.
const NEXT: u8 = 0;

fn statement(code: u32, k: u32) -> libc::sock_filter {
    jump(code, k, NEXT, NEXT)
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        // The kernel's field has 16 bits, and all codes fit.
        code: code as u16,
        jt,
        jf,
        k,
    }
}

/// Installs the filter for the calling thread and the children it forks. It cannot be taken off.
pub(super) fn install() -> io::Result<()> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    // The process number is an `int`: the lower half of the 64 bits of an argument.
    const PID: u32 = offset_of!(libc::seccomp_data, args) as u32
        + if cfg!(target_endian = "big") { 4 } else { 0 };
    let program = [
        statement(LOAD, offset_of!(libc::seccomp_data, nr) as u32),
        jump(IF_EQUAL, libc::SYS_kill as u32, NEXT, 3),
        statement(LOAD, PID),
        jump(IF_EQUAL, u32::MAX, NEXT, 5),
        statement(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        jump(IF_EQUAL, libc::SYS_wait4 as u32, NEXT, 3),
        statement(LOAD, PID),
        jump(IF_EQUAL, u32::MAX, NEXT, 1),
        statement(RETURN, libc::SECCOMP_RET_ERRNO | libc::ECHILD as u32),
        statement(RETURN, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `filter` points to `program`, which outlives the call; the kernel copies it. The filter is for this
    // thread only. Without CAP_SYS_ADMIN, a thread may install one after PR_SET_NO_NEW_PRIVS: the programs it starts
    // then gain no privileges, and libploop's tools need none.
    let installed = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const filter,
        ) == 0
            || (libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(
                    libc::PR_SET_SECCOMP,
                    libc::SECCOMP_MODE_FILTER,
                    &raw const filter,
                ) == 0)
    };
    if installed {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn without_kill_all<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| scope.spawn(|| install().map(|()| f())).join().unwrap())
    }

    #[test]
    fn everybody_cannot_be_signalled_but_somebody_can() {
        let (everybody, myself) = without_kill_all(|| {
            // SAFETY: signal 0 only asks whether the signal could be sent.
            unsafe {
                let everybody = libc::kill(-1, 0);
                let why = io::Error::last_os_error().raw_os_error();
                ((everybody, why), libc::kill(libc::getpid(), 0))
            }
        })
        .unwrap();
        assert_eq!(everybody, (-1, Some(libc::EPERM)));
        assert_eq!(myself, 0);
        // SAFETY: as above. The thread that called is not filtered.
        assert_eq!(unsafe { libc::kill(-1, 0) }, 0);
    }

    #[test]
    fn no_child_of_others_is_waited_for_but_one_s_own_is() {
        let mut other = std::process::Command::new("true").spawn().unwrap();
        let ended = without_kill_all(|| {
            let mut status = 0;
            // SAFETY: `status` outlives the call.
            let any = unsafe { libc::waitpid(-1, &mut status, 0) };
            let why = io::Error::last_os_error().raw_os_error();
            assert_eq!((any, why), (-1, Some(libc::ECHILD)));
            std::process::Command::new("true").status().unwrap()
        });
        assert!(ended.unwrap().success());
        assert!(other.wait().unwrap().success());
    }
}
