"""Which processes of this host are the QEMU of a VM: told by the kernel (proc(5)).

A command line is the process's own to rewrite; program, user and start time are not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Set
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from transport.hypervisors.errors import HypervisorUnreachable
from transport.hypervisors.process import process_identity

_MAX_COMMAND_LINE = 256 * 1024


def find_qemus(vm: str, uids: Set[int]) -> list[str]:
    """Identities of the processes that were started as a QEMU with `-uuid vm`: of users `uids`, as whom QEMUs run here,
    if there are any, or any user of this host could hold the VM's moves up; else of all. Blocking; some ms on a busy
    host.

    HypervisorUnreachable if /proc cannot be read: "none" must mean none.
    """
    try:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except OSError as error:
        raise HypervisorUnreachable(f"/proc cannot be read: {error.strerror}") from None
    found = {identity: pid for pid in pids if is_qemu_of(pid, vm) and (identity := process_identity(pid))}
    return [identity for identity, pid in found.items() if _is_of(pid, uids)] or list(found)


def _is_of(pid: int, uids: Set[int]) -> bool:
    try:
        return _users_of(pid) <= set(map(str, uids))
    except (FileNotFoundError, ProcessLookupError):
        return False


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


@dataclass(frozen=True, slots=True)
class ExpectedQemu:
    """What libvirtd has started for one arrival: the VM's QEMU, one of `emulators`, as `uid`, not before `since`.

    `since`: by `boot_seconds`. A guest that has broken out into its own QEMU can write another VM's command line and
    bind a socket of another session's folder, being the same user; it was started before.
    """

    vm: str
    emulators: tuple[str, ...]
    uid: int
    since: float

    def is_met_by(self, pid: int) -> bool:
        """A process that ends meanwhile does not. HypervisorUnreachable if the kernel cannot be asked."""
        if not is_qemu_of(pid, self.vm):
            return False
        try:
            program = Path(f"/proc/{pid}/exe").stat()
            users = _users_of(pid)
            ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        except (FileNotFoundError, ProcessLookupError):
            return False
        except OSError as error:
            raise HypervisorUnreachable(f"process {pid} cannot be looked at: {error.strerror}") from None
        started = (ticks + 1) / os.sysconf("SC_CLK_TCK")  # the kernel rounds down
        return (
            any(_is_file(path, program) for path in self.emulators)
            and users == {str(self.uid)}
            and started >= self.since
        )


def _users_of(pid: int) -> set[str]:
    """Real, effective, saved and of the file system. Not the owner of /proc/PID, which any process can make root's."""
    status = Path(f"/proc/{pid}/status").read_text()
    return set(next(line.split()[1:] for line in status.splitlines() if line.startswith("Uid:")))


def boot_seconds() -> float:
    """Now, by the clock that the kernel notes starts of processes with."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _is_file(path: str, found: os.stat_result) -> bool:
    """Whether `path` leads to that very file: by its inode, since mount namespaces give it other names."""
    try:
        named = Path(path).stat()
    except OSError:
        return False
    return (named.st_dev, named.st_ino) == (found.st_dev, found.st_ino)
