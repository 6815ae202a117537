#!/usr/bin/env bash
# Unpacks the newest CRIU that Debian offers into .criu, with its libraries: nothing of it is installed. For `make criu`.
#
#   deploy/criu.sh [SUITE]     default: sid (Debian 12's 3.17 does not start on kernels of today)
set -eu
cd "$(dirname "$0")/.."
root=$PWD/.criu
deploy/debian-tree.sh "${1:-sid}" "$root" criu
libraries=$root/files/usr/lib/$(uname -m)-linux-gnu
cat >"$root/criu" <<END
#!/bin/sh
exec "$(find "$root/files" -name 'ld-linux-*.so.*' | head -n 1)" --library-path "$libraries" "$root/files/usr/sbin/criu" "\$@"
END
chmod 755 "$root/criu"
"$root/criu" check >&2 || { echo "criu: this kernel, or who you are, does not let it work" >&2; exit 1; }
