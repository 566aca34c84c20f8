#!/usr/bin/env bash
# Unpacks the oldest Rust that builds the workspace, and standard libraries of other targets, from Debian's packages
# below target/.
#
#   ci/rust.sh [--check]
#
# --check    unpack nothing; exit with 1 if it is not there
#
# The programs are target/rust-VERSION/bin/cargo and rustc. Nothing is installed, because these packages conflict with
# rustup's and with Debian's own Rust, and those of other targets would need foreign architectures in dpkg. So no root is
# needed. apt checks the signatures as always.
#
# Debian 12 has Rust 1.85 as rustc-web, Debian 13 as rustc. Elsewhere: rustup toolchain install VERSION.
# Exit code: 0 it is there; 1 it is not, or there is no such package; 2 wrong usage.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'ci/rust.sh: %s\n' "$*" >&2; }

version=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
directory=$PWD/target/rust-$version

case ${1:-} in
--check)
    [ -x "$directory/bin/cargo" ]
    exit
    ;;
'') ;;
*)
    say "usage: ci/rust.sh [--check]"
    exit 2
    ;;
esac
if [ -x "$directory/bin/cargo" ]; then exit 0; fi
if ! command -v apt-get >/dev/null; then
    say "no apt-get here; install Rust $version with rustup"
    exit 1
fi

# The architectures that the workspace is checked for beside the machine's own.
own=$(dpkg --print-architecture)
others=()
for architecture in amd64 arm64 i386 s390x; do
    if [ "$architecture" != "$own" ]; then others+=("$architecture"); fi
done

work=$directory.new
rm -rf "$work"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/apt/lists/partial "$work"/apt/archives/partial "$work"/bin

# Separate package lists, because they are of other architectures, too.
options=(-o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache::archives=$work/apt/archives"
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Debug::NoLocking=1 -o APT::Sandbox::User=root)
for architecture in "$own" "${others[@]}"; do
    options+=(-o "APT::Architectures::=$architecture")
done

say "unpacking Rust $version below target/; reading package lists"
# A list that cannot be read does not matter as long as the packages are found.
apt-get -qq "${options[@]}" update 2>"$work/apt/words" || true

candidate() { apt-cache "${options[@]}" policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p'; }

suffix=none
for try in -web ''; do
    case $(candidate "rustc$try") in "$version".*) suffix=$try && break ;; esac
done
if [ "$suffix" = none ]; then
    cat "$work/apt/words" >&2
    say "no package has Rust $version here; install it with rustup"
    exit 1
fi

# With the libraries that they need and the machine lacks.
apt-get -qq "${options[@]}" --download-only --reinstall --yes --no-install-recommends \
    install "rustc$suffix" "cargo$suffix" "libstd-rust$suffix-dev" >&2
for architecture in "${others[@]}"; do
    (cd "$work/apt/archives" && apt-get -qq "${options[@]}" download "libstd-rust$suffix-dev:$architecture") ||
        say "no standard library for $architecture"
done
for package in "$work"/apt/archives/*.deb; do
    dpkg-deb --extract "$package" "$work"
done
rm -rf "$work/apt" "$work/usr/share"

# The programs look for libraries where the packages would have installed them. Cargo starts rustc directly and not by
# its script: a shell would drop variables whose names it does not allow, such as CARGO_BIN_EXE_ploop-sandbox.
for program in rustc rustdoc cargo; do
    cat >"$work/bin/$program" <<'SCRIPT'
#!/bin/sh
root=$(dirname "$(dirname "$(readlink -f "$0")")")
for libraries in "$root"/usr/lib/*-linux-gnu "$root"/lib/*-linux-gnu; do
    LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
done
export LD_LIBRARY_PATH RUSTC="$root/usr/bin/rustc" RUSTDOC="$root/usr/bin/rustdoc"
exec "$root/usr/bin/$(basename "$0")" "$@"
SCRIPT
    chmod +x "$work/bin/$program"
done
"$work/bin/rustc" --version >&2
"$work/bin/cargo" --version >&2
rm -rf "$directory"
mv "$work" "$directory"
