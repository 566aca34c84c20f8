#!/usr/bin/env bash
# Installs what the workspace needs beside the Rust toolchain, with the system's package manager.
#
#   ci/setup.sh [--check | --dry-run] [GROUP...]
#
# Groups (none named: all but rust):
#   build    libploop's development package, pkg-config, a C compiler to link with
#   test     the programs libploop and the tests run
#   sandbox  the programs that the sandbox and its tests run
#   bench    what the benchmarks measure with and against
#   bindgen  libclang, with which `cargo xtask bindgen` reads the C header
#   ci       what else `cargo xtask ci` needs
#   rust     the oldest Rust that builds the workspace, and standard libraries of other targets, by ci/rust.sh: on Debian
#            only, unpacked below target/ and not installed
#
# --check    install nothing; print the missing packages, one a line; exit with 1 if there are any
# --dry-run  install nothing; print the commands that would run
#
# Prints what it installs, uses sudo if not root, and does nothing if nothing is missing.
# Exit code: 0 nothing is missing; 1 something is missing or could not be installed; 2 wrong usage or unknown system.
set -euo pipefail

# On Debian, only root's PATH has the directories of administrators' programs.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf 'ci/setup.sh: %s\n' "$*" >&2; }

usage() {
    sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
}

mode=install
groups=()
for argument in "$@"; do
    case $argument in
    --check) mode=check ;;
    --dry-run) mode=dry-run ;;
    build | test | sandbox | bench | bindgen | ci | rust) groups+=("$argument") ;;
    *) usage ;;
    esac
done
if [ "${#groups[@]}" -eq 0 ]; then
    groups=(build test sandbox bench bindgen ci)
fi

wants() {
    local group
    for group in "${groups[@]}"; do
        if [ "$group" = "$1" ]; then return 0; fi
    done
    return 1
}

# Packages have other names in other distributions.
family=unknown
if command -v apt-get >/dev/null; then
    family=debian
elif command -v dnf >/dev/null; then
    family=rhel
fi

if wants rust && ! "$(dirname "$0")/rust.sh" --check; then
    case $mode in
    check) rust_missing=1 && printf 'rustc-web (unpacked by ci/rust.sh)\n' ;;
    dry-run) printf 'ci/rust.sh\n' ;;
    install) "$(dirname "$0")/rust.sh" || exit 1 ;;
    esac
fi

missing=()

# need DEBIAN-PACKAGE RHEL-PACKAGE TEST...: the package is missing if the test fails. The tests look for the programs, not
# the packages: so a program from elsewhere counts, and the check is quick.
need() {
    local debian=$1 rhel=$2
    shift 2
    if "$@" >/dev/null 2>&1; then return 0; fi
    if [ "$family" = rhel ]; then missing+=("$rhel"); else missing+=("$debian"); fi
}

program() { command -v "$1"; }

pkg_config() { command -v "${PKG_CONFIG:-pkg-config}" || command -v pkgconf; }

# --exists and --cflags would also look for the development package of libxml2, which is not needed.
libploop() { [ -n "${PLOOP_LIB_DIR:-}" ] || "$(pkg_config)" --modversion ploop; }

# Whether it is libploop 7, which runs more programs than others.
libploop_7() {
    if [ -n "${PLOOP_LIB_DIR:-}" ]; then
        [ -e "$PLOOP_LIB_DIR/libploop.so.7" ]
    else
        "$(pkg_config)" --modversion ploop 2>/dev/null | grep -q '^7[.]'
    fi
}

libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] || grep -q 'libclang\(-[0-9.]*\)\?\.so' <<<"$(ldconfig -p)" ||
        ls /usr/lib/llvm*/lib/libclang.so* /usr/lib/llvm*/lib/libclang-[0-9]*.so*
}

# Where their modules are not loaded, the sandbox says so; modprobe loads them.
loop_and_fuse() { { [ -e /dev/loop-control ] && [ -e /dev/fuse ]; } || command -v modprobe; }

# The package with qemu-storage-daemon, which Debian moved out of qemu-system-common between QEMU 7 and 10.
storage_daemon() {
    if [ "$family" = debian ] && grep -q 'Candidate: [0-9]*:[0-9][.]' <<<"$(apt-cache policy qemu-utils 2>/dev/null)"; then
        printf 'qemu-system-common\n'
    else
        printf 'qemu-utils\n'
    fi
}

if wants build; then
    need gcc gcc program cc
    need pkg-config pkgconf-pkg-config pkg_config
    need libploop-dev ploop-devel libploop
fi
if wants test; then
    need e2fsprogs e2fsprogs program mkfs.ext4
    need parted parted program parted
    need ploop ploop program ploop
    need qemu-utils qemu-img program qemu-img
    need xz-utils xz program xz
    # For the tests on a stub of libploop 7, which the real one would run.
    need gdisk gdisk program sgdisk
fi
if wants sandbox; then
    need e2fsprogs e2fsprogs program resize2fs
    need parted parted program parted
    need mount util-linux program mount
    need util-linux util-linux program fstrim
    need lsof lsof program lsof
    if libploop_7; then
        need gdisk gdisk program sgdisk
        need parted parted program partprobe
        need rsync rsync program rsync
    fi
    need kmod kmod loop_and_fuse
fi
if wants bench; then
    need fio fio program fio
    need "$(storage_daemon)" qemu-img program qemu-storage-daemon
    need qemu-utils qemu-img program qemu-img
    need tar tar program tar
fi
if wants bindgen; then
    need libclang1 clang-libs libclang
fi
if wants ci; then
    need lsof lsof program lsof
    need strace strace program strace
    need valgrind valgrind program valgrind
fi

if [ "${#missing[@]}" -eq 0 ]; then
    exit "${rust_missing:-0}"
fi
if [ "$mode" = check ]; then
    printf '%s\n' "${missing[@]}"
    exit 1
fi

case $family in
debian)
    # The C compiler needs the headers of the C library.
    case " ${missing[*]} " in *" gcc "*) missing+=(libc6-dev) ;; esac
    # Waits for another package manager that is running.
    apt=(env DEBIAN_FRONTEND=noninteractive apt-get --quiet -o DPkg::Lock::Timeout=120)
    refresh=("${apt[@]}" update)
    install=("${apt[@]}" install --yes --no-install-recommends "${missing[@]}")
    ;;
rhel)
    refresh=()
    install=(dnf install --assumeyes "${missing[@]}")
    case " ${missing[*]} " in
    *" ploop-devel "*) say "ploop-devel is in the OpenVZ repositories; add them to dnf" ;;
    esac
    ;;
*)
    say "no apt-get and no dnf here; install these packages (Debian's names) by hand: ${missing[*]}"
    exit 2
    ;;
esac

sudo=()
if [ "$(id -u)" -ne 0 ]; then
    if [ "$mode" = install ] && ! command -v sudo >/dev/null; then
        say "not root, and no sudo here; install these packages by hand: ${missing[*]}"
        exit 1
    fi
    sudo=(sudo)
fi

# Whether the package lists know every missing package. Refreshing them takes longer than the rest.
lists_known() {
    local package
    for package in "${missing[@]}"; do
        grep -q 'Candidate: [^(]' <<<"$(apt-cache policy "$package" 2>/dev/null)" || return 1
    done
}

run() {
    if [ "$mode" = dry-run ]; then
        printf '%s\n' "$*"
    else
        say "$*"
        "$@" </dev/null
    fi
}

say "installing: ${missing[*]}"
if [ "$family" = debian ] && ! lists_known; then
    run "${sudo[@]}" "${refresh[@]}"
    refresh=()
fi
if ! run "${sudo[@]}" "${install[@]}"; then
    # The lists may be too old for the archive.
    if [ "${#refresh[@]}" -eq 0 ]; then exit 1; fi
    run "${sudo[@]}" "${refresh[@]}"
    run "${sudo[@]}" "${install[@]}" || exit 1
fi
