#!/usr/bin/env bash
# Puts OpenStack's nova into .nova, an environment of its own: nothing of it is installed, or in our lock.
#
# Its libvirt driver is run against the two hosts of the tests (`make nova`), with Debian's bindings of libvirt, which are those of the
# libvirtd that runs there. About 250 MB; a second run does nothing.
set -eu
cd "$(dirname "$0")/.."
version=34.0.0
[ "$(cat .nova/version 2> /dev/null)" = "$version" ] && exit 0
echo "nova: fetching nova $version and what it needs (some minutes)"
rm -rf .nova
/usr/bin/python3 -m venv --system-site-packages .nova
.nova/bin/python -m pip install --quiet --disable-pip-version-check --ignore-installed "nova==$version"
.nova/bin/python -c 'import libvirt, nova'
echo "$version" > .nova/version
