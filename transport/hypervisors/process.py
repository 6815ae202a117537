"""Which process it was: a pid alone is reused, so a process is named by boot, pid and start time."""

from __future__ import annotations

from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def process_identity(pid: int) -> str:
    """`<boot id>:<pid>:<start time in clock ticks>`; empty if there is no such process. Source: proc(5)."""
    try:
        # The command name stands in parentheses and may hold anything; fields are counted behind the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        return ""
    if fields[0] in "ZX":  # a zombie runs no guest
        return ""
    return f"{boot}:{pid}:{fields[19]}"


def is_gone(identity: str) -> bool:
    """Whether the process that was named by `process_identity` has ended."""
    pid = identity.split(":")[1] if identity.count(":") == 2 else ""
    return not pid.isdigit() or process_identity(int(pid)) != identity
