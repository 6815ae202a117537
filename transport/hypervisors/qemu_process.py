"""Which processes of this host are the QEMU of a VM: told by the kernel, from their command lines (proc(5))."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from transport.hypervisors.errors import HypervisorUnreachable
from transport.hypervisors.process import process_identity

_MAX_COMMAND_LINE = 256 * 1024


def find_qemus(vm: str) -> list[str]:
    """Identities of all processes that were started as a QEMU with `-uuid vm`. Blocking; some ms on a busy host.

    HypervisorUnreachable if /proc cannot be read: "none" must mean none.
    """
    try:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except OSError as error:
        raise HypervisorUnreachable(f"/proc cannot be read: {error.strerror}") from None
    found = [process_identity(pid) for pid in pids if is_qemu_of(pid, vm)]
    return [identity for identity in found if identity]


def is_qemu_of(pid: int, vm: str) -> bool:
    """Whether process `pid` was started as this VM's QEMU. A process that ends meanwhile is none."""
    try:
        with Path(f"/proc/{pid}/cmdline").open("rb") as file:
            arguments = file.read(_MAX_COMMAND_LINE).split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError as error:
        raise HypervisorUnreachable(f"process {pid} cannot be looked at: {error.strerror}") from None
    program = arguments[0].rpartition(b"/")[2]
    is_qemu = program.startswith((b"qemu", b"kvm"))
    return is_qemu and any(a == b"-uuid" and b.decode("ascii", "replace") == vm for a, b in pairwise(arguments))
