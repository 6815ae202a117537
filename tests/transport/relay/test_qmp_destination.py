"""A destination's QEMU by QMP, as far as it needs none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from tests.transport.relay.test_carriage import VM
from transport.hypervisors.errors import HypervisorUnreachable
from transport.hypervisors.migration_settings import MigrationSettings
from transport.hypervisors.process import process_identity
from transport.relay import qmp_destination
from transport.relay.qmp_destination import QmpDestination


async def test_a_guest_in_post_copy_is_held_on_while_no_descriptor_is_left_to_look_at_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody else catches it: the whole relay would end, and every guest's memory that it carries."""
    end = QmpDestination(Path("/nonexistent"), VM, process_identity(os.getpid()), MigrationSettings(), 1.0)
    looked: list[str] = []

    async def looks() -> bool:
        looked.append("")
        if len(looked) == 1:
            raise HypervisorUnreachable("process 1 cannot be looked at: Too many open files")
        return True

    monkeypatch.setattr(end, "is_gone", looks)
    monkeypatch.setattr(qmp_destination, "_RETRY_SECONDS", 0.01)
    with trio.fail_after(5):
        await end.hold_until_whole()
    assert len(looked) == 2
