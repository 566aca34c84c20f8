//! The library before libc in real processes, and a daemon that is none: it answers as each test wants. The processes
//! are this program once more.

use libtest_mimic::{Arguments, Trial};
use ploop_sandbox_wire::{self as wire, Alias, Node, Reply, Request, call};
use std::fs::{self, File};
use std::io::{Cursor, Read, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};

/// The name of the test whose child this process is.
const CHILD: &str = "PRELOADED_CHILD";
/// A directory that the child may use.
const DIRECTORY: &str = "PRELOADED_DIRECTORY";

const START: u64 = 0x5003;
const STOP: u64 = 0x5002;
const ADD_DELTA: u64 = 0x4018_5000;
const BALLOON: u64 = 0x4010_5013;
const FBGET: u64 = 0x4010_5012;
const FBFILTER: u64 = 0x8008_501b;
const DISCARD_WAIT: u64 = 0x5019;
const BLKRRPART: u64 = 0x125f;
const OPEN_BALLOON: u64 = 0x662a;
const SET_RSV_BLOCKS: u64 = 0x4008_662c;

/// The test in which there is no socket.
const WITHOUT: &str = "without_a_daemon_the_drivers_calls_fail";

/// N of ploopN.
const DEVICE: u32 = 10001;
const LOOP: &str = "/dev/loop0";

struct Test {
    name: &'static str,
    need: fn() -> Option<&'static str>,
    /// How the daemon answers, and what it looks at.
    daemon: fn(&Request, &[OwnedFd], &mut UnixStream) -> Option<Reply>,
    child: fn(&Path),
    /// What the daemon must have been asked, ALIASES aside.
    asked: &'static [u64],
}

fn main() -> ExitCode {
    if let Some(name) = std::env::var_os(CHILD) {
        let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
        let test = tests().into_iter().find(|test| *test.name == *name);
        (test.unwrap().child)(&directory);
        return ExitCode::SUCCESS;
    }
    let trials = tests()
        .into_iter()
        .map(|test| {
            let missing = (test.need)();
            Trial::test(test.name, move || {
                run(&test);
                Ok(())
            })
            .with_ignored_flag(missing.is_some())
            .with_kind(missing.unwrap_or_default())
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn nothing() -> Option<&'static str> {
    None
}

fn loop_device() -> Option<&'static str> {
    let is_there = fs::metadata(LOOP).is_ok_and(|it| it.file_type().is_block_device());
    (!is_there || File::open(LOOP).is_err()).then_some("needs root and a loop device")
}

/// A child that ends with 7 once `/dev/null` has the place of a descriptor of this process, and with 8 after a second
/// in which it has not; and the link to what is there.
fn waiting_child(descriptor: i32) -> (libc::pid_t, PathBuf) {
    let link = PathBuf::from(format!("/proc/{}/fd/{descriptor}", std::process::id()));
    // SAFETY: no other thread of this process runs, so that its copy works as it does itself.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let seen = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            fs::read_link(&link).unwrap() == Path::new("/dev/null")
        });
        // SAFETY: it does not come back.
        unsafe { libc::_exit(if seen { 7 } else { 8 }) };
    }
    (child, link)
}

fn root() -> Option<&'static str> {
    // SAFETY: no pointers.
    (unsafe { libc::geteuid() } != 0).then_some("needs root")
}

fn tests() -> Vec<Test> {
    vec![
        Test {
            name: "proc_vz_is_the_daemons_directory",
            need: nothing,
            daemon: |_, _, _| None,
            child: |_| {
                let path = "/proc/vz/ploop_minor";
                assert_eq!(fs::read_to_string(path).unwrap(), "160016\n");
                assert!(fs::metadata(path).unwrap().is_file());
                assert_eq!(fs::read_dir("/proc/vz").unwrap().count(), 1);
                assert!(fs::read_dir("/proc/vz/none").is_err());
                // SAFETY: a C string.
                assert_eq!(unsafe { libc::access(c"/proc/vz".as_ptr(), libc::X_OK) }, 0);
                // SAFETY: C strings.
                let file = unsafe { libc::fopen(c"/proc/vz/ploop_minor".as_ptr(), c"r".as_ptr()) };
                assert!(!file.is_null());
                // SAFETY: just opened.
                unsafe { libc::fclose(file) };
                assert!(File::open("/proc/vzx").is_err());
            },
            asked: &[],
        },
        Test {
            name: "numbers_are_translated_for_users_of_ploop",
            need: loop_device,
            daemon: |_, _, _| None,
            child: |_| {
                let real = fs::metadata(LOOP).unwrap().rdev();
                assert_eq!(libc::major(real), 7);
                use_ploop();
                let driver = libc::makedev(wire::MAJOR, 16 * DEVICE);
                assert_eq!(fs::metadata(LOOP).unwrap().rdev(), driver);
                assert_eq!(fs::symlink_metadata(LOOP).unwrap().rdev(), driver);
                assert_eq!(File::open(LOOP).unwrap().metadata().unwrap().rdev(), driver);
                // SAFETY: zeros are valid numbers; a C string; a valid place.
                let status = unsafe {
                    let mut status: libc::stat = std::mem::zeroed();
                    assert_eq!(libc::stat(c"/dev/loop0".as_ptr(), &mut status), 0);
                    status
                };
                assert_eq!(status.st_rdev, driver);
                assert_eq!(libc::major(fs::metadata("/dev/null").unwrap().rdev()), 1);
            },
            asked: &[],
        },
        Test {
            name: "an_added_delta_takes_its_file_along",
            need: loop_device,
            daemon: |request, files, _| {
                assert_eq!(request.node, Node::Whole(DEVICE));
                assert_eq!(request.payload.len(), 24 + 32 + 64);
                assert_eq!(request.payload[56..60], *b"cook");
                let [file] = files else {
                    panic!("{} descriptors", files.len())
                };
                let mut text = String::new();
                File::from(file.try_clone().unwrap())
                    .read_to_string(&mut text)
                    .unwrap();
                assert_eq!(text, "image");
                Some(Reply::of(-libc::EBUSY))
            },
            child: |directory| {
                fs::write(directory.join("image"), "image").unwrap();
                let image = File::open(directory.join("image")).unwrap();
                let device = File::open(LOOP).unwrap();
                let mut delta = [0u64; 15];
                delta[0] = 4 << 32; // pctl_flags: there is a cookie
                delta[2] = 1; // pctl_chunks
                delta[3] = image.as_raw_fd() as u64;
                delta[7] = u64::from_ne_bytes(*b"cookie\0\0");
                assert_eq!(
                    call_pointer(&device, ADD_DELTA, &mut delta),
                    Err(libc::EBUSY)
                );
            },
            asked: &[ADD_DELTA],
        },
        Test {
            name: "an_invalid_descriptor_is_left_to_the_daemon",
            need: loop_device,
            daemon: |request, files, _| {
                assert_eq!((request.payload.len(), files.len()), (24 + 32, 0));
                Some(Reply::of(-libc::EBADF))
            },
            child: |_| {
                let device = File::open(LOOP).unwrap();
                let mut delta = [0u64; 7];
                delta[2] = 1;
                delta[3] = 999;
                assert_eq!(
                    call_pointer(&device, ADD_DELTA, &mut delta),
                    Err(libc::EBADF)
                );
            },
            asked: &[ADD_DELTA],
        },
        Test {
            name: "results_come_back",
            need: loop_device,
            daemon: |request, _, _| {
                Some(match u64::from(request.call) {
                    BALLOON => {
                        assert_eq!(request.payload, [7; 16]);
                        // More than there is room for.
                        Reply {
                            result: 0,
                            payload: vec![9; 100],
                        }
                    }
                    FBGET => Reply {
                        result: -libc::ENOSPC,
                        payload: vec![5; 1000],
                    },
                    FBFILTER => Reply::of(request.argument as i32),
                    // Where there is no memory, nothing is sent.
                    ADD_DELTA if request.payload.is_empty() => Reply::of(-libc::EFAULT),
                    BLKRRPART => Reply::of(0),
                    other => panic!("{other:#x}"),
                })
            },
            child: |_| {
                let device = File::open(LOOP).unwrap();
                let mut balloon = [0x0707_0707_0707_0707u64, 0x0707_0707_0707_0707, 1];
                assert_eq!(call_pointer(&device, BALLOON, &mut balloon), Ok(0));
                assert_eq!(balloon, [0x0909_0909_0909_0909, 0x0909_0909_0909_0909, 1]);
                let mut blocks = [1u64, 0, 0, 0, 77];
                assert_eq!(call_pointer(&device, FBGET, &mut blocks), Err(libc::ENOSPC));
                assert_eq!(blocks[3..], [0x0505_0505_0505_0505, 77]);
                set_errno(5);
                assert_eq!(call_number(&device, FBFILTER, 3), Ok(3));
                assert_eq!(errno(), 5);
                assert_eq!(call_number(&device, ADD_DELTA, 8), Err(libc::EFAULT));
                assert_eq!(call_number(&device, BLKRRPART, 0), Ok(0));
            },
            asked: &[BALLOON, FBGET, FBFILTER, ADD_DELTA, BLKRRPART],
        },
        Test {
            name: "stopping_steps_aside",
            need: loop_device,
            daemon: |request, files, _| {
                assert!(files.len() == 1, "the last descriptor is sent");
                assert_eq!(request.node, Node::Whole(DEVICE));
                Some(Reply::of(-libc::EINVAL))
            },
            child: |_| {
                let device = File::open(LOOP).unwrap();
                assert_eq!(call_number(&device, STOP, 0), Err(libc::EINVAL));
                // There is no /dev/ploop10001 here to open anew.
                let link = format!("/proc/self/fd/{}", device.as_raw_fd());
                assert_eq!(fs::read_link(link).unwrap(), Path::new("/dev/null"));
            },
            asked: &[STOP],
        },
        Test {
            name: "a_signal_ends_the_waiting_for_discards",
            need: loop_device,
            daemon: |_, _, stream| {
                // The caller says so, and waits for the answer.
                assert_eq!(stream.read(&mut [0]).unwrap(), 0);
                Some(Reply::of(-libc::EINTR))
            },
            child: |_| {
                extern "C" fn nothing(_: libc::c_int) {}
                // SAFETY: zeros are a valid action; the handler does nothing.
                unsafe {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = nothing as *const () as usize;
                    libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
                    libc::alarm(1);
                }
                let device = File::open(LOOP).unwrap();
                assert_eq!(call_number(&device, DISCARD_WAIT, 0), Err(libc::EINTR));
            },
            asked: &[DISCARD_WAIT],
        },
        Test {
            name: WITHOUT,
            need: loop_device,
            daemon: |_, _, _| None,
            child: |_| {
                let device = File::open(LOOP).unwrap();
                assert_eq!(call_number(&device, START, 0), Err(libc::EIO));
                assert_eq!(call_pointer(&device, BALLOON, &mut [0, 0]), Err(libc::EIO));
                assert_eq!(libc::major(fs::metadata(LOOP).unwrap().rdev()), 7);
                fs::read_to_string("/proc/self/mountinfo").unwrap();
            },
            asked: &[],
        },
        Test {
            name: "other_devices_are_left_alone",
            need: loop_device,
            daemon: |_, _, _| None,
            child: |directory| {
                let null = File::open("/dev/null").unwrap();
                assert_eq!(call_number(&null, START, 0), Err(libc::ENOTTY));
                // None of the driver's: the loop device's.
                let device = File::open(LOOP).unwrap();
                assert!(call_number(&device, 0x5000 + 99, 0).is_err());
                let path = directory.join("new");
                fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o640)
                    .open(&path)
                    .unwrap();
                assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
                assert_eq!(
                    File::open("/none").unwrap_err().raw_os_error(),
                    Some(libc::ENOENT)
                );
                // SAFETY: the kernel checks the pointer.
                assert_eq!(unsafe { libc::access(std::ptr::null(), 0) }, -1);
                assert_eq!(errno(), libc::EFAULT);
            },
            asked: &[],
        },
        Test {
            name: "the_list_of_mounts_is_the_drivers",
            need: nothing,
            daemon: |_, _, _| None,
            child: |_| {
                let real = fs::read_to_string("/proc/self/mountinfo").unwrap();
                let first = real.lines().next().unwrap();
                let number = first.split(' ').nth(2).unwrap();
                let driver = format!("{}:{}", wire::MAJOR, 16 * 10002);
                use_ploop();
                let own = format!("/proc/{}/mountinfo", std::process::id());
                for path in ["/proc/self/mountinfo", &own] {
                    let list = fs::read_to_string(path).unwrap();
                    assert_eq!(list.lines().count(), real.lines().count());
                    let first = first.replacen(number, &driver, 1) + ",balloon_ino=12";
                    assert_eq!(list.lines().next().unwrap(), first);
                }
                // SAFETY: C strings; a buffer of that size; the file is open.
                let line = unsafe {
                    let file = libc::fopen(c"/proc/self/mountinfo".as_ptr(), c"re".as_ptr());
                    assert!(!file.is_null());
                    let mut line = [0; 4096];
                    assert!(!libc::fgets(line.as_mut_ptr(), 4096, file).is_null());
                    libc::fclose(file);
                    std::ffi::CStr::from_ptr(line.as_ptr())
                        .to_str()
                        .unwrap()
                        .to_owned()
                };
                assert!(line.contains(&driver) && line.ends_with(",balloon_ino=12\n"));
                let mounts = fs::read_to_string("/proc/mounts").unwrap();
                assert_eq!(
                    mounts,
                    fs::read_to_string("/proc/thread-self/mounts").unwrap()
                );
            },
            asked: &[],
        },
        Test {
            name: "an_allocator_may_read_links_while_it_is_set_up",
            need: nothing,
            daemon: |_, _, _| None,
            child: |_| {
                // It brings jemalloc.
                let mut compiler = Command::new("rustc").arg("-vV").spawn().unwrap();
                for _ in 0..200 {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    if let Some(status) = compiler.try_wait().unwrap() {
                        assert!(status.success());
                        return;
                    }
                }
                compiler.kill().unwrap();
                panic!("rustc hangs");
            },
            asked: &[],
        },
        Test {
            name: "nodes_are_the_daemons",
            need: nothing,
            daemon: |_, _, _| None,
            child: |_| {
                let path = c"/dev/ploop10001p1";
                let device = libc::makedev(wire::MAJOR, 16 * DEVICE + 1);
                set_errno(5);
                // SAFETY: C strings.
                unsafe {
                    assert_eq!(libc::mknod(path.as_ptr(), libc::S_IFBLK, device), 0);
                    assert_eq!(libc::chmod(path.as_ptr(), 0o600), 0);
                    assert_eq!(errno(), 5);
                    assert_eq!(libc::access(path.as_ptr(), libc::F_OK), -1);
                    assert_eq!(libc::chmod(c"/none/none".as_ptr(), 0o600), -1);
                }
                assert_eq!(errno(), libc::ENOENT);
            },
            asked: &[],
        },
        Test {
            name: "the_balloon_option_goes_to_the_daemon",
            need: root,
            daemon: |request, _, _| {
                assert_eq!(request.node, Node::Partition(DEVICE));
                let inode = std::str::from_utf8(&request.payload).unwrap();
                inode.parse::<u64>().unwrap();
                Some(Reply::of(0))
            },
            child: |directory| {
                let target = std::ffi::CString::new(directory.to_str().unwrap()).unwrap();
                // SAFETY: C strings. A temporary file system wants no device, and knows no such option.
                unsafe {
                    assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0);
                    let private = libc::MS_REC | libc::MS_PRIVATE;
                    let (none, root) = (std::ptr::null(), c"/".as_ptr());
                    assert_eq!(libc::mount(none, root, none, private, none.cast()), 0);
                    let mount = |flags, data: &str| {
                        let data = std::ffi::CString::new(data).unwrap();
                        libc::mount(
                            c"/dev/ploop10001p1".as_ptr(),
                            target.as_ptr(),
                            c"tmpfs".as_ptr(),
                            flags,
                            data.as_ptr().cast(),
                        )
                    };
                    let remount = libc::MS_REMOUNT;
                    assert_eq!(mount(0, "size=1m"), 0);
                    fs::write(directory.join(BALLOON_NAME), "").unwrap();
                    let inode = fs::metadata(directory.join(BALLOON_NAME)).unwrap().ino();
                    assert_eq!(mount(remount, &format!("balloon_ino={inode},wrong=1")), -1);
                    assert_eq!(errno(), libc::EINVAL);
                    // Of no file by that name, and no number.
                    assert_eq!(mount(remount, &format!("balloon_ino={}", inode + 1)), 0);
                    assert_eq!(mount(remount, "balloon_ino=x"), -1);
                    assert_eq!(errno(), libc::EINVAL);
                    let options = format!("size=2m,balloon_ino={inode},nr_inodes=100");
                    assert_eq!(mount(remount, &options), 0);
                }
                let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
                let line = mounts
                    .lines()
                    .find(|line| line.contains(directory.to_str().unwrap()));
                let line = line.unwrap();
                assert!(line.contains("size=2048k,nr_inodes=100"), "{line}");
            },
            // The first mount has none, which the daemon is told too.
            asked: &[call::BALLOON_INODE as u64; 2],
        },
        Test {
            name: "the_balloon_of_another_thread_stays",
            need: nothing,
            daemon: |_, _, _| None,
            child: |directory| {
                let root = File::open(directory).unwrap();
                use_ploop();
                let name = ".balloon-c3a5ae3d-ce7f-43c4-a1ea-c61e2b4504e8";
                fs::write(directory.join(name), "air").unwrap();
                let other = directory.join("other");
                fs::create_dir(&other).unwrap();
                fs::write(other.join(name), "air").unwrap();
                let other_root = File::open(&other).unwrap();
                let mine = call_number(&root, OPEN_BALLOON, 0).unwrap();
                // SAFETY: just opened, and nobody else's.
                unsafe { libc::close(mine) };
                // Another thread has the number of the balloon that was closed, and this thread waits for a child.
                let balloon =
                    std::thread::spawn(move || call_number(&other_root, OPEN_BALLOON, 0).unwrap());
                assert_eq!(balloon.join().unwrap(), mine, "the lowest number");
                let (child, link) = waiting_child(mine);
                // SAFETY: the place is valid.
                let status = unsafe {
                    let mut status = 0;
                    assert_eq!(libc::waitpid(child, &mut status, 0), child);
                    libc::WEXITSTATUS(status)
                };
                assert_eq!(status, 8, "it stepped aside");
                assert!(
                    fs::read_link(link)
                        .unwrap()
                        .ends_with(Path::new("other").join(name))
                );
            },
            asked: &[],
        },
        Test {
            name: "attached_files_are_kept",
            need: nothing,
            daemon: |_, _, _| None,
            child: attached_files_are_kept,
            asked: &[],
        },
        Test {
            name: "the_balloon_is_hidden_and_opened_in_its_directory",
            need: nothing,
            daemon: |_, _, _| None,
            child: |directory| {
                let root = File::open(directory).unwrap();
                use_ploop();
                assert_eq!(call_number(&root, OPEN_BALLOON, 0), Err(libc::ENOENT));
                // The file system is mounted with it once it is there: see `aliases`.
                let name = BALLOON_NAME;
                fs::write(directory.join("balloon"), "air").unwrap();
                fs::hard_link(directory.join("balloon"), directory.join(name)).unwrap();
                hidden(directory);
                let balloon = call_number(&root, OPEN_BALLOON, 0).unwrap();
                // SAFETY: just opened, and nobody else's.
                let mut balloon = unsafe { File::from_raw_fd(balloon) };
                balloon.write_all(b"AIR").unwrap();
                let name = "balloon";
                assert_eq!(fs::read_to_string(directory.join(name)).unwrap(), "AIR");
                assert_eq!(
                    call_pointer(&balloon, SET_RSV_BLOCKS, &mut [1]),
                    Err(libc::ENOTTY)
                );
                // It steps aside for a child where ext4 cannot be grown while mounted, and is there again.
                let (child, link) = waiting_child(balloon.as_raw_fd());
                // SAFETY: the place is valid.
                let status = unsafe {
                    let mut status = 0;
                    assert_eq!(libc::waitpid(child, &mut status, 0), child);
                    libc::WEXITSTATUS(status)
                };
                assert_eq!(status, if may_grow() { 8 } else { 7 });
                assert_ne!(fs::read_link(link).unwrap(), Path::new("/dev/null"));
                balloon.write_all(b"!").unwrap();
                assert_eq!(fs::read_to_string(directory.join(name)).unwrap(), "AIR!");
            },
            asked: &[],
        },
    ]
}

/// libploop's name for the balloon.
const BALLOON_NAME: &str = ".balloon-c3a5ae3d-ce7f-43c4-a1ea-c61e2b4504e8";

/// Nobody sees the balloon, or does anything to it by its name; a file of another name is left alone.
fn hidden(directory: &Path) {
    let path = directory.join(BALLOON_NAME);
    let other = directory.join("other");
    fs::write(&other, "").unwrap();
    let refused = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EPERM));
    };
    refused(fs::metadata(&path).map(drop));
    refused(fs::symlink_metadata(&path).map(drop));
    refused(File::open(&path).map(drop));
    refused(File::create(&path).map(drop));
    refused(fs::remove_file(&path));
    refused(fs::rename(&other, &path));
    refused(fs::rename(&path, &other));
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: C strings.
    unsafe {
        assert_eq!(libc::access(name.as_ptr(), libc::F_OK), -1);
        assert_eq!(errno(), libc::EPERM);
        assert!(libc::fopen(name.as_ptr(), c"r".as_ptr()).is_null());
        assert_eq!(errno(), libc::EPERM);
        assert_eq!(libc::truncate(name.as_ptr(), 0), -1);
        assert_eq!(errno(), libc::EPERM);
    }
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["balloon", "other"]);
    fs::remove_file(other).unwrap();
}

/// Lists a file as one that is attached, as the daemon does.
fn attach(directory: &Path, file: &Path) {
    let metadata = fs::metadata(file).unwrap();
    let numbers = [1, 0, metadata.dev(), metadata.ino()];
    let list = File::options()
        .write(true)
        .open(directory.join("..").join(wire::ATTACHED))
        .unwrap();
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
    list.write_all_at(&bytes, 0).unwrap();
}

#[track_caller]
fn fails<T>(result: std::io::Result<T>, errno: i32) {
    let error = result.err().expect("it is allowed");
    assert_eq!(error.raw_os_error(), Some(errno));
}

/// What is forbidden of a file that is attached, and what is not.
fn attached_files_are_kept(directory: &Path) {
    let [image, other, third] = ["image", "other", "third"].map(|name| directory.join(name));
    fs::write(&image, [1; 8192]).unwrap();
    fs::write(&other, "other").unwrap();
    attach(directory, &image);
    let c_string = |path: &Path| std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let (name, free) = (c_string(&image), c_string(&third));
    fails(fs::remove_file(&image), libc::EPERM);
    fails(fs::rename(&image, &third), libc::EPERM);
    fails(fs::rename(&other, &image), libc::EPERM);
    fails(File::create(&image), libc::ETXTBSY);
    fails(File::create_new(&image), libc::EEXIST);
    let open = || File::options().read(true).write(true).open(&image).unwrap();
    let file = open();
    fails(file.set_len(0), libc::ETXTBSY);
    fails(file.set_len(8192), libc::ETXTBSY);
    fails(File::open(&image).unwrap().set_len(0), libc::EINVAL);
    let directory_file = File::open(directory).unwrap();
    let (at, here) = (directory_file.as_raw_fd(), libc::AT_FDCWD);
    let failed = |result: i32, expected: i32| {
        assert_eq!((result, errno()), (-1, expected));
    };
    let fd = file.as_raw_fd();
    // SAFETY: C strings and open files.
    unsafe {
        failed(libc::remove(name.as_ptr()), libc::EPERM);
        failed(libc::unlinkat(at, c"image".as_ptr(), 0), libc::EPERM);
        failed(
            libc::renameat(at, c"image".as_ptr(), here, free.as_ptr()),
            libc::EPERM,
        );
        let exchange = libc::RENAME_EXCHANGE;
        failed(
            libc::renameat2(at, c"other".as_ptr(), here, name.as_ptr(), exchange),
            libc::EPERM,
        );
        failed(libc::creat(name.as_ptr(), 0o600), libc::ETXTBSY);
        assert!(libc::fopen(name.as_ptr(), c"w".as_ptr()).is_null());
        assert_eq!(errno(), libc::ETXTBSY);
        failed(libc::truncate(name.as_ptr(), 100), libc::ETXTBSY);
        failed(
            libc::fallocate(fd, libc::FALLOC_FL_KEEP_SIZE, 0, 4096),
            libc::ETXTBSY,
        );
        failed(libc::fallocate(fd, 0, 8192, 4096), libc::ETXTBSY);
        set_errno(0);
        assert_eq!(libc::posix_fallocate(fd, 0, 4096), libc::ETXTBSY);
        assert_eq!(errno(), 0);
    }
    // It is whole, and may grow.
    assert_eq!(fs::read(&image).unwrap(), [1; 8192]);
    file.set_len(10_000).unwrap();
    file.write_all_at(b"end", 12_000).unwrap();
    File::options()
        .append(true)
        .open(&image)
        .unwrap()
        .write_all(b"!")
        .unwrap();
    assert_eq!(fs::metadata(&image).unwrap().len(), 12_004);
    // SAFETY: a C string; the mapping is not used.
    unsafe {
        assert_eq!(libc::truncate(name.as_ptr(), 20_000), 0);
        assert_eq!(libc::chmod(name.as_ptr(), 0o640), 0);
        let map = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ,
            libc::MAP_SHARED,
            fd,
            0,
        );
        assert_ne!(map, libc::MAP_FAILED);
    }
    // With a second name either may go, as long as one is left.
    fs::hard_link(&image, &third).unwrap();
    fs::rename(&image, &third).unwrap();
    fs::rename(&image, directory.join("renamed")).unwrap();
    fs::remove_file(&third).unwrap();
    fails(fs::remove_file(directory.join("renamed")), libc::EPERM);
    // Others are left alone.
    fs::write(&other, "new").unwrap();
    fs::remove_file(&other).unwrap();
}

/// What marks a process as one that uses ploop, libploop not being linked in here.
fn use_ploop() {
    File::open("/proc/vz/ploop_minor").unwrap();
}

/// Has this process CAP_SYS_RESOURCE?
fn may_grow() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap() & 1 << 24 != 0
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

fn set_errno(value: i32) {
    // SAFETY: the address is that of the thread's own variable.
    unsafe { *libc::__errno_location() = value };
}

fn call_number(file: &File, request: u64, argument: u64) -> Result<i32, i32> {
    // SAFETY: an argument that is an address and no memory is checked by who reads it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) };
    if result < 0 { Err(errno()) } else { Ok(result) }
}

fn call_pointer(file: &File, request: u64, argument: &mut [u64]) -> Result<i32, i32> {
    call_number(
        file,
        request,
        argument.as_mut_ptr().expose_provenance() as u64,
    )
}

/// Beside this program, where Cargo puts it for a test's sake.
fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let name = "libploop_sandbox_preload.so";
    program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{name} is not built"))
}

fn run(test: &Test) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::create_dir(path.join("vz")).unwrap();
    fs::write(path.join("vz/ploop_minor"), "160016\n").unwrap();
    fs::create_dir(path.join("work")).unwrap();
    let list = File::create_new(path.join(wire::ATTACHED)).unwrap();
    list.set_len(wire::attached::LEN as u64).unwrap();
    let work = path.join("work");
    let listener = UnixListener::bind(path.join("socket")).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (daemon, log) = (test.daemon, Arc::clone(&asked));
    let thread = std::thread::spawn(move || {
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let (request, files) = receive(&mut stream);
            let reply = match request.call {
                call::PING => return,
                call::ALIASES => Some(Reply {
                    result: 0,
                    payload: Alias::to_payload(&aliases(&work)),
                }),
                call => {
                    log.lock().unwrap().push(u64::from(call));
                    daemon(&request, &files, &mut stream)
                }
            };
            drop(files);
            if let Some(reply) = reply {
                reply.write(&mut stream).unwrap();
            }
        }
    });
    let socket = if test.name == WITHOUT {
        "none"
    } else {
        "socket"
    };
    let output = Command::new(std::env::current_exe().unwrap())
        .env(CHILD, test.name)
        .env(DIRECTORY, path.join("work"))
        .env("LD_PRELOAD", library())
        .env(wire::SOCKET, path.join(socket))
        .env(wire::PROC_VZ, path.join("vz"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}", output.status);
    // The thread has ended by itself if a look of the daemon's failed.
    let ping = Request {
        call: call::PING,
        node: Node::None,
        argument: 0,
        payload: Vec::new(),
    };
    if let Ok(mut stream) = UnixStream::connect(path.join("socket")) {
        let _ = stream.write_all(&ping.to_bytes());
    }
    thread.join().unwrap();
    assert_eq!(*asked.lock().unwrap(), test.asked);
}

/// The loop device, what the root of this process is mounted from, and what the children's directory lies on: mounted with
/// the balloon in that directory, if there is one.
fn aliases(work: &Path) -> [Alias; 3] {
    let list = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let number = list.split(' ').nth(2).unwrap();
    let (major, minor) = number.split_once(':').unwrap();
    let alias = |device, whole, balloon_inode| Alias {
        device,
        whole,
        partition: None,
        balloon_inode,
    };
    let balloon = fs::metadata(work.join(BALLOON_NAME)).map(|found| found.ino());
    let device = fs::metadata(work).unwrap().dev();
    let work = (libc::major(device), libc::minor(device));
    let root = (major.parse().unwrap(), minor.parse().unwrap());
    let of_root = if work == root {
        balloon.as_ref().ok()
    } else {
        None
    };
    [
        alias(DEVICE, (7, 0), None),
        alias(10002, root, Some(of_root.copied().unwrap_or(12))),
        alias(10003, work, balloon.ok()),
    ]
}

/// Reads a request and what came beside its first byte.
fn receive(stream: &mut UnixStream) -> (Request, Vec<OwnedFd>) {
    let mut first = [0u8];
    let mut control = [0u64; 16];
    let mut files = Vec::new();
    // SAFETY: zeros are a valid message, which points to places that live on; the kernel fills in headers that lie within
    // the control buffer, and the descriptors in them are new.
    unsafe {
        let mut part = libc::iovec {
            iov_base: first.as_mut_ptr().cast(),
            iov_len: 1,
        };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let flags = libc::MSG_CMSG_CLOEXEC;
        assert_eq!(libc::recvmsg(stream.as_raw_fd(), &mut message, flags), 1);
        let header = libc::CMSG_FIRSTHDR(&message);
        if !header.is_null() {
            assert_eq!((*header).cmsg_type, libc::SCM_RIGHTS);
            let data = libc::CMSG_DATA(header).cast::<libc::c_int>();
            files.push(OwnedFd::from_raw_fd(data.read_unaligned()));
        }
    }
    let mut whole = Cursor::new(first).chain(stream);
    (Request::read(&mut whole).unwrap(), files)
}
