"""A VM's QEMU is told from the kernel's table: by its program and its -uuid, never by a name that anyone can take."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import killed_after
from transport.hypervisors.process import process_identity
from transport.hypervisors.qemu_process import ExpectedQemu, boot_seconds, find_qemus, is_qemu_of

SLEEP = "import sys; sys.stdin.read()"


@contextmanager
def process(program: str, *arguments: str) -> Iterator[int]:
    """A Python that calls itself `program`."""
    command = [program, "-c", SLEEP, *arguments]
    with (
        subprocess.Popen(command, executable=sys.executable, stdin=subprocess.PIPE) as running,
        killed_after(running),
    ):
        while not Path(f"/proc/{running.pid}/cmdline").read_bytes().startswith(program.encode()):
            os.sched_yield()
        yield running.pid
        assert running.stdin is not None
        running.stdin.close()
        running.wait(10)


def test_the_qemu_of_a_vm_is_found_and_no_other_process() -> None:
    vm, other = str(uuid.uuid4()), str(uuid.uuid4())
    with (
        process("/usr/bin/qemu-system-x86_64", "-uuid", vm) as pid,
        process("/usr/bin/qemu-system-x86_64", "-uuid", other),
        process("/usr/bin/less", "-uuid", vm),
        process("/usr/bin/qemu-system-x86_64", "-name", vm),
    ):
        assert find_qemus(vm) == [process_identity(pid)]
        assert is_qemu_of(pid, vm)
        assert not is_qemu_of(pid, other)
    assert find_qemus(vm) == []


def test_a_qemu_that_arrives_is_known_by_its_program_its_user_and_its_start() -> None:
    vm, before = str(uuid.uuid4()), boot_seconds()
    own = os.geteuid()
    with process("/usr/bin/qemu-system-x86_64", "-uuid", vm) as pid:
        assert ExpectedQemu(vm, ("/nowhere", sys.executable), own, before).is_met_by(pid)
        assert not ExpectedQemu(str(uuid.uuid4()), (sys.executable,), own, before).is_met_by(pid)
        assert not ExpectedQemu(vm, ("/bin/true", "/nowhere"), own, before).is_met_by(pid), "it only calls itself so"
        assert not ExpectedQemu(vm, (sys.executable,), own + 1, before).is_met_by(pid), "another user's"
        assert not ExpectedQemu(vm, (sys.executable,), own, boot_seconds() + 1).is_met_by(pid), "it was there before"
    assert not ExpectedQemu(vm, (sys.executable,), own, before).is_met_by(pid), "it has ended"
