"""The destination's end of a migration by libvirt, without libvirt."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.transport.libvirt_rpc.samples import VM
from transport.errors import LocalBroken
from transport.libvirt_rpc.domain_xml import DomainRules
from transport.relay.libvirt_destination import LibvirtDestination


async def test_a_relay_without_a_descriptor_left_says_so_and_takes_it_for_no_bug(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scarce(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", scarce)
    nowhere, arrival = Path("/nonexistent"), None
    end = LibvirtDestination(nowhere, VM, DomainRules((), ()), 1.0, 1.0, {}, lambda *_: None, 0)
    dial: Any = end.dial
    with pytest.raises(LocalBroken, match="Too many open files"):
        await dial("libvirt", arrival)
