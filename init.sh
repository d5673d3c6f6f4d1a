#!/usr/bin/env bash
# Builds the virtual environment .env from the pip list of environment.yml, with the newest suitable Python.
# A second run with the same list does nothing; a failed or interrupted run is repaired by the next.
set -euo pipefail

unset CDPATH PYTHONHOME PYTHONPATH
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

cd "$(dirname "${BASH_SOURCE[0]}")"
root=$(pwd -P)
env_dir=$root/.env
stamp=$env_dir/init.stamp
log=$env_dir/init.log
lock=$root/.env.lock
least_free_kilobytes=2000000
child=
locked=

# Prints on one line whether a Python can be used: version|what is wrong with it, or nothing|its executable.
# In a virtual environment that is the base executable, as .env itself may be active while it is rebuilt.
probe='
import sys


def flaw():
    if sys.version_info < (3, 11):
        return "too old"
    if sys.version_info[3] != "final":
        return "a pre-release"
    if sys.implementation.name != "cpython" or sys.maxsize < 2**32:
        return "not a 64-bit CPython"
    import sysconfig
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "free-threaded"
    for module in ("ctypes", "ensurepip", "ssl", "venv", "zlib"):
        try:
            __import__(module)
        except ImportError:
            return "without " + module
    return ""


executable = getattr(sys, "_base_executable", sys.executable)
print("%d.%d.%d|%s|%s" % (tuple(sys.version_info[:3]) + (flaw(), executable)))
'

find_pip_wheel='
import ensurepip
import pathlib
import sysconfig

folders = pathlib.Path(ensurepip.__file__).parent / "_bundled", sysconfig.get_config_var("WHEEL_PKG_DIR")
wheels = [wheel for folder in folders if folder for wheel in pathlib.Path(folder).glob("pip-*.whl")]
print(wheels[0] if wheels else "")
'

# Wheels only, so nothing is built from source; bytecode is left to the first import.
install_options=(--no-compile --only-binary=:all: --progress-bar off --retries 2)

say() {
    printf 'init.sh: %s\n' "$1"
}

fail() {
    say "$1" >&2
    exit 1
}

finish() {
    local status=$?
    trap '' INT TERM HUP
    if [ -n "$child" ]; then
        kill "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    if [ -n "$locked" ]; then
        rm -f "$lock"
    fi
    exit "$status"
}

# Identifies a finished build by the package list, the Python version and the path, which a venv's scripts contain.
expected_stamp() {
    local version
    version=$("$env_dir/bin/python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || return 1
    printf '%s\nPython %s\n%s\n' "$(cksum <environment.yml)" "$version" "$root"
}

is_complete() {
    local expected
    [ -f "$stamp" ] && expected=$(expected_stamp) && [ "$(cat "$stamp")" = "$expected" ]
}

# Making a symbolic link is atomic, so one serves as the lock; its target is the holder's process id.
take_lock() {
    local holder
    if ! ln -s "$$" "$lock" 2>/dev/null; then
        holder=$(readlink "$lock") || fail "$root cannot be written to"
        if kill -0 "$holder" 2>/dev/null; then
            fail "another init.sh (process $holder) is at work; if that is not so, remove .env.lock"
        fi
        rm -f "$lock"
        ln -s "$$" "$lock" 2>/dev/null || fail "another init.sh has just started"
    fi
    locked=yes
}

check_disk() {
    local free
    free=$(df -Pk . | sed -n '2s/.* \([0-9][0-9]*\)  *[0-9][0-9]*% .*/\1/p')
    if [ -n "$free" ] && [ "$free" -lt "$least_free_kilobytes" ]; then
        fail "not enough disk: $((free / 1000)) MB are free here, $((least_free_kilobytes / 1000)) MB are needed,\
 6000 MB with PyTorch's CUDA packages"
    fi
}

# The entries of the list below "- pip:", without comments and quotes.
list_packages() {
    awk '
        { sub(/\r$/, "") }
        /^[ \t]*-[ \t]*pip:[ \t]*(#.*)?$/ { match($0, /-/); depth = RSTART; inside = 1; next }
        !inside || /^[ \t]*(#.*)?$/ { next }
        { match($0, /[^ \t]/); if (RSTART <= depth) { inside = 0; next } }
        { sub(/^[ \t]*-[ \t]*/, ""); sub(/[ \t]+#.*$/, ""); gsub(/^["\047]|["\047]$/, ""); print }
    ' environment.yml
}

# Every Python on the PATH, newest first: "name|path". Some may be shims that always fail.
list_pythons() {
    local name
    for name in python3.14 python3.13 python3.12 python3.11 python3; do
        type -aP "$name" 2>/dev/null | sed "s/^/$name|/" || true
    done
}

# Probes each Python, every executable once: "name|version|flaw|executable".
probe_pythons() {
    local name path version flaw executable seen='|'
    while IFS='|' read -r name path; do
        IFS='|' read -r version flaw executable < <("$path" -I -c "$probe" 2>/dev/null </dev/null) || continue
        case $seen in
        *"|$executable|"*) continue ;;
        esac
        seen="$seen$executable|"
        [ -x "$executable" ] || flaw=gone
        printf '%s|%s|%s|%s\n' "$name" "$version" "$flaw" "$executable"
    done < <(list_pythons)
}

# Runs a command in the background, so that a signal ends it at once, and prints a dot a second.
run_logged() {
    local status=0 tick=0
    "$@" >>"$log" 2>&1 </dev/null &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        tick=$((tick + 1))
        [ $((tick % 10)) -ne 0 ] || printf '.'
        sleep 0.1
    done
    wait "$child" || status=$?
    child=
    return "$status"
}

install() {
    run_logged "$env_dir/bin/python" "$@" "${install_options[@]}"
}

# Runs the pip wheel that comes with Python to install pip: much faster than unpacking and compiling it first.
install_pip() {
    local pin wheel
    pin=$(grep '^pip==' "$env_dir/requirements.txt" || true)
    wheel=$("$env_dir/bin/python" -I -c "$find_pip_wheel" 2>/dev/null || true)
    if [ -n "$wheel" ]; then
        install "$wheel/pip" install "${pin:-$wheel}"
    else
        run_logged "$env_dir/bin/python" -m ensurepip && install -m pip install "${pin:-pip}"
    fi
}

# Fails with the reason, or returns if only this Python is at fault and another one may work.
explain_failure() {
    local version=$1 reason
    printf '\n'
    if grep -q -i -E 'no space left|errno 28|disk quota' "$log"; then
        fail "the disk is full, here or in ${TMPDIR:-/tmp} (details: .env/init.log)"
    elif grep -q -i -E 'retrying \(|connection error|name resolution|timed out|proxyerror|could not fetch url' "$log"; then
        fail "no network: pip could not reach its package index (details: .env/init.log)"
    elif ! grep -q -E 'No matching distribution|requires a different Python' "$log"; then
        reason=$(grep -E '^ERROR|Error' "$log" | tail -n 1 | cut -c 1-200 || true)
        fail "the installation failed: ${reason:-no reason given} (details: .env/init.log)"
    fi
    reason=$(grep -E 'No matching|different Python' "$log" | tail -n 1 | cut -c 1-200)
    say "a package is missing for Python $version: $reason"
}

build() {
    local version=$1 executable=$2
    say "building .env with Python $version ($executable); this takes a minute or two"
    rm -rf "$env_dir"
    # The log marks the folder as ours before anything else is in it.
    { mkdir "$env_dir" && : >"$log"; } || fail ".env cannot be written to"
    if list_packages >"$env_dir/requirements.txt" &&
        run_logged "$executable" -I -m venv --without-pip "$env_dir" &&
        install_pip &&
        install -m pip install --requirement "$env_dir/requirements.txt"; then
        printf '\n'
        return
    fi
    explain_failure "$version"
    return 1
}

install_with_newest() {
    local name version flaw executable flaws="" failed=""
    while IFS='|' read -r name version flaw executable <&3; do
        if [ -n "$flaw" ]; then
            flaws="$flaws, $name is $version, $flaw"
        elif [ "${version%.*}" = "$failed" ]; then
            continue # A package missing for one Python 3.x is missing for every patch release of it.
        elif build "$version" "$executable"; then
            return
        else
            failed=${version%.*}
            flaws="$flaws, $name lacks a package"
        fi
    done 3< <(probe_pythons)
    case $flaws in
    *'without ensurepip'* | *'without venv'*) flaws="$flaws (on Debian and Ubuntu: apt install python3-venv)" ;;
    esac
    fail "no suitable Python: CPython 3.11 or newer with venv, ensurepip and ssl is needed${flaws:-, none was found}"
}

main() {
    if is_complete; then
        say ".env is up to date"
        return
    fi
    if [ -n "$(ls -A "$env_dir" 2>/dev/null)" ] && [ ! -e "$log" ] && [ ! -e "$env_dir/pyvenv.cfg" ]; then
        fail ".env exists and is no virtual environment; move it away"
    fi
    [ -n "$(list_packages)" ] || fail "environment.yml holds no pip list"
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    take_lock
    check_disk
    install_with_newest
    # The stamp is written last, and atomically.
    { expected_stamp >"$stamp.new" && mv "$stamp.new" "$stamp"; } || fail "the disk is full"
    say "done in $SECONDS s; to use it: source .env/bin/activate"
}

main
