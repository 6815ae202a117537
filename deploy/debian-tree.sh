#!/usr/bin/env bash
# Unpacks packages of a Debian suite, with all that they need, into a folder: nothing of it is installed.
#
#   deploy/debian-tree.sh SUITE FOLDER PACKAGE...
#
# The tree is FOLDER/files. Debian's own mirror is used, the one that apt is set up with here, and its signatures are
# checked by the same keys. A second run of the same suite does nothing.
set -eu
suite=$1 root=$2
shift 2
say() { printf '%s: %s\n' "$(basename "$root")" "$*" >&2; }
die() { say "$@"; exit 1; }

command -v apt-get >/dev/null || die "apt-get is missing: this needs Debian"
[ "$(cat "$root/suite" 2>/dev/null || true)" != "$suite" ] || exit 0

# The first mirror of Debian proper that apt knows: by the one-line format, or by deb822.
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
    sed -nE 's/^deb +(\[[^]]*\] +)?([^ ]+\/debian\/?) .*/\2/p; s/^URIs: *([^ ]+\/debian\/?)( .*)?$/\1/p' | head -n 1)
[ -n "$mirror" ] || die "no Debian mirror in /etc/apt: add one"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e "$keys" ] || die "$keys is missing: apt-get install debian-archive-keyring"

rm -rf "$root"
mkdir -p "$root/apt/lists/partial" "$root/apt/archives/partial" "$root/files"
: >"$root/apt/status"
printf 'deb [signed-by=%s] %s %s main\n' "$keys" "$mirror" "$suite" >"$root/apt/sources.list"
# An apt of its own: empty status, so that every library comes from this suite and none from this machine.
own=(-o "Dir::State=$root/apt" -o "Dir::State::status=$root/apt/status" -o "Dir::State::lists=$root/apt/lists"
    -o "Dir::Cache=$root/apt" -o "Dir::Cache::archives=$root/apt/archives" -o "Dir::Etc::sourcelist=$root/apt/sources.list"
    -o Dir::Etc::sourceparts=- -o Dir::Etc::preferencesparts=- -o APT::Sandbox::User=root -o Debug::NoLocking=1)
say "reading what Debian $suite offers"
apt-get "${own[@]}" update -q >&2 || die "apt-get update for $suite failed: check the network"
say "fetching $*"
apt-get "${own[@]}" install -y -q --no-install-recommends --download-only "$@" >&2 || die "Debian $suite lacks one of: $*"
for package in "$root"/apt/archives/*.deb; do
    dpkg-deb -x "$package" "$root/files" || die "$package cannot be unpacked: remove $root and run again"
done
rm -rf "$root/apt"
printf '%s' "$suite" >"$root/suite"
