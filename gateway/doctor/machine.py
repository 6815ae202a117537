"""The machine: kernel settings, memory that must not reach a disk, limits, mandatory access control.

`root` stands for `/`, so that tests can show other machines.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gateway.doctor.finding import Finding

SYSCTL_FILE: Final = "/usr/lib/sysctl.d/60-sealane.conf"
WANTED_FILES: Final = 4096


def machine_findings(root: Path) -> Iterator[Finding]:
    yield userfaultfd(root)
    yield swap(root)
    yield suid_dumps(root)
    yield open_files()
    yield from access_control(root)


def userfaultfd(root: Path) -> Finding:
    """QEMU as its own user cannot receive post-copy without it (seen: libvirt refuses the migration)."""
    value = _read(root / "proc/sys/vm/unprivileged_userfaultfd")
    if value is None:
        return Finding("userfaultfd", "ok", "this kernel has no such limit")
    if value == "1":
        return Finding("userfaultfd", "ok", "vm.unprivileged_userfaultfd is 1: QEMU may receive post-copy as any user")
    return Finding(
        "userfaultfd",
        "attention",
        "vm.unprivileged_userfaultfd is 0: post-copy to a QEMU that does not run as root is refused",
        f"if post-copy is wanted: set it to 1 (deploy/sysctl.d holds the line; it belongs into {SYSCTL_FILE})",
    )


def swap(root: Path) -> Finding:
    """Session keys and guest memory must not reach a disk in the clear."""
    text = _read(root / "proc/swaps")
    if text is None:
        return Finding("swap", "unknown", "/proc/swaps cannot be read")
    areas = [line.split()[0] for line in text.splitlines()[1:] if line.split()]
    clear = [area for area in areas if not _is_safe_swap(root, area)]
    if not areas:
        return Finding("swap", "ok", "no swap")
    if not clear:
        return Finding("swap", "ok", f"swap is encrypted or in memory: {', '.join(areas)}")
    return Finding(
        "swap",
        "attention",
        f"swap in the clear: {', '.join(clear)}; keys and guest memory could be read from it later",
        "turn it off (swapoff), or encrypt it with a random key (crypttab: swap,cipher=aes-xts-plain64)",
    )


def _is_safe_swap(root: Path, area: str) -> bool:
    name = Path(area).name
    if re.fullmatch(r"zram[0-9]+", name):
        return True
    mapped = _read(root / "sys/block" / name / "dm/uuid") if re.fullmatch(r"dm-[0-9]+", name) else None
    return mapped is not None and mapped.startswith("CRYPT-")


def suid_dumps(root: Path) -> Finding:
    value = _read(root / "proc/sys/fs/suid_dumpable")
    if value in {"0", None}:
        return Finding(
            "core_dumps", "ok", "programs that change their user write no core dump; the relay forbids its own"
        )
    return Finding(
        "core_dumps",
        "attention",
        f"fs.suid_dumpable is {value}: a QEMU that changed its user can leave guest memory in a core dump",
        f"set it to 0 (deploy/sysctl.d; it belongs into {SYSCTL_FILE})",
    )


def open_files() -> Finding:
    """Of this shell; the shipped unit sets its own."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY or most >= WANTED_FILES:
        return Finding("open_files", "ok", f"up to {most} open files")
    return Finding(
        "open_files",
        "attention",
        f"at most {most} open files: each channel takes two, {WANTED_FILES} are enough for many migrations at once",
        "start it by the shipped unit (LimitNOFILE=65536), or raise the hard limit",
    )


def access_control(root: Path) -> Iterator[Finding]:
    apparmor = _read(root / "sys/module/apparmor/parameters/enabled")
    enforcing = _read(root / "sys/fs/selinux/enforce")
    if enforcing is not None:
        is_on = enforcing == "1"
        yield Finding(
            "selinux",
            "ok" if is_on else "attention",
            "SELinux enforces" if is_on else "SELinux is permissive",
            "" if is_on else "setenforce 1, once the module of deploy/selinux is loaded",
        )
    elif apparmor == "Y":
        yield Finding("apparmor", "ok", "AppArmor is on; libvirt's guests need deploy/apparmor for the relay's sockets")
    else:
        yield Finding(
            "access_control",
            "attention",
            "neither SELinux nor AppArmor is on: a guest that breaks out of QEMU is held by file modes alone",
            "turn on the one that the distribution ships",
        )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
