# Sourced by the scripts beside it. `ensure_venv EXTRAS` makes .venv in the root of the clone, installs ppvilg[EXTRAS]
# into it unless that was done from the same setup.py before, and sets $python.

fail() {
    echo "error: $*" >&2
    exit 1
}

# The first interpreter that the pinned packages exist for. PYTHON=/path/to/python chooses another.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.11 python3.10}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.10 or 3.11 found (paddlenlp 2.8 cannot be installed on later ones); set PYTHON=/path/to/python3.11"
}

ensure_venv() {
    local extras=$1 base stamp wanted
    unset PYTHONPATH PYTHONHOME
    python=$PWD/.venv/bin/python
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        base=$(find_python)
        "$base" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$base cannot make virtual environments; on Debian and Ubuntu: sudo apt-get install python3-venv"
        "$base" -m venv --clear .venv
    fi
    stamp=.venv/installed-${extras//,/-}
    wanted="$PWD $(cat setup.py ppvilg/_versions.py | sha256sum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "      installing ppvilg[$extras] into $PWD/.venv (2.4 GB, about two minutes the first time)"
    "$python" -m pip install -qq --disable-pip-version-check -e ".[$extras]" ||
        fail "pip could not install ppvilg[$extras]; the messages above say why, then run this script again"
    "$python" -m pip check
    echo "$wanted" >"$stamp"
}
