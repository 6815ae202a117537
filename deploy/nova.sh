#!/usr/bin/env bash
# Puts OpenStack's nova into .nova, an environment of its own: nothing of it is installed, or in our lock.
#
# Its libvirt driver is run against the two hosts of the tests (`make nova`), with Debian's bindings of libvirt, which are those of the
# libvirtd that runs there. Wheels alone, each checked against its hash in deploy/nova/requirements.lock. About 250 MB; a second run does
# nothing.
set -eu
cd "$(dirname "$0")/.."
lock=deploy/nova/requirements.lock
cmp -s "$lock" .nova/lock && exit 0
echo "nova: fetching $(grep -o '^nova==[0-9.]*' "$lock") and what it needs (some minutes)"
rm -rf .nova
/usr/bin/python3 -m venv --system-site-packages .nova
.nova/bin/python -m pip install --quiet --disable-pip-version-check --ignore-installed --no-deps --only-binary :all: --require-hashes -r "$lock"
.nova/bin/python -c 'import libvirt, nova'
cp "$lock" .nova/lock
