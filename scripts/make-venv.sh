#!/bin/sh
# Makes .venv what requirements.lock says, from nothing but Python 3.11 or newer. Instant when it already is.
#
# The stamp (.venv/.ready) names the checkout, the lock and the packaging it was made from, so that a changed lock, a
# moved checkout or an interrupted installation is noticed whatever the files' times say.
set -eu

cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE PYTHONHOME PYTHONPATH VIRTUAL_ENV || true

venv=.venv
stamp=$venv/.ready
unfinished=$venv/.unfinished

say() { printf '%s\n' "$*" >&2; }

wanted() {
    pwd
    cksum requirements.lock pyproject.toml
}

# A shim or a Debian without python3-venv is on the PATH without being of use: try, do not look.
usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, '"$2"'))' >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        usable "$PYTHON" 99 && { echo "$PYTHON"; return; }
        say "PYTHON=$PYTHON is not a Python 3.11 or newer with the venv and ensurepip modules."
        exit 1
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        usable "$candidate" 14 && { echo "$candidate"; return; }
    done
    # Newer than what the lock was tried with, but better than none.
    for candidate in python3 python3.14 python; do
        usable "$candidate" 99 && { echo "$candidate"; return; }
    done
    say "Affinery needs Python 3.11 or newer with the venv module; none of python3, python3.11 … python3.14 on the PATH is one."
    say "Install one (Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.12),"
    say "or name it: make PYTHON=/path/to/python3.12"
    exit 1
}

if [ -f "$stamp" ] && [ ! -e "$unfinished" ] && "$venv/bin/python" -c '' 2>/dev/null \
    && wanted | cmp -s - "$stamp"; then
    exit 0
fi

# An environment that was being filled when somebody pressed Ctrl-C may hold half a package that looks whole, and one from
# before the checkout was moved has its old path in every script: neither can be mended in place.
if [ -e "$venv" ]; then
    if [ -e "$unfinished" ]; then
        say "The last installation was interrupted; making .venv anew."
        rm -rf "$venv"
    elif ! usable "$venv/bin/python" 99 || ! { "$venv/bin/python" -m pip --version ||
        "$venv/bin/python" -m ensurepip; } >/dev/null 2>&1; then
        say "The .venv here does not work; making it anew."
        rm -rf "$venv"
    elif [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" != "$(pwd)" ]; then
        say "The .venv here was made for another folder; making it anew."
        rm -rf "$venv"
    fi
fi

if [ ! -e "$venv" ]; then
    python=$(find_python)
    say "Making .venv with $("$python" --version 2>&1)."
    mkdir "$venv"
    : >"$unfinished"
    "$python" -m venv "$venv"
fi
: >"$unfinished"
rm -f "$stamp"

# uv installs in a minute what takes pip several. It comes from the same lock as everything else.
uv=$(grep '^uv==' requirements.lock)
"$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-input "$uv"

if [ -t 2 ]; then quiet=; else quiet=--quiet; fi
say "Installing $(grep -c '==' requirements.lock) locked packages into .venv; the first time this takes a few minutes."
# shellcheck disable=SC2086
"$venv/bin/uv" pip install $quiet --python "$venv/bin/python" --compile-bytecode -r requirements.lock
# The build backend is in the lock too, so nothing is fetched outside it.
# shellcheck disable=SC2086
"$venv/bin/uv" pip install $quiet --python "$venv/bin/python" --no-build-isolation --no-deps -e .

wanted >"$stamp"
rm -f "$unfinished"
say "Ready: .venv/bin/affinery"
