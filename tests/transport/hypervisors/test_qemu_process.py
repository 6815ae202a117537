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

NOBODY = 65534
SLEEP = "import sys; sys.stdin.read()"


@contextmanager
def process(program: str, *arguments: str, uid: int | None = None) -> Iterator[int]:
    """A Python that calls itself `program`, and becomes that user if one is given."""
    becomes = f"import os; os.setresuid({uid}, {uid}, {uid}); " if uid is not None else ""
    command = [program, "-c", becomes + SLEEP, *arguments]
    with (
        subprocess.Popen(command, executable=sys.executable, stdin=subprocess.PIPE) as running,
        killed_after(running),
    ):
        while not Path(f"/proc/{running.pid}/cmdline").read_bytes().startswith(program.encode()):
            os.sched_yield()
        while uid is not None and f"Uid:\t{uid}\t" not in Path(f"/proc/{running.pid}/status").read_text():
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
        assert find_qemus(vm, {os.geteuid()}) == [process_identity(pid)]
        assert is_qemu_of(pid, vm)
        assert not is_qemu_of(pid, other)
    assert find_qemus(vm, {os.geteuid()}) == []


def test_another_users_process_that_calls_itself_the_vms_qemu_holds_its_moves_up_no_more() -> None:
    vm = str(uuid.uuid4())
    qemu = ("/usr/bin/qemu-system-x86_64", "-uuid", vm)
    with process(*qemu) as pid, process(*qemu, uid=NOBODY) as other:
        both = [process_identity(each) for each in sorted((pid, other))]
        assert find_qemus(vm, {os.geteuid()}) == [process_identity(pid)]
        assert sorted(find_qemus(vm, {os.geteuid(), NOBODY})) == sorted(both)
        assert sorted(find_qemus(vm, {12345})) == sorted(both), "as whom it runs is libvirt's to say"


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
