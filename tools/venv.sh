# Sourced by the scripts beside it, in the root of the clone. `ensure_venv EXTRAS` makes .venv there (VENV names another
# folder), installs ppvilg[EXTRAS] into it unless that was done from the same setup.py before, and sets $python.

unset PYTHONPATH PYTHONHOME # of other Pythons
use_venv() {
    case "$1" in
        /*) venv=$1 ;;
        *) venv=$PWD/$1 ;;
    esac
    python=$venv/bin/python
}
use_venv "${VENV:-.venv}"

fail() {
    echo "error: $*" >&2
    exit 1
}

# Of this process, whatever OMP_NUM_THREADS says, which nproc would repeat.
cores() {
    env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN
}

python_version() { # of an interpreter, such as 3.12, 3.13t or pypy 3.11; nothing if it does not run
    "$1" -c '
import sys
name = sys.implementation.name
print("%s%d.%d%s" % (("" if name == "cpython" else name + " "), *sys.version_info[:2], "t" * ("t" in sys.abiflags)))
' 2>/dev/null
}

is_supported() {
    case "$(python_version "$1")" in
        3.10 | 3.11 | 3.12 | 3.13) return 0 ;;
        *) return 1 ;;
    esac
}

makes_environments() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

# The first interpreter that Paddle has builds for, those that make environments first. PYTHON=/path/to/python chooses
# another.
find_python() {
    local candidate found second=
    if [ -n "${PYTHON:-}" ]; then
        found=$(python_version "$PYTHON") || fail "PYTHON=$PYTHON does not run; give the path of a Python 3.10 to 3.13"
        is_supported "$PYTHON" || fail "PYTHON=$PYTHON is Python $found; Python 3.10 to 3.13 is needed"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.12 python3.11 python3.13 python3.10 \
        "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.1[0-3].*/bin/python; do
        if is_supported "$candidate"; then
            if makes_environments "$candidate"; then
                echo "$candidate"
                return
            fi
            second=${second:-$candidate}
        fi
    done
    if [ -n "$second" ]; then
        echo "$second"
        return
    fi
    fail "no Python 3.10 to 3.13 found. Set PYTHON=/path/to/python, or get one, for example: sudo apt-get install" \
        "python3 python3-venv (Debian 12 and 13, Ubuntu 22.04 and later); pyenv install 3.12; uv python install 3.12"
}

# room FOLDER MEGABYTES WHAT: stops where the disk of a folder has less.
room() {
    local free
    free=$(($(df -Pk -- "$1" | awk 'END {print $4}') / 1024))
    [ "$free" -ge "$2" ] || fail "$1 has $free MB free, $3 needs about $2: make room${4:-}"
}

room_for_packages() {
    local at=$venv there=0 temporary=${TMPDIR:-/tmp} needed
    [ ! -d "$venv" ] || there=$(($(du -sk -- "$venv/" | awk '{print $1}') / 1024))
    while [ ! -d "$at" ]; do at=$(dirname -- "$at"); done
    needed=$((2600 - there))
    if [ "$needed" -gt 100 ]; then
        room "$at" "$needed" "the environment"
        [ -d "$temporary" ] || temporary=/tmp # as Python does
        room "$temporary" $((needed / 2)) "pip" ", or set TMPDIR to another folder"
    fi
}

make_venv() {
    local base found wanted
    found=$(python_version "$python" || true)
    if [ -n "$found" ]; then
        is_supported "$python" || fail "$venv is of Python $found, 3.10 to 3.13 is needed: remove that folder"
        wanted=${PYTHON:+$(python_version "$(find_python)")}
        [ -z "$wanted" ] || [ "$wanted" = "$found" ] ||
            fail "$venv is of Python $found and PYTHON of $wanted: remove that folder, or unset PYTHON"
        "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null ||
            fail "$venv has no pip and cannot get it: remove that folder"
        return
    fi
    if [ -L "$python" ] || [ -e "$venv/pyvenv.cfg" ]; then
        fail "$python does not run; its Python may have been removed, or it is of another system: remove $venv"
    fi
    base=$(find_python)
    makes_environments "$base" ||
        fail "$base cannot make virtual environments; on Debian and Ubuntu: sudo apt-get install python3-venv"
    room_for_packages
    "$base" -m venv "$venv" || fail "$base could not make $venv; the messages above say why"
}

install() { # pip install ...; settings that would put packages elsewhere do not count
    env -u PIP_USER -u PIP_TARGET -u PIP_PREFIX "$python" -m pip install -qq --disable-pip-version-check --no-user "$@" ||
        fail "pip could not install $extras; the messages above say why, then run this script again$(proxy_hint)"
}

proxy_hint() {
    local name
    for name in https_proxy HTTPS_PROXY all_proxy ALL_PROXY; do
        case "${!name:-}" in
            '') continue ;;
            socks*) echo ". $name names a SOCKS proxy, which pip cannot use: unset it, or name an http:// one" ;;
            *) echo ". A proxy is set by $name: if it does not answer, pip finds no distribution" ;;
        esac
        return
    done
}

# The font and the names that data are rendered from: found, installed where root may, or asked for before other work.
ensure_assets() {
    local any=$python
    is_supported "$any" || any=$(find_python)
    "$any" -c '
import runpy, sys
try:
    runpy.run_path("ppvilg/emoji/objects.py")["require_assets"]()
except FileNotFoundError as error:
    sys.exit(f"error: {error}")'
}

ensure_venv() {
    local extras=$1 stamp wanted apart
    make_venv
    stamp=$venv/installed-${extras//,/-}
    wanted="$PWD $(cat setup.py ppvilg/_versions.py | sha256sum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    room_for_packages
    echo "      installing ppvilg[$extras] into $venv (2.4 GB, two to five minutes the first time)"
    install -e ".[$extras]"
    # What later Pythons get without its own requirements; see ppvilg/_versions.py.
    apart=$("$python" -c 'import runpy; print(*runpy.run_path("ppvilg/_versions.py")["installed_apart"]())')
    if [ -n "$apart" ]; then
        # shellcheck disable=SC2086  # a list of words
        install --no-deps $apart
    fi
    "$python" -c '
import sys
from ppvilg._versions import describe, find_problems
problems = find_problems()
sys.exit(describe(problems) if problems else 0)' ||
        fail "what is in $venv does not fit together: follow the lines above, or remove that folder"
    echo "$wanted" >"$stamp"
}
