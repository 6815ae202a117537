"""Which process it was: a pid alone is reused, so a process is named by boot, pid and start time."""

from __future__ import annotations

import os
from pathlib import Path

from transport.hypervisors.errors import HypervisorUnreachable

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def process_identity(pid: int) -> str:
    """`<boot id>:<pid>:<start time in clock ticks>`; empty if there is no such process. Source: proc(5).

    HypervisorUnreachable if the kernel cannot be asked (no descriptor left, /proc hides the process): that proves
    nothing, and a living guest that is taken for a dead one is how a guest runs twice.
    """
    if not _exists(pid):
        return ""
    try:
        # The command name stands in parentheses and may hold anything; fields are counted behind the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = _BOOT_ID.read_text().strip()
    except OSError as error:
        if not _exists(pid):
            return ""  # it ended while we looked
        raise HypervisorUnreachable(f"process {pid} cannot be looked at: {error.strerror}") from None
    if fields[0] in "ZX":  # a zombie runs no guest
        return ""
    return f"{boot}:{pid}:{fields[19]}"


def is_gone(identity: str) -> bool:
    """Whether the process that was named by `process_identity` has ended. HypervisorUnreachable if nobody can say."""
    pid = identity.split(":")[1] if identity.count(":") == 2 else ""
    return not pid.isdigit() or process_identity(int(pid)) != identity


def _exists(pid: int) -> bool:
    """Asked in a way that needs no descriptor and no /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's, and there
    return True
