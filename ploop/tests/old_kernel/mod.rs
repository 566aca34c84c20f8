//! The running kernel, made to look as old as the oldest on which the library runs: that of OpenVZ 6 (2.6.32), or with
//! libploop 7 that of Virtuozzo 7 (3.10). What came later fails as it would there.
//!
//! A system call filter does it, which a program keeps over `exec`. So a test runs its own program once
//! more under the filter: everything that was tested is tested on an old kernel.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use libc::{c_long, sock_filter};

/// Whether it looks like the kernel of Virtuozzo 7, not like that of OpenVZ 6.
const IS_3_10: bool = cfg!(libploop_line = "7");

/// Set where this program runs under the filter.
const VARIABLE: &str = "PLOOP_TEST_OLD_KERNEL";

/// Runs the tests of this program again, with these arguments. The test that calls this makes sure then
/// that the kernel looks old.
pub(crate) fn run_again(arguments: &[&str]) {
    if std::env::var_os(VARIABLE).is_some() {
        return assert_old();
    }
    let filter = filter();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(arguments)
        .env(VARIABLE, "1")
        .stdin(Stdio::null());
    // SAFETY: between `fork` and `exec` there are but two system calls, and memory that was there before.
    unsafe { command.pre_exec(move || install(&filter)) };
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let result = text
        .lines()
        .find(|line| line.starts_with("test result: ok. "));
    let count = |what: &str| {
        let part = result?
            .split([';', '.'])
            .find(|part| part.ends_with(what))?;
        part.split_whitespace().next()?.parse::<usize>().ok()
    };
    // Where nothing but the names of tests is left out, each is one that there is.
    let skips = arguments.iter().filter(|word| **word == "--skip").count();
    let found = 2 * skips < arguments.len() || count(" filtered out") >= Some(skips);
    assert!(
        output.status.success() && count(" passed") > Some(1) && found,
        "on an old kernel: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// System calls that came between Linux 2.6.32 and 3.10. Not `prlimit64`, which libc takes for granted, nor
/// `syncfs`, which only the tests call.
const LATER_THAN_2_6_32: [c_long; 8] = [
    libc::SYS_finit_module,
    libc::SYS_kcmp,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_sendmmsg,
    libc::SYS_setns,
];

/// Arguments that came later: a system call, the number of its argument, and what the argument may not be.
fn later_arguments() -> Vec<(c_long, u32, Unknown, i32)> {
    use Unknown::{Any, Value};

    let mut fallocate = libc::FALLOC_FL_KEEP_SIZE;
    if IS_3_10 {
        fallocate |= libc::FALLOC_FL_PUNCH_HOLE;
    }

    let tmpfile = (libc::O_TMPFILE & !libc::O_DIRECTORY) as u32;
    let mut rules = vec![
        // The kernel sees a directory that is opened for writing.
        (libc::SYS_openat, 2, Any(tmpfile), libc::EISDIR),
        (
            libc::SYS_fallocate,
            1,
            Any(!fallocate as u32),
            libc::EOPNOTSUPP,
        ),
    ];
    #[cfg(target_arch = "x86_64")]
    rules.push((libc::SYS_open, 1, Any(tmpfile), libc::EISDIR));
    for value in [libc::F_OFD_GETLK, libc::F_OFD_SETLK, libc::F_OFD_SETLKW] {
        rules.push((libc::SYS_fcntl, 1, Value(value as u32), libc::EINVAL));
    }
    if IS_3_10 {
        return rules;
    }
    let pid_namespace = Any(libc::CLONE_NEWPID as u32);
    rules.push((libc::SYS_unshare, 0, pid_namespace, libc::EINVAL));
    for (call, number, value) in [
        (libc::SYS_lseek, 2, libc::SEEK_DATA),
        (libc::SYS_lseek, 2, libc::SEEK_HOLE),
        (libc::SYS_prctl, 0, libc::PR_SET_SECCOMP),
        (libc::SYS_prctl, 0, libc::PR_SET_NO_NEW_PRIVS),
        (libc::SYS_prctl, 0, libc::PR_SET_CHILD_SUBREAPER),
    ] {
        rules.push((call, number, Value(value as u32), libc::EINVAL));
    }
    rules
}

enum Unknown {
    /// One of these bits.
    Any(u32),
    Value(u32),
}

fn filter() -> Vec<sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let statement = |code: u32, k: u32| sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let if_not = |test: u32, k: u32, skip: u8| sock_filter {
        code: (libc::BPF_JMP | test | libc::BPF_K) as u16,
        jt: 0,
        jf: skip,
        k,
    };
    let fail = |errno: i32| statement(RETURN, libc::SECCOMP_RET_ERRNO | errno as u32);
    let argument = |number: u32| {
        let lower_half = if cfg!(target_endian = "big") { 4 } else { 0 };
        offset_of!(libc::seccomp_data, args) as u32 + 8 * number + lower_half
    };

    let mut program = vec![statement(LOAD, offset_of!(libc::seccomp_data, nr) as u32)];
    program.extend([
        // The last one before Linux 3.10; the numbers of later ones are higher on every architecture.
        if_not(libc::BPF_JGT, libc::SYS_finit_module as u32, 1),
        fail(libc::ENOSYS),
    ]);
    let later = if IS_3_10 { &[][..] } else { &LATER_THAN_2_6_32 };
    for call in later.iter().copied() {
        program.extend([if_not(libc::BPF_JEQ, call as u32, 1), fail(libc::ENOSYS)]);
    }
    for (call, number, unknown, errno) in later_arguments() {
        let (test, k) = match unknown {
            Unknown::Any(bits) => (libc::BPF_JSET, bits),
            Unknown::Value(value) => (libc::BPF_JEQ, value),
        };
        program.extend([
            statement(LOAD, offset_of!(libc::seccomp_data, nr) as u32),
            if_not(libc::BPF_JEQ, call as u32, 3),
            statement(LOAD, argument(number)),
            if_not(test, k, 1),
            fail(errno),
        ]);
    }
    program.push(statement(RETURN, libc::SECCOMP_RET_ALLOW));
    program
}

fn install(program: &[sock_filter]) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `filter` names `program`, which is alive for the call; the kernel copies it.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const filter,
            ) == 0
    };
    if installed {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn assert_old() {
    let file = tempfile::tempfile().unwrap();
    let fd = file.as_raw_fd();
    let directory = c"/".as_ptr();
    // SAFETY: the path is terminated; apart from it no memory is concerned.
    let failures = unsafe {
        [
            error_of(|| libc::syscall(libc::SYS_renameat2, -1, 0, -1, 0, 0)),
            error_of(|| libc::syscall(libc::SYS_setns, -1, 0)),
            error_of(|| libc::open(directory, libc::O_TMPFILE | libc::O_RDWR, 0o600).into()),
            error_of(|| libc::lseek(fd, 0, libc::SEEK_HOLE)),
            error_of(|| libc::fallocate(fd, libc::FALLOC_FL_ZERO_RANGE, 0, 1).into()),
            error_of(|| libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into()),
        ]
    };
    let (setns, hole, privileges) = if IS_3_10 {
        (libc::EBADF, libc::ENXIO, None)
    } else {
        (libc::ENOSYS, libc::EINVAL, Some(libc::EINVAL))
    };
    let expected = [
        Some(libc::ENOSYS),
        Some(setns),
        Some(libc::EISDIR),
        Some(hole),
        Some(libc::EOPNOTSUPP),
        privileges,
    ];
    assert_eq!(failures, expected);
}

fn error_of(call: impl FnOnce() -> c_long) -> Option<i32> {
    match call() {
        -1 => io::Error::last_os_error().raw_os_error(),
        _ => None,
    }
}
