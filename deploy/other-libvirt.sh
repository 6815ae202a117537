#!/usr/bin/env bash
# Unpacks the libvirt and QEMU of another Debian into .other-libvirt: nothing of it is installed.
#
#   deploy/other-libvirt.sh [SUITE]     default: trixie
#
# A host of the tests that is given the tree has it in the place of its own /usr, so it holds also what else runs there: the
# libraries of this machine's Python, and the tools by which tests look at a host. About 250 MB; a second run does nothing.
set -eu
cd "$(dirname "$0")/.."
deploy/debian-tree.sh "${1:-trixie}" "$PWD/.other-libvirt" \
    libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils \
    bash dash coreutils util-linux mount hostname procps grep sed iproute2 \
    libssl3t64 libffi8 libsqlite3-0 liblzma5 libbz2-1.0 zlib1g libreadline8t64 libncursesw6 libexpat1 libuuid1
