#!/usr/bin/env bash
# Unpacks the newest QEMU that Debian offers, with all of its libraries, into .qemu-newest: nothing of it is installed.
#
#   deploy/newest-qemu.sh [SUITE]     default: sid
#
# `.qemu-newest/qemu-system-x86_64` starts it. About 100 MB; a second run does nothing.
set -eu
cd "$(dirname "$0")/.."
root=$PWD/.qemu-newest
deploy/debian-tree.sh "${1:-sid}" "$root" qemu-system-x86

libraries=$root/files/usr/lib/$(uname -m)-linux-gnu
cat >"$root/qemu-system-x86_64" <<END
#!/bin/sh
# Its own loader, libraries, modules and firmware.
export QEMU_MODULE_DIR=$libraries/qemu
exec $(find "$root/files" -name 'ld-linux-x86-64.so.2' | head -n 1) --library-path $libraries \\
    $root/files/usr/bin/qemu-system-x86_64 -L $root/files/usr/share/qemu -L $root/files/usr/share/seabios "\$@"
END
chmod 755 "$root/qemu-system-x86_64"
"$root/qemu-system-x86_64" --version >&2 || { echo "newest-qemu: it does not start: remove $root and run again" >&2; exit 1; }
