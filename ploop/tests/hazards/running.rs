//! What libploop does to images that run.

use std::ffi::{CStr, c_char};
use std::fs::{self, File};
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ploop::image::Header;
use ploop::{
    Code, ComponentName, CreateParam, DiscardParam, ErrorKind, Guid, MergeParam, MergeTarget,
    MountParam, Ploop, ReplaceFlag, ReplaceParam, ReplaceTarget, ResizeMode, Size, SwitchFlag,
    copy, device, sys,
};

use rustix::mount::{UnmountFlags, unmount};

use crate::fixture::child::child;
use crate::fixture::disk::{self, Immutable};
use crate::fixture::harness::{Need, Test};
use crate::fixture::line::{by_line, is_7, is_since, refuses_raw_bases, writes_to_check};
use crate::fixture::pipe::pipe;
use crate::fixture::refused::refused;
use crate::fixture::{mounts, raw};
use crate::tests;

const NEEDS: &[Need] = &[Need::Driver, Need::Root];

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            h0_12_h4_23_a_busy_mount_point_that_a_shell_obeys,
            h0_14_h4_28_the_running_top_in_upper_case,
            h0_15_h4_28_the_running_top_is_not_looked_for,
            h0_18_h4_20_an_online_merge_closes_standard_input,
            h0_19_h4_22_a_discard_that_cannot_fork,
            h4_11_a_length_of_zero_is_no_bound,
            h4_12_a_result_without_terminator,
            h4_14_names_of_devices_are_cut,
            h4_17_a_merge_whose_program_is_gone,
            h4_18_sending_fails,
            ha_16_an_image_that_runs_under_a_name,
            ha_16_a_delta_is_attached_twice,
            ha_17_a_raw_image_loses_its_end,
            ha_18_no_limit_is_no_room,
            ha_19_a_device_that_is_being_attached_keeps_its_name,
            ha_26_a_read_only_device_has_the_delta,
            ha_64_another_descriptor_is_put_back;
        &[Need::Driver, Need::Root, Need::Mounts] =>
            ha_55_deltas_that_are_mounted_on_files,
            ha_20_the_top_runs_by_another_path,
            ha_20_the_top_runs_where_nobody_sees_it,
            ha_58_something_is_mounted_on_top,
            ha_65_where_sysfs_is_not_mounted,
            h0_03_h4_21_the_second_program_of_a_missing_tool,
            h4_16_a_mount_point_overflows_a_buffer;
        &[Need::Driver, Need::Root, Need::ImmutableFiles] =>
            ha_3_replace_of_a_running_image_reports_success;
    ]
}

/// What the raw part leaves behind is a free device with a name, which the next image that is attached gets.
pub(crate) fn last() -> Vec<Test> {
    tests![
        &[Need::Driver, Need::Root, Need::Mounts, Need::Alone] =>
            ha_19_a_name_stays_with_a_free_device;
    ]
}

/// libploop gives each file system a journal of 128 MiB, and no more than half may go into that.
const SIZE: Size = Size::from_mib(288);

fn target(dir: &Path) -> PathBuf {
    dir.join("mnt")
}

fn mount_param(dir: &Path) -> MountParam {
    MountParam::new().target(target(dir))
}

/// An image with a file system.
fn create(dir: &Path) -> Ploop {
    fs::create_dir(target(dir)).unwrap();
    Ploop::create(&CreateParam::new(dir.join("root.hds"), SIZE)).unwrap()
}

/// One that is mounted, with a file.
fn running(dir: &Path) -> Ploop {
    let mut image = create(dir);
    image.mount(&mount_param(dir)).unwrap();
    write(dir, "first");
    image
}

/// A file that consists of its name.
fn write(dir: &Path, name: &str) {
    let file = File::create(target(dir).join(name)).unwrap();
    file.write_all_at(name.repeat(100_000).as_bytes(), 0)
        .unwrap();
    file.sync_all().unwrap();
}

#[track_caller]
fn assert_files(dir: &Path, names: &[&str]) {
    for name in names {
        let bytes = fs::read(target(dir).join(name)).unwrap();
        assert!(bytes == name.repeat(100_000).as_bytes(), "{name} differs");
    }
}

/// Unmounts, looks once more, and unmounts.
#[track_caller]
fn assert_files_at_the_end(dir: &Path, image: &mut Ploop, names: &[&str]) {
    assert_files(dir, names);
    image.umount().unwrap();
    let report = ploop::image::check(disk::descriptor(dir));
    assert!(report.is_sound(), "{report}");
    let guard = image.mount_guard(&mount_param(dir).fsck(true)).unwrap();
    assert_files(dir, names);
    guard.umount().unwrap();
}

fn handle(dir: &Path) -> raw::Handle {
    raw::Handle::open(&disk::descriptor(dir))
}

/// What a part left attached.
fn detach(dir: &Path) {
    let Ok(image) = Ploop::open(disk::descriptor(dir)) else {
        return;
    };
    for device in image.devices().unwrap() {
        device::umount(device).unwrap();
    }
}

/// A part that succeeds. What it left attached is detached afterwards.
#[track_caller]
fn part(name: &str, body: impl FnOnce(&Path)) {
    child(name, body).left(detach).succeeded();
}

#[track_caller]
fn busy<T: std::fmt::Debug>(result: ploop::Result<T>) {
    let error = refused(result, ErrorKind::Busy);
    assert!(error.message().contains("/dev/ploop"), "{error}");
}

/// With `SKIP_CREATE` nobody looks whether the image runs, and its top delta is taken out of the
/// descriptor; the driver keeps the file, and libploop reports success. What is written from then on is
/// lost. The crate looks.
fn h0_15_h4_28_the_running_top_is_not_looked_for() {
    part("raw", |dir| {
        let mut image = running(dir);
        let snapshot = image.snapshot().unwrap();
        write(dir, "second");
        let top = image.top_delta_file().unwrap();
        let flags = sys::PLOOP_SNAP_SKIP_TOPDELTA_CREATE;
        assert_eq!(handle(dir).switch(&snapshot.to_string(), flags), 0);
        assert_lost(&mut image, &top);
        // It still runs on that file.
        assert_files(dir, &["first", "second"]);
        detach(dir);
        let guard = image.mount_guard(&mount_param(dir)).unwrap();
        assert_files(dir, &["first"]);
        assert!(!target(dir).join("second").exists());
        guard.umount().unwrap();
    });
    part("safe", |dir| {
        let mut image = running(dir);
        let snapshot = image.snapshot().unwrap();
        write(dir, "second");
        for flags in [
            SwitchFlag::empty(),
            SwitchFlag::SKIP_CREATE,
            SwitchFlag::SKIP_DESTROY,
        ] {
            busy(image.switch_snapshot_with(snapshot, flags));
        }
        assert_files_at_the_end(dir, &mut image, &["first", "second"]);
    });
}

/// The file is there, and the descriptor does not name it.
#[track_caller]
fn assert_lost(image: &mut Ploop, delta: &Path) {
    assert!(delta.exists());
    let images = image.descriptor().unwrap().images;
    assert!(images.iter().all(|image| image.file != delta));
}

/// "Is this the top of a running device?" is asked with regard to case, and the look-up without: the
/// top of a running image in upper case is taken out of the descriptor, though the driver keeps its file.
/// The crate's GUIDs have one spelling.
fn h0_14_h4_28_the_running_top_in_upper_case() {
    part("raw", |dir| {
        let mut image = running(dir);
        image.snapshot().unwrap();
        write(dir, "second");
        let top = image.top_delta_file().unwrap();
        assert_ne!(handle(dir).delete(disk::TOP), 0);
        assert!(top.exists());
        let code = handle(dir).delete(&disk::TOP.to_uppercase());
        assert_eq!(code, sys::SYSEXIT_UNLINK);
        assert_lost(&mut image, &top);
        detach(dir);
        let guard = image.mount_guard(&mount_param(dir)).unwrap();
        assert!(!target(dir).join("second").exists());
        guard.umount().unwrap();
    });
    part("safe", |dir| {
        let mut image = running(dir);
        let snapshot = image.snapshot().unwrap();
        write(dir, "second");
        let upper: Guid = disk::TOP.to_uppercase().parse().unwrap();
        busy(image.delete_snapshot(upper));
        busy(image.delete_top_delta());
        // In the descriptor, too.
        let text = fs::read_to_string(disk::descriptor(dir)).unwrap();
        disk::edit(dir, |text| {
            text.replace(disk::TOP, &disk::TOP.to_uppercase())
        });
        busy(image.delete_snapshot(upper));
        busy(image.delete_top_delta());
        busy(image.switch_snapshot(snapshot));
        assert_ne!(fs::read_to_string(disk::descriptor(dir)).unwrap(), text);
        image
            .set_max_delta_size(Size::from_sectors(1 << 20))
            .unwrap();
        image
            .set_max_delta_size(Size::from_sectors(1 << 30))
            .unwrap();
        assert_eq!(image.descriptor().unwrap().snapshots.len(), 2);
        assert_files_at_the_end(dir, &mut image, &["first", "second"]);
    });
}

fn stdin_is_open() -> bool {
    // SAFETY: asking for a descriptor's flags has no precondition.
    unsafe { libc::fcntl(0, libc::F_GETFD) != -1 }
}

/// Every merge of a running image closes descriptor 0, with libploop 1. The crate gives it back.
fn h0_18_h4_20_an_online_merge_closes_standard_input() {
    part("raw", |dir| {
        let mut image = running(dir);
        let snapshot = image.snapshot().unwrap();
        write(dir, "second");
        assert!(stdin_is_open());
        assert_eq!(handle(dir).delete(&snapshot.to_string()), 0);
        assert_eq!(stdin_is_open(), by_line(false, true));
    });
    part("safe", |dir| {
        let mut image = running(dir);
        let snapshots = [(); 3].map(|()| image.snapshot().unwrap());
        write(dir, "second");
        image.delete_snapshot(snapshots[0]).unwrap();
        assert!(stdin_is_open());
        image.merge(&MergeParam::new(MergeTarget::Top)).unwrap();
        assert!(stdin_is_open());
        image.merge(&MergeParam::new(MergeTarget::All)).unwrap();
        assert!(stdin_is_open());
        assert_files_at_the_end(dir, &mut image, &["first", "second"]);
    });
}

extern "C" fn nothing(_: libc::c_int) {}

/// Begins a merge of the top, and has a timer end the call while the driver goes on: as if the
/// program had been killed.
fn merging(dir: &Path) -> Ploop {
    const PLOOP_IOC_MERGE: libc::c_ulong = 0x500c;
    let mut image = running(dir);
    image.snapshot().unwrap();
    write(dir, "second");
    let large = File::create(target(dir).join("large")).unwrap();
    large.write_all_at(&[7; 96 << 20], 0).unwrap();
    large.sync_all().unwrap();
    drop(large);
    let device = File::open(image.device().unwrap().unwrap()).unwrap();
    // SAFETY: the handler does nothing, and is installed without SA_RESTART, so that calls end; the
    // request has no argument.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
        let mut every: libc::itimerval = std::mem::zeroed();
        every.it_value.tv_usec = 5000;
        every.it_interval.tv_usec = 5000;
        libc::setitimer(libc::ITIMER_REAL, &raw const every, std::ptr::null_mut());
        let result = libc::ioctl(device.as_raw_fd(), PLOOP_IOC_MERGE as _, 0);
        let error = std::io::Error::last_os_error();
        libc::setitimer(libc::ITIMER_REAL, &std::mem::zeroed(), std::ptr::null_mut());
        (result, error.raw_os_error())
    };
    assert_eq!(result, (-1, Some(libc::EINTR)));
    image
}

/// libploop 1 looks for the merge's top in the descriptor that it has already changed, fails, and frees
/// the name twice. 7 finishes the merge. The crate has the driver finish first.
fn h4_17_a_merge_whose_program_is_gone() {
    child("raw", |dir| {
        let image = merging(dir);
        let handle = handle(dir);
        assert_eq!(handle.umount() == 0, is_7());
        if is_7() {
            assert_eq!(image.descriptor().unwrap().images.len(), 1);
        }
        drop(handle);
    })
    .left(detach)
    .crashed_or_succeeded();
    for part in ["unmounted", "snapshotted"] {
        child(part, |dir| {
            let mut image = merging(dir);
            let names: &[&str] = if part == "snapshotted" {
                image.snapshot().unwrap();
                write(dir, "third");
                &["first", "second", "third"]
            } else {
                &["first", "second"]
            };
            assert_files_at_the_end(dir, &mut image, names);
            let guard = image.mount_guard(&mount_param(dir)).unwrap();
            let large = fs::read(target(dir).join("large")).unwrap();
            assert!(large == vec![7; 96 << 20]);
            guard.umount().unwrap();
        })
        .left(detach)
        .succeeded();
    }
}

/// The name of a device for C.
fn name(image: &mut Ploop) -> std::ffi::CString {
    raw::text(image.device().unwrap().unwrap())
}

/// `ploop_get_mnt_by_dev` of libploop 1 takes a size of zero for none. The crate's buffers are as long as it says.
fn h4_11_a_length_of_zero_is_no_bound() {
    part("raw", |dir| {
        let name = name(&mut running(dir));
        let mut out: [c_char; 4096] = [0; 4096];
        // SAFETY: the buffer takes any path, though C is told that there is none.
        let code = unsafe { sys::ploop_get_mnt_by_dev(name.as_ptr(), out.as_mut_ptr(), 0) };
        assert_eq!(code, 0);
        // 7 writes nothing, since 7.0.184.
        assert_eq!(out[0] == 0, is_since([7, 0, 184]));
    });
    part("safe", |dir| {
        let mut image = running(dir);
        let device = image.device().unwrap().unwrap();
        assert_eq!(device::mount_point(device).unwrap(), Some(target(dir)));
        assert_files_at_the_end(dir, &mut image, &["first"]);
    });
}

/// A text that just fits has no terminator. The crate's buffers have one behind.
fn h4_12_a_result_without_terminator() {
    part("raw", |dir| {
        let name = name(&mut running(dir));
        let file = dir.join("root.hds");
        let len = file.as_os_str().len();
        let mut out = [b'x' as c_char; 4096];
        // SAFETY: the buffer is longer than said.
        let code = unsafe {
            sys::ploop_find_top_delta_name_and_format(
                name.as_ptr(),
                out.as_mut_ptr(),
                len,
                std::ptr::null_mut(),
                0,
            )
        };
        assert_eq!(code, 0);
        assert_eq!(out[len], b'x' as c_char);
        assert_ne!(out[len - 1], 0);
    });
    part("safe", |dir| {
        let mut image = running(dir);
        let device = image.device().unwrap().unwrap();
        let top = device::top_delta(device).unwrap();
        assert_eq!((top.file, &*top.format), (dir.join("root.hds"), "ploop1"));
        assert_files_at_the_end(dir, &mut image, &["first"]);
    });
}

/// Results that do not fit are cut with success, and so are component names, which are never found
/// again. The crate has room for results and takes names that fit.
fn h4_14_names_of_devices_are_cut() {
    part("raw", |dir| {
        let mut image = running(dir);
        let (name, base) = (name(&mut image), raw::text(dir.join("root.hds")));
        let mut out: [c_char; 64] = [0; 64];
        let text = |out: &[c_char; 64]| {
            // SAFETY: C terminated what it wrote.
            unsafe { CStr::from_ptr(out.as_ptr()) }.to_owned()
        };
        // SAFETY: the texts are terminated, and the buffers longer than said.
        unsafe {
            let none = std::ptr::null();
            assert_eq!(
                sys::ploop_find_dev(none, base.as_ptr(), out.as_mut_ptr(), 5),
                0
            );
            assert_eq!(text(&out).as_c_str(), c"/dev");
            assert_eq!(
                sys::ploop_get_mnt_by_dev(name.as_ptr(), out.as_mut_ptr(), 8),
                0
            );
            assert_eq!(text(&out).count_bytes(), 7);
        }
        image.umount().unwrap();
        let handle = handle(dir);
        handle.set_component(&"x".repeat(70));
        assert_eq!(handle.mount(), 0);
        assert_eq!(handle.device(), 1);
        assert_eq!(handle.umount(), sys::SYSEXIT_DEV_NOT_MOUNTED);
        assert_eq!(image.devices().unwrap().len(), 1);
    });
    part("safe", |dir| {
        let mut image = running(dir);
        image.umount().unwrap();
        ComponentName::new("x".repeat(64)).unwrap_err();
        let longest = ComponentName::new("x".repeat(63)).unwrap();
        let param = mount_param(dir).component(longest.clone());
        let mounted = image.mount(&param).unwrap();
        assert_eq!(image.device().unwrap(), Some(mounted.device.clone()));
        let found = device::find(dir.join("root.hds"), Some(&longest));
        assert_eq!(found.unwrap(), Some(mounted.device.clone()));
        assert_eq!(
            device::mount_point(&mounted.device).unwrap(),
            Some(target(dir))
        );
        assert_files_at_the_end(dir, &mut image, &["first"]);
    });
}

/// A mount point that is busy is named in `lsof …` for `/bin/sh`. The crate mounts at no such place,
/// and does not unmount one either.
fn h0_12_h4_23_a_busy_mount_point_that_a_shell_obeys() {
    let hostile = |dir: &Path| {
        std::env::set_current_dir(dir).unwrap();
        let target = dir.join(";touch PWNED;");
        fs::create_dir(&target).unwrap();
        target
    };
    child("raw", |dir| {
        create(dir);
        let target = hostile(dir);
        let handle = handle(dir);
        assert_eq!(handle.mount_at(Some(&target), |_| ()), 0);
        let open = File::open(&target).unwrap();
        handle.wait_shortly();
        assert_eq!(handle.umount(), by_line(sys::SYSEXIT_UMOUNT, UMOUNT_BUSY));
        drop(open);
        assert!(dir.join("PWNED").exists(), "nothing was run");
    })
    .left(detach_hostile)
    .succeeded();
    child("safe", |dir| {
        let mut image = create(dir);
        let target = hostile(dir);
        let hostile = mount_param(dir).target(&target);
        refused(image.mount(&hostile), ErrorKind::InvalidInput);
        // Somebody else mounted it there.
        assert_eq!(handle(dir).mount_at(Some(&target), |_| ()), 0);
        let open = File::open(&target).unwrap();
        let device = image.device().unwrap().unwrap();
        for error in [
            image.umount().unwrap_err(),
            device::umount(&device).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert!(
                error.advice().unwrap_or_default().contains("umount(8)"),
                "{error}"
            );
            assert_eq!(error.path(), Some(&*target), "{error}");
        }
        drop(open);
        detach_hostile(dir);
        assert!(!image.is_mounted().unwrap());
        assert!(!dir.join("PWNED").exists());
    })
    .left(detach_hostile)
    .succeeded();
}

fn detach_hostile(dir: &Path) {
    let _ = Command::new("umount")
        .arg(dir.join(";touch PWNED;"))
        .stderr(Stdio::null())
        .status();
    detach(dir);
}

/// `SYSEXIT_UMOUNT_BUSY`, which libploop 1 has not.
const UMOUNT_BUSY: i32 = 46;

/// Lets no process of this thread and its children be forked from now on. Threads can be started, and processes
/// that share the memory of the one that starts them.
fn forbid_forks() {
    let load = |at: usize| filter(LOAD, at as u32, 0, 0);
    let if_equal = |number: i64, jf| filter(IF_EQUAL, number as u32, 0, jf);
    let if_shared = |jf| {
        let test = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
        filter(test, libc::CLONE_VM as u32, 0, jf)
    };
    let fail = |errno: i32| filter(RETURN, libc::SECCOMP_RET_ERRNO | errno as u32, 0, 0);
    let allow = filter(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0);
    // `clone3` cannot be looked into; without it libc takes `clone`.
    install(&[
        load(offset_of!(libc::seccomp_data, nr)),
        if_equal(libc::SYS_clone3, 1),
        fail(libc::ENOSYS),
        if_equal(libc::SYS_clone, 2),
        load(offset_of!(libc::seccomp_data, args)),
        if_shared(1),
        allow,
        fail(libc::EAGAIN),
    ]);
}

/// This thread, and those it starts, get no filters from `prctl`, which is how the crate asks for them.
fn forbid_filters() {
    let load = |at: usize| filter(LOAD, at as u32, 0, 0);
    let if_equal = |number: i64, jf| filter(IF_EQUAL, number as u32, 0, jf);
    install(&[
        load(offset_of!(libc::seccomp_data, nr)),
        if_equal(libc::SYS_prctl, 3),
        load(offset_of!(libc::seccomp_data, args)),
        if_equal(libc::PR_SET_SECCOMP.into(), 1),
        filter(RETURN, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32, 0, 0),
        filter(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ]);
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

fn filter(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

fn install(program: &[libc::sock_filter]) {
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `filter` names `program`, which is alive for the call; the kernel copies it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        let code = libc::syscall(libc::SYS_seccomp, mode, 0, &raw const filter);
        assert_eq!(code, 0);
    }
}

/// `fork` fails from now on in the first process of a namespace, which this one is not.
fn forbid_forks_in_namespaces() {
    extern "C" fn before_fork() {
        // SAFETY: the call has no precondition.
        if unsafe { libc::getpid() } == 1 {
            forbid_forks();
        }
    }
    // SAFETY: the function lives as long as the program.
    let code = unsafe { libc::pthread_atfork(Some(before_fork), None, None) };
    assert_eq!(code, 0);
}

/// Makes this process the first of a process namespace, so that `kill(-1, …)` reaches what is in there
/// and nothing else; the one that called waits for it and ends as it does.
fn alone() {
    // SAFETY: plain system calls; the child goes on as the only thread there is.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWPID), 0);
        let child = libc::fork();
        assert!(child >= 0);
        if child > 0 {
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            libc::_exit(match libc::WIFEXITED(status) {
                true => libc::WEXITSTATUS(status),
                false => 102,
            });
        }
        assert_eq!(libc::getpid(), 1, "kill(-1) must stay in here");
    }
}

/// A process that ends well when its input is closed; waiting for it closes that.
fn until_told() -> std::process::Child {
    let mut cat = Command::new("cat");
    cat.stdin(Stdio::piped()).spawn().unwrap()
}

/// When a discard cannot fork it goes on with -1 for a process: it waits for any child of the program
/// there is, takes its end for that of its own, and reports success; and had the driver something to
/// say, it would kill every process there is. The crate lets it do neither.
fn h0_19_h4_22_a_discard_that_cannot_fork() {
    let prepare = |dir: &Path| {
        let image = running(dir);
        alone();
        let other = until_told();
        forbid_forks();
        (image, other)
    };
    part("raw", |dir| {
        let (_image, mut other) = prepare(dir);
        drop(other.stdin.take());
        assert_eq!(handle(dir).discard(), 0);
        assert!(raw::last_error().contains("fork"), "{}", raw::last_error());
        // Its end was waited for already.
        let error = other.wait().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECHILD));
    });
    child("safe", |dir| {
        let (mut image, mut other) = prepare(dir);
        let error = image.discard(&DiscardParam::new()).unwrap_err();
        assert!(error.message().contains("fork"), "{error}");
        assert!(other.try_wait().unwrap().is_none());
        assert!(other.wait().unwrap().success());
        assert_files(dir, &["first"]);
    })
    .left(discard_again)
    .succeeded();
    // Where the kernel has no filters, in a process that has nobody to kill and nobody to wait for.
    child("without filters", |dir| {
        let mut image = running(dir);
        let mut other = until_told();
        forbid_filters();
        forbid_forks_in_namespaces();
        let error = image.discard(&DiscardParam::new()).unwrap_err();
        assert!(error.message().contains("fork"), "{error}");
        assert!(other.try_wait().unwrap().is_none());
        assert!(other.wait().unwrap().success());
        assert_files(dir, &["first"]);
    })
    .left(discard_again)
    .succeeded();
}

/// Nothing keeps the device from the next one.
fn discard_again(dir: &Path) {
    detach(dir);
    let mut image = Ploop::open(disk::descriptor(dir)).unwrap();
    image.discard(&DiscardParam::new().automount(true)).unwrap();
}

/// A copy that cannot be sent leaves a thread behind that works on memory of a function that returned.
/// The crate sends in a process of its own.
fn h4_18_sending_fails() {
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    part("safe", |dir| {
        let mut image = running(dir);
        let device = image.device().unwrap().unwrap();
        let before = threads();
        for _ in 0..10 {
            let (reader, writer) = pipe();
            drop(reader);
            let error = copy::send(&device, &writer, None).unwrap_err();
            assert_eq!(error.path(), Some(&*device), "{error}");
            assert_eq!(threads(), before);
        }
        let file = File::create(dir.join("copy")).unwrap();
        copy::send(&device, &file, None).unwrap();
        write(dir, "second");
        assert_files_at_the_end(dir, &mut image, &["first", "second"]);
    });
}

/// libploop looks for devices without a name only: an image that is mounted under one does not run for
/// it. For a snapshot it mends the top first, which the driver ends when the file is to be cut off; a switch
/// takes the top out of the descriptor, though the driver keeps its file. The crate looks at all devices.
fn ha_16_an_image_that_runs_under_a_name() {
    let name = || ComponentName::new("name").unwrap();
    child("raw", |dir| {
        let mut image = create(dir);
        let snapshot = image.snapshot().unwrap();
        image.mount(&mount_param(dir).component(name())).unwrap();
        write(dir, "first");
        // 7 does not mend the top, and would make the snapshot.
        if !is_7() {
            assert_eq!(handle(dir).snapshot(), sys::SYSEXIT_FTRUNCATE);
        }
        let top = image.top_delta_file().unwrap();
        assert_eq!(handle(dir).switch(&snapshot.to_string(), 0), 0);
        assert_lost(&mut image, &top);
        // It still runs on that file.
        assert_files(dir, &["first"]);
        detach_by_name(dir);
        let guard = image.mount_guard(&mount_param(dir)).unwrap();
        assert!(!target(dir).join("first").exists());
        guard.umount().unwrap();
    })
    .left(detach_by_name)
    .succeeded();
    if is_7() {
        child("raw, a snapshot", |dir| {
            let mut image = create(dir);
            let mounted = image.mount(&mount_param(dir).component(name())).unwrap();
            let before = image.top_delta_file().unwrap();
            assert_eq!(handle(dir).snapshot(), 0);
            // The device goes on writing to what is a snapshot now.
            let running = device::top_delta(&mounted.device).unwrap();
            assert_eq!(running.file, before);
            assert_ne!(image.top_delta_file().unwrap(), before);
        })
        .left(detach_by_name)
        .succeeded();
    }
    part("safe", |dir| {
        let mut image = running(dir);
        let snapshot = image.snapshot().unwrap();
        image.umount().unwrap();
        image.mount(&mount_param(dir).component(name())).unwrap();
        write(dir, "second");
        let copy = dir.join("copy.hds");
        fs::copy(dir.join("root.hds"), &copy).unwrap();
        let replace = ReplaceParam::new(&copy, ReplaceTarget::Guid(snapshot));
        let view = dir.join("view");
        fs::create_dir(&view).unwrap();
        let mut other = Ploop::open(image.path()).unwrap();
        let temporary = ploop::TemporarySnapshotParam::new(ComponentName::new("backup").unwrap());
        for image in [&mut image, &mut other] {
            busy(image.snapshot());
            busy(image.temporary_snapshot(&temporary));
            busy(image.delete_snapshot(snapshot));
            busy(image.delete_top_delta());
            busy(image.switch_snapshot(snapshot));
            busy(image.merge(&MergeParam::new(MergeTarget::Top)));
            busy(image.merge(&MergeParam::new(MergeTarget::All)));
            busy(image.replace(&replace));
            busy(image.resize(Size::from_mib(400), ResizeMode::Online));
            busy(image.resize(Size::from_mib(400), ResizeMode::Offline));
            busy(image.convert(ploop::ImageMode::Raw));
            busy(image.set_max_delta_size(Size::from_sectors(1 << 30)));
        }
        // The note would be the answer.
        fs::remove_file(dir.join(".statfs")).unwrap();
        busy(other.discard(&DiscardParam::new().automount(true)));
        busy(ploop::fs_info(other.path()));
        assert_files(dir, &["first", "second"]);
        // 7 does not look for a device by name there.
        match is_7() {
            true => busy(image.discard(&DiscardParam::new())),
            false => image.discard(&DiscardParam::new()).unwrap(),
        }
        assert_files_at_the_end(dir, &mut image, &["first", "second"]);
    });
}

/// Mounting checks all deltas and mends them before it asks the driver, also the one that a device is
/// writing to: its table is written again with what was read before, and the mark of its use taken
/// off. The crate looks for such a device.
fn ha_16_a_delta_is_attached_twice() {
    part("raw", |dir| {
        running(dir);
        let base = dir.join("root.hds");
        assert!(Header::read(&base).unwrap().in_use);
        let handle = handle(dir);
        handle.set_component(NAME_FOR_NOTHING);
        let code = handle.mount();
        for device in named_for_nothing() {
            device::umount(device).unwrap();
        }
        // The driver keeps the file from being cut off.
        assert_eq!(code, sys::SYSEXIT_FTRUNCATE, "{}", raw::last_error());
    });
    part("safe", |dir| {
        let mut image = running(dir);
        let name = ComponentName::new("name").unwrap();
        let mut other = Ploop::open(image.path()).unwrap();
        for read_only in [false, true] {
            let param = MountParam::new()
                .component(name.clone())
                .read_only(read_only);
            busy(other.mount(&param));
            assert!(Header::read(dir.join("root.hds")).unwrap().in_use);
        }
        write(dir, "second");
        assert_files_at_the_end(dir, &mut image, &["first", "second"]);
        // Without a name it was mounted already, and as a reader of what is read it can be twice.
        image.mount(&mount_param(dir).read_only(true)).unwrap();
        let param = MountParam::new().component(name).read_only(true);
        let guard = other.mount_guard(&param).unwrap();
        guard.umount().unwrap();
        assert_files_at_the_end(dir, &mut image, &["first", "second"]);
    });
}

/// The child that could not start a tool comes back as a second copy of the program, and takes the
/// device away from the first. The crate looks for the tools.
fn h0_03_h4_21_the_second_program_of_a_missing_tool() {
    let hide = || {
        mounts::enter().unwrap();
        for hidden in ["/usr/sbin", "/sbin"] {
            mounts::tmpfs(&fs::canonicalize(hidden).unwrap(), 1 << 20);
        }
    };
    child("raw", |dir| {
        let code = if is_7() {
            create(dir);
            let handle = handle(dir);
            hide();
            // The copy tries to detach the device.
            handle.wait_shortly();
            handle.mount_at(Some(&target(dir)), raw::check_file_system)
        } else {
            hide();
            raw::create_image(&dir.join("root.hds"), SIZE.sectors(), |param| {
                param.blocksize = 2048;
                param.fstype = c"ext4".as_ptr().cast_mut();
            })
        };
        println!("came back: {code}");
    })
    .left(detach)
    .said("came back", 2);
    child("safe", |dir| {
        let mut image = create(dir);
        hide();
        for error in [
            image.mount(&mount_param(dir).fsck(true)).unwrap_err(),
            image
                .resize(Size::from_mib(400), ResizeMode::Offline)
                .unwrap_err(),
            image
                .resize(Size::from_mib(400), ResizeMode::Online)
                .unwrap_err(),
            Ploop::create(&CreateParam::new(target(dir).join("a"), SIZE)).unwrap_err(),
        ] {
            println!("came back: {error}");
            assert_eq!(error.kind(), ErrorKind::Tool, "{error}");
        }
        // 7 has a tool read the partition table again, too.
        if is_7() {
            let error = refused(image.mount(&mount_param(dir)), ErrorKind::Tool);
            assert!(error.message().contains("partprobe"), "{error}");
        }
        image.mount(&mount_param(dir).no_probe(is_7())).unwrap();
        image.umount().unwrap();
    })
    .left(detach)
    .succeeded()
    .said("came back", 4);
}

/// The mount table is read into a buffer of 4096 bytes without a bound, up to the line of the file
/// system that has the image. In Debian's build what does not fit goes to a buffer behind it, so nothing
/// is to be seen. The crate reads the table first.
fn h4_16_a_mount_point_overflows_a_buffer() {
    // The image is on a file system that comes late in the table: that of another image.
    let prepare = |dir: &Path| {
        create(dir);
        mounts::enter().unwrap();
        // Each blank is four bytes there.
        let mut long = dir.join("long");
        for _ in 0..5 {
            long.push(" ".repeat(250));
        }
        fs::create_dir_all(&long).unwrap();
        mounts::tmpfs(&long, 1 << 20);
        // The crate would not do it.
        assert_eq!(handle(dir).mount_at(Some(&target(dir)), |_| ()), 0);
        let inner = target(dir).join("inner");
        fs::create_dir(&inner).unwrap();
        disk::create(&inner);
        inner
    };
    part("safe", |dir| {
        let inner = prepare(dir);
        let mut image = Ploop::open(disk::descriptor(&inner)).unwrap();
        let error = refused(image.mount(&MountParam::new()), ErrorKind::Unsupported);
        assert!(error.message().contains("mountinfo"), "{error}");
        // It has the lock file open.
        drop(image);
        detach(dir);
    });
}

/// Devices without image that have a name all the same.
fn named_for_nothing() -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/block").unwrap();
    let attribute = |entry: &fs::DirEntry, name: &str| {
        let text = fs::read_to_string(entry.path().join("pstate").join(name));
        text.unwrap_or_default().trim().to_owned()
    };
    entries
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"ploop"))
        .filter(|entry| attribute(entry, "cookie") == NAME_FOR_NOTHING)
        .filter(|entry| attribute(entry, "top") == "4294967295")
        .map(|entry| Path::new("/dev").join(entry.file_name()))
        .collect()
}

const NAME_FOR_NOTHING: &str = "name-for-nothing";

/// A device to which nothing could be attached keeps the component name it was given, and the next image
/// on it has it too: nobody finds that one. The crate clears the device.
fn ha_19_a_name_stays_with_a_free_device() {
    // The driver refuses tmpfs.
    let on_tmpfs = |dir: &Path| {
        let place = dir.join("tmpfs");
        fs::create_dir(&place).unwrap();
        mounts::tmpfs(&place, 20 << 20);
        disk::create(&place).close();
        place
    };
    child("raw", |dir| {
        mounts::enter().unwrap();
        let handle = handle(&on_tmpfs(dir));
        handle.set_component(NAME_FOR_NOTHING);
        assert_ne!(handle.mount(), 0);
        let named = named_for_nothing();
        assert_eq!(named.len(), 1);
        // As the crate does it.
        device::umount(&named[0]).unwrap();
        assert_eq!(named_for_nothing(), [""; 0].map(PathBuf::from));
    })
    .succeeded();
    part("safe", |dir| {
        mounts::enter().unwrap();
        let mut image = Ploop::open(disk::descriptor(&on_tmpfs(dir))).unwrap();
        let name = ComponentName::new(NAME_FOR_NOTHING).unwrap();
        image.mount(&MountParam::new().component(name)).unwrap_err();
        assert_eq!(named_for_nothing(), [""; 0].map(PathBuf::from));
        let mut image = running(dir);
        assert!(image.is_mounted().unwrap());
        assert_files_at_the_end(dir, &mut image, &["first"]);
    });
}

/// While an image is attached, its device has a name and no deltas for a moment. A mount that fails meanwhile leaves it
/// alone.
fn ha_19_a_device_that_is_being_attached_keeps_its_name() {
    part("safe", |dir| {
        let other_dir = dir.join("other");
        fs::create_dir(&other_dir).unwrap();
        let [mut image, mut other] = [dir, &other_dir].map(|dir| {
            let param = CreateParam::new(dir.join("root.hds"), Size::from_mib(64));
            Ploop::create(&param.fs(None)).unwrap()
        });
        let param = MountParam::new().component(ComponentName::new("being-attached").unwrap());
        let fails = param.clone().target(dir.join("missing"));
        let end = Instant::now() + Duration::from_secs(3);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while Instant::now() < end {
                    other.mount(&fails).unwrap_err();
                }
            });
            while Instant::now() < end {
                let guard = image.mount_guard(&param).unwrap();
                assert!(guard.device().unwrap().is_some());
                guard.umount().unwrap();
            }
        });
    });
}

/// Offline, a raw image is shrunk so that its partition is a cluster shorter than the file system in it,
/// which is not mounted any more. The crate does not shrink it.
fn ha_17_a_raw_image_loses_its_end() {
    let create_raw = |dir: &Path| {
        fs::create_dir(target(dir)).unwrap();
        let param = CreateParam::new(dir.join("root.hds"), SIZE).mode(ploop::ImageMode::Raw);
        Ploop::create(&param).unwrap()
    };
    part("raw", |dir| {
        let mut image = create_raw(dir);
        let code = handle(dir).resize(Size::from_mib(200).sectors(), true);
        if refuses_raw_bases(dir) {
            assert_eq!(code, Code::OPEN.get());
            return;
        }
        assert_eq!(code, 0);
        let error = image.mount(&mount_param(dir)).unwrap_err();
        assert_eq!(error.code(), Some(Code::MOUNT.get()), "{error}");
    });
    part("safe", |dir| {
        let mut image = create_raw(dir);
        let mounted = image.mount(&mount_param(dir));
        if refuses_raw_bases(dir) {
            assert_eq!(mounted.unwrap_err().code(), Some(Code::OPEN.get()));
            return;
        }
        mounted.unwrap();
        write(dir, "first");
        image.umount().unwrap();
        for mode in [ResizeMode::Online, ResizeMode::Offline] {
            refused(
                image.resize(Size::from_mib(200), mode),
                ErrorKind::Unsupported,
            );
        }
        image.mount(&mount_param(dir)).unwrap();
        assert_files_at_the_end(dir, &mut image, &["first"]);
    });
}

/// No limit for deltas is passed on to the driver as the number 0, which leaves it no room for anything:
/// what is written fails, and the file system goes read-only. The crate refuses it while the image runs.
fn ha_18_no_limit_is_no_room() {
    part("raw", |dir| {
        running(dir);
        assert_eq!(handle(dir).set_max_delta_size(0), 0);
        let file = File::create(target(dir).join("second")).unwrap();
        let bytes = vec![7; 20 << 20];
        let written = file.write_all_at(&bytes, 0).and_then(|()| file.sync_all());
        written.unwrap_err();
    });
    part("safe", |dir| {
        let mut image = running(dir);
        image
            .set_max_delta_size(Size::from_sectors(1 << 30))
            .unwrap();
        busy(image.set_max_delta_size(None));
        write(dir, "second");
        assert_files_at_the_end(dir, &mut image, &["first", "second"]);
        image.set_max_delta_size(None).unwrap();
        assert_eq!(image.descriptor().unwrap().max_delta_size, None);
        image.mount(&mount_param(dir)).unwrap();
        write(dir, "third");
        assert_files_at_the_end(dir, &mut image, &["first", "second", "third"]);
    });
}

/// As `ha_3_replace_reports_success_when_it_could_not_rename`, while the image runs: the driver goes
/// on with the old file.
fn ha_3_replace_of_a_running_image_reports_success() {
    let prepare = |dir: &Path| {
        let mut image = running(dir);
        let guid = image.snapshot().unwrap();
        let (old, new) = (dir.join("root.hds"), dir.join("new.hds"));
        fs::copy(&old, &new).unwrap();
        let held = Immutable::make(&old).unwrap();
        (image, guid, new, held)
    };
    part("raw", |dir| {
        let (_image, guid, new, _held) = prepare(dir);
        let flags = sys::PLOOP_REPLACE_KEEP_NAME;
        assert_eq!(handle(dir).replace(&new, &guid.to_string(), flags), 0);
        assert!(new.exists(), "it was renamed after all");
    });
    part("safe", |dir| {
        let (mut image, guid, new, held) = prepare(dir);
        let param = ReplaceParam::new(&new, ReplaceTarget::Guid(guid));
        let param = param.flags(ReplaceFlag::KEEP_NAME);
        let error = refused(image.replace(&param), ErrorKind::Io);
        assert_eq!(error.code(), None::<Code>.map(Code::get));
        assert_files(dir, &["first"]);
        drop(held);
        if writes_to_check(dir) {
            // libploop could not go back to the old one.
            assert!(image.base_delta_file().unwrap() == new);
        } else {
            image.replace(&param).unwrap();
            assert!(!new.exists());
        }
        assert_files_at_the_end(dir, &mut image, &["first"]);
    });
}

/// The directory of an image that runs by the path of a bind mount of its directory.
fn running_by_another_path(dir: &Path) -> (PathBuf, Ploop) {
    let (real, other) = (dir.join("real"), dir.join("other"));
    fs::create_dir(&real).unwrap();
    fs::create_dir(&other).unwrap();
    let mut image = create(&real);
    image.snapshot().unwrap();
    mounts::bind(&real, &other).unwrap();
    let mut through = Ploop::open(disk::descriptor(&other)).unwrap();
    // At a place that the bind mount does not lead to.
    let param = MountParam::new().target(target(dir));
    fs::create_dir(target(dir)).unwrap();
    through.mount(&param).unwrap();
    write(dir, "first");
    (real, image)
}

/// Deltas of another image, each mounted on a file of this one. They have one link, and no descriptor beside them but this
/// image's own.
fn ha_55_deltas_that_are_mounted_on_files() {
    child("safe", |dir| {
        mounts::enter().unwrap();
        let (real, other) = (dir.join("real"), dir.join("other"));
        fs::create_dir(&real).unwrap();
        fs::create_dir(&other).unwrap();
        let mut image = create(&real);
        let guid = image.snapshot().unwrap();
        image.snapshot().unwrap();
        for entry in fs::read_dir(&real).unwrap() {
            let file = entry.unwrap().path();
            if file.is_dir() {
                continue;
            }
            let name = other.join(file.file_name().unwrap());
            fs::copy(&file, &name).unwrap();
            if !name.to_str().unwrap().contains(".xml") {
                mounts::bind(&file, &name).unwrap();
            }
        }
        let read = || -> Vec<Vec<u8>> {
            let deltas = image.descriptor().unwrap().images;
            let read = deltas.iter().map(|image| fs::read(&image.file).unwrap());
            read.collect()
        };
        let before = read();
        let mut through = Ploop::open(disk::descriptor(&other)).unwrap();
        for refused in [
            through.merge(&MergeParam::new(MergeTarget::All)),
            through.delete_snapshot(guid),
            through.delete_top_delta(),
        ] {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
        }
        assert!(read() == before);
    })
    .succeeded();
}

/// Detaches what is mounted there, by the device's name.
fn detach_by_name(dir: &Path) {
    if let Ok(Some(device)) = device::by_mount_point(target(dir)) {
        device::umount(device).unwrap();
    }
}

/// libploop 1 goes by the letters of paths: an image that runs by another path does not run for it, and its
/// top is deleted. The driver refuses that, and the descriptor has lost the top. The crate goes by device
/// and inode, and so does 7 where the driver tells them, as that of Virtuozzo 7 does.
fn ha_20_the_top_runs_by_another_path() {
    child("raw", |dir| {
        mounts::enter().unwrap();
        let (real, mut image) = running_by_another_path(dir);
        let top = image.top_delta_file().unwrap();
        let code = handle(&real).delete(disk::TOP);
        assert_eq!(code, by_line(sys::SYSEXIT_UNLINK, sys::SYSEXIT_PARAM));
        if is_7() {
            assert_eq!(image.top_delta_file().unwrap(), top);
        } else {
            assert_lost(&mut image, &top);
        }
        assert_files(dir, &["first"]);
        detach_by_name(dir);
    })
    .left(detach_by_name)
    .succeeded();
    child("safe", |dir| {
        mounts::enter().unwrap();
        let (real, mut image) = running_by_another_path(dir);
        let base = image.descriptor().unwrap().base().unwrap().guid;
        let before = fs::read(disk::descriptor(&real)).unwrap();
        busy(image.delete_top_delta());
        busy(image.switch_snapshot(base));
        busy(image.switch_snapshot_with(base, SwitchFlag::SKIP_CREATE));
        busy(image.snapshot());
        busy(image.delete_snapshot(base));
        busy(image.merge(&MergeParam::new(MergeTarget::Top)));
        busy(image.mount(&mount_param(&real)));
        assert_eq!(fs::read(disk::descriptor(&real)).unwrap(), before);
        assert_files(dir, &["first"]);
        detach_by_name(dir);
        assert_mounts_with_first(&real, &mut image);
    })
    .left(detach_by_name)
    .succeeded();
}

/// As above, where the path has gone with its mount: nobody can tell which file the device has. The image's
/// top is marked as in use, and so it may be this one.
fn ha_20_the_top_runs_where_nobody_sees_it() {
    child("safe", |dir| {
        mounts::enter().unwrap();
        let (real, mut image) = running_by_another_path(dir);
        mounts::detach(&dir.join("other")).unwrap();
        let base = image.descriptor().unwrap().base().unwrap().guid;
        let before = fs::read(disk::descriptor(&real)).unwrap();
        busy(image.delete_top_delta());
        for flags in [
            SwitchFlag::empty(),
            SwitchFlag::SKIP_CREATE,
            SwitchFlag::SKIP_DESTROY,
        ] {
            busy(image.switch_snapshot_with(base, flags));
        }
        busy(image.snapshot());
        busy(image.delete_snapshot(base));
        busy(image.merge(&MergeParam::new(MergeTarget::Top)));
        busy(image.mount(&mount_param(&real)));
        assert_eq!(fs::read(disk::descriptor(&real)).unwrap(), before);
        // Another image is none of its business.
        let other = dir.join("another");
        fs::create_dir(&other).unwrap();
        let mut other = disk::create(&other);
        let snapshot = other.snapshot().unwrap();
        other.switch_snapshot(snapshot).unwrap();
        other.delete_snapshot(snapshot).unwrap();

        assert_files(dir, &["first"]);
        detach_by_name(dir);
        assert_mounts_with_first(&real, &mut image);
    })
    .left(detach_by_name)
    .succeeded();
}

/// An older descriptor is put back under an image that runs. libploop goes by it, and puts the next snapshot upon a
/// delta to which nobody writes any more. The crate compares the device's top with the descriptor.
fn ha_64_another_descriptor_is_put_back() {
    part("safe", |dir| {
        let mut image = running(dir);
        let old_snapshot = image.snapshot().unwrap();
        write(dir, "second");
        let old = fs::read(image.path()).unwrap();
        image.snapshot().unwrap();
        write(dir, "third");
        let new = fs::read(image.path()).unwrap();
        fs::write(image.path(), &old).unwrap();
        let name = ComponentName::new("backup").unwrap();
        let temporary = ploop::TemporarySnapshotParam::new(name);
        for result in [
            image.snapshot().map(drop),
            image.temporary_snapshot(&temporary).map(drop),
            image.delete_snapshot(old_snapshot),
            image.merge(&MergeParam::new(MergeTarget::All)),
            image.merge(&MergeParam::new(MergeTarget::All).new_delta(dir.join("new.hds"))),
            image.set_max_delta_size(Size::from_gib(1)),
            image.resize(Size::from_gib(2), ResizeMode::Online),
        ] {
            let error = refused(result, ErrorKind::Corrupt);
            assert!(error.message().contains("does not name"), "{error}");
        }
        assert_eq!(fs::read(image.path()).unwrap(), old);
        image.umount().unwrap();
        // Nothing is lost.
        fs::write(image.path(), new).unwrap();
        image.mount(&mount_param(dir)).unwrap();
        assert_files_at_the_end(dir, &mut image, &["first", "second", "third"]);
    });
}

/// Where sysfs cannot be seen, an image that runs looks like one that does not.
fn ha_65_where_sysfs_is_not_mounted() {
    child("safe", |dir| {
        let mut image = running(dir);
        let snapshot = image.snapshot().unwrap();
        write(dir, "second");
        let before = fs::read(image.path()).unwrap();
        mounts::enter().unwrap();
        mounts::tmpfs(Path::new("/sys"), 1 << 20);
        for result in [
            image.snapshot().map(drop),
            image.switch_snapshot(snapshot),
            image.delete_snapshot(snapshot),
            image.merge(&MergeParam::new(MergeTarget::All)),
            image.convert(ploop::ImageMode::Preallocated),
        ] {
            let error = refused(result, ErrorKind::Unsupported);
            assert!(error.message().contains("sysfs"), "{error}");
        }
        assert_eq!(fs::read(image.path()).unwrap(), before);
    })
    .left(|dir| {
        let mut image = Ploop::open(disk::descriptor(dir)).unwrap();
        assert_files_at_the_end(dir, &mut image, &["first", "second"]);
    })
    .succeeded();
}

/// Of a snapshot that is attached read-only, a merge below removes a delta, which the kernel refuses: the
/// descriptor has lost it already, and the file stays. The crate looks at all deltas of all devices.
fn ha_26_a_read_only_device_has_the_delta() {
    part("safe", |dir| {
        let mut image = running(dir);
        let view = dir.join("view");
        fs::create_dir(&view).unwrap();
        let snapshots: Vec<Guid> = ["second", "third", "fourth"]
            .into_iter()
            .map(|name| {
                let guid = image.snapshot().unwrap();
                write(dir, name);
                guid
            })
            .collect();
        let all = ["first", "second", "third", "fourth"];
        let mut backup = Ploop::open(image.path()).unwrap();
        let param = MountParam::new()
            .component(ComponentName::new("backup").unwrap())
            .snapshot(snapshots[2])
            .read_only(true);
        for runs in [true, false] {
            if !runs {
                image.umount().unwrap();
            }
            backup.mount(&param).unwrap();
            let before = fs::read(image.path()).unwrap();
            busy(image.delete_snapshot(snapshots[0]));
            busy(image.delete_snapshot(snapshots[1]));
            busy(image.merge(&MergeParam::new(MergeTarget::Snapshot(snapshots[1]))));
            busy(image.merge(&MergeParam::new(MergeTarget::Snapshot(snapshots[2]))));
            busy(image.merge(&MergeParam::new(MergeTarget::All)));
            assert_eq!(fs::read(image.path()).unwrap(), before);
            backup.umount().unwrap();
        }
        let guard = image.mount_guard(&mount_param(dir)).unwrap();
        assert_files(dir, &all);
        guard.umount().unwrap();
        image.delete_snapshot(snapshots[0]).unwrap();
        image.mount(&mount_param(dir)).unwrap();
        image.delete_snapshot(snapshots[1]).unwrap();
        assert_files_at_the_end(dir, &mut image, &all);
    });
}

/// What was written is there when the image is mounted by its descriptor.
#[track_caller]
fn assert_mounts_with_first(dir: &Path, image: &mut Ploop) {
    let guard = image.mount_guard(&mount_param(dir).fsck(true)).unwrap();
    assert_files(dir, &["first"]);
    guard.umount().unwrap();
}

/// libploop unmounts what is topmost at the mount point, and then waits for a minute for the device. The crate refuses.
fn ha_58_something_is_mounted_on_top() {
    part("safe", |dir| {
        mounts::enter().unwrap();
        let mut image = running(dir);
        let device = image.device().unwrap().unwrap();
        let unmounts_nothing = |image: &mut Ploop, source: &str| {
            for error in [image.umount(), device::umount(&device)].map(Result::unwrap_err) {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
                assert!(error.message().contains(source), "{error}");
                assert_eq!(error.path(), Some(&*target(dir)), "{error}");
            }
            assert_eq!(image.device().unwrap().as_ref(), Some(&device));
        };
        mounts::tmpfs(&target(dir), 1 << 20);
        fs::write(target(dir).join("precious"), "").unwrap();
        unmounts_nothing(&mut image, "tmpfs (none)");
        assert!(target(dir).join("precious").exists());
        unmount(target(dir), UnmountFlags::empty()).unwrap();

        let other_dir = dir.join("other");
        fs::create_dir(&other_dir).unwrap();
        let mut other = create(&other_dir);
        let mounted = other.mount(&mount_param(dir)).unwrap();
        write(dir, "precious");
        unmounts_nothing(&mut image, mounted.device.to_str().unwrap());
        assert_files(dir, &["precious"]);
        other.umount().unwrap();
        assert_files_at_the_end(dir, &mut image, &["first"]);
    });
}
