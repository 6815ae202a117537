"""A monitor, or a libvirtd, whose queue of connections is full is there: it is waited for, and its word is no other."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from transport.hypervisors.errors import HypervisorTimeout
from transport.hypervisors.qmp import QmpConnection
from transport.libvirt_rpc.client import connect_libvirt
from transport.libvirt_rpc.errors import LibvirtHangs


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(str(path))
        listening.listen(0)
        first.connect(str(path))
        yield path


async def test_a_monitor(full: Path) -> None:
    with pytest.raises(HypervisorTimeout):
        await QmpConnection.connect(full, deadline_seconds=0.05)


async def test_libvirtd(full: Path) -> None:
    with pytest.raises(LibvirtHangs):
        await connect_libvirt(full, 0.05)
