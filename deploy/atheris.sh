#!/usr/bin/env bash
# Fetches atheris (libFuzzer for Python) into .atheris, for `make fuzz-guided`: nothing depends on it, nothing is installed.
# As a wheel for CPython 3.11 on x86-64 only: compiling it takes a clang. A second run does nothing.
set -eu
cd "$(dirname "$0")/.."
cmp -s deploy/atheris.lock .atheris/lock && exit 0
rm -rf .atheris
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --target .atheris -r deploy/atheris.lock
cp deploy/atheris.lock .atheris/lock
