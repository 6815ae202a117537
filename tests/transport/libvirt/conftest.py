"""The two hosts, started once for each module: libvirtd takes seconds to come up."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport.libvirt.gateway_site import Whole, whole_site
from tests.transport.libvirt.hosts import Pair, require_programs, two_hosts


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    require_programs()
    with tempfile.TemporaryDirectory(prefix="sllv") as folder, two_hosts(Path(folder)) as running:
        yield running


@pytest.fixture(scope="module")
def whole() -> Iterator[Whole]:
    with whole_site() as running:
        yield running
