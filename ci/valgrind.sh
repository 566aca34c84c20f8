#!/usr/bin/env bash
# Runs test programs under valgrind. Any memory error that ci/valgrind.supp does not name is a failure.
#
#   ci/valgrind.sh PROGRAM... [-- TEST-ARGUMENT...]
#
# `cargo xtask ci` builds the programs; `cargo test --no-run --features ploop-sys/static --message-format=json` names them
# as "executable". They have to be linked with libploop.a: the shared library is stripped, and a suppression that cannot
# name a function would hide every error of the library. A stub of libploop (cargo xtask stub) has its names.
#
# Programs that a test starts run without valgrind; forked children run under it.
#
# Exit code: 0 no error; 1 errors or failed tests; 2 wrong usage; 4 libploop is in none of the programs.
set -euo pipefail

suppressions="$(cd "$(dirname "$0")" && pwd)/valgrind.supp"
programs=()
while [ $# -gt 0 ]; do
    if [ "$1" = -- ]; then
        shift
        break
    fi
    programs+=("$1")
    shift
done
if [ "${#programs[@]}" -eq 0 ]; then
    echo "usage: ci/valgrind.sh PROGRAM... [-- TEST-ARGUMENT...]" >&2
    exit 2
fi

failed=()
watched=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for program in "${programs[@]}"; do
    library=$(ldd "$program" | sed -n 's/^[[:space:]]*libploop\.so.* => \([^ ]*\) .*/\1/p')
    is_stub=
    if [ -n "$library" ]; then
        if ! grep -q ploop_stub "$library"; then
            echo "$program is linked with libploop.so: build it with --features ploop-sys/static" >&2
            exit 2
        fi
        is_stub=1
    fi
    name=$(basename "$program")
    # A program that calls libploop has this function.
    if [ -z "$is_stub" ] && ! grep -q __ploop_err "$program"; then
        printf 'valgrind: %s: left out, without libploop\n' "$name"
        continue
    fi
    printf 'valgrind: %s\n' "$name"
    watched=$((watched + 1))
    # A separate exit code tells valgrind's errors from failed tests. Only one thread runs at a time under valgrind, so
    # one test at a time keeps waits for locks short.
    status=0
    # The over-reads of Debian's libploop must end in the space between blocks; otherwise the program may crash.
    valgrind --quiet --redzone-size=4096 --error-exitcode=99 --leak-check=no --num-callers=30 --fair-sched=try \
        --suppressions="$suppressions" --log-file="$log" \
        "$program" --test-threads=1 "$@" </dev/null || status=$?
    # Because of --quiet, the log is empty without errors. A child that the test kills leaves lines that are no errors.
    if [ "$status" -eq 99 ] || grep -qE 'Invalid (read|write|free)|uninitialised|unaddressable|overlap|Mismatched|Jump to the invalid' "$log"; then
        cat "$log" >&2
        printf 'valgrind: %s: memory errors\n' "$name" >&2
        failed+=("$name")
    elif [ "$status" -ne 0 ]; then
        printf 'valgrind: %s: tests failed (exit code %s)\n' "$name" "$status" >&2
        failed+=("$name")
    fi
done

if [ "${#failed[@]}" -ne 0 ]; then
    printf 'valgrind: failed: %s\n' "${failed[*]}" >&2
    exit 1
fi
if [ "$watched" -eq 0 ]; then
    echo "valgrind: none of the programs has libploop in it" >&2
    exit 4
fi
printf 'valgrind: %d programs, no error outside ci/valgrind.supp\n' "$watched"
