"""QEMU and libvirt of this host: their versions, and the keepalive by which libvirt decides that a peer is gone."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gateway.doctor.finding import Finding

SECONDS: Final = 10.0
MIN_QEMU: Final = (7, 2)
MIN_LIBVIRT: Final = (9, 0)
KEEPALIVE_SECONDS: Final = 25  # libvirt's default is 5 s x 5; the relay answers for a peer that it is reconnecting to
_SETTING: Final = re.compile(r"^\s*(keepalive_interval|keepalive_count)\s*=\s*(-?[0-9]{1,6})\s*$", re.MULTILINE)


def hypervisor_findings(root: Path, virsh: str | None) -> Iterator[Finding]:
    """`virsh`: the command by which the relay asks libvirt, if it does."""
    yield version_finding("qemu", ["qemu-system-x86_64", "--version"], MIN_QEMU)
    if virsh is not None:
        if shutil.which(virsh) is None:
            remedy = "install it (libvirt-clients), or correct placement.virsh: the relay asks libvirt by it"
            yield Finding("libvirt", "wrong", f"{virsh} is not there", remedy)
        else:
            yield version_finding("libvirt", [virsh, "--version"], MIN_LIBVIRT)
        yield keepalive_finding(root / "etc/libvirt/qemu.conf")
        yield keepalive_finding(root / "etc/libvirt/libvirtd.conf")


def libvirtd_finding(path: Path) -> Finding:
    """Whether libvirtd answers where the relay will ask it, or systemd for it: without it no VM comes or goes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
        asked.settimeout(SECONDS)
        try:
            asked.connect(str(path))
        except PermissionError:
            return Finding("libvirtd", "unknown", f"{path}: Permission denied", "run as root")
        except OSError as error:
            remedy = "start it (systemctl start libvirtd.socket), or correct hypervisor.libvirt_socket"
            return Finding("libvirtd", "wrong", f"{path}: {error.strerror or error}", remedy)
    return Finding("libvirtd", "ok", f"{path} answers")


def version_finding(what: str, command: list[str], least: tuple[int, int]) -> Finding:
    if shutil.which(command[0]) is None:
        return Finding(what, "unknown", f"{command[0]} is not in the PATH")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(what, "unknown", f"{command[0]}: {error}")
    found = re.search(r"([0-9]+)\.([0-9]+)(\.[0-9]+)?", done.stdout)
    if found is None:
        return Finding(what, "unknown", f"{command[0]} does not tell its version")
    if (int(found[1]), int(found[2])) < least:
        wanted = ".".join(map(str, least))
        return Finding(
            what, "attention", f"{what} {found[0]} is older than {wanted}, with which it was tried", "upgrade it"
        )
    return Finding(what, "ok", f"{what} {found[0]}")


def keepalive_finding(path: Path) -> Finding:
    """How long libvirt bears silence: interval x count; interval -1 turns it off."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return Finding("keepalive", "ok", f"{path} does not exist: libvirt's default of 5 s x 5")
    except OSError as error:
        return Finding("keepalive", "unknown", f"{path}: {error.strerror}", "run as root")
    settings = {name: int(value) for name, value in _SETTING.findall(text)}
    interval, count = settings.get("keepalive_interval", 5), settings.get("keepalive_count", 5)
    if interval <= 0:
        return Finding(
            "keepalive",
            "attention",
            f"{path}: keepalive is off: a peer that is gone is noticed late, by TCP alone",
            "set keepalive_interval = 5 and keepalive_count = 5, and restart libvirtd",
        )
    if interval * count < KEEPALIVE_SECONDS:
        return Finding(
            "keepalive",
            "attention",
            f"{path}: {interval} s x {count}: a migration dies after {interval * count} s of silence",
            f"let interval x count be {KEEPALIVE_SECONDS} s or more, and restart libvirtd",
        )
    return Finding("keepalive", "ok", f"{path}: {interval} s x {count}")
