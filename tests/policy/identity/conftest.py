"""A seeded Active Directory for all modules of this folder, and controllers that each module starts from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.policy.identity.samba_ad import Controller, Domain, seeded_domain, start_domain


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeded_domain(tmp_path_factory)


@pytest.fixture(scope="module")
def domain(seeded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domain]:
    """Two controllers with the same accounts, which do not replicate: changes go to the first one."""
    with start_domain(seeded, tmp_path_factory.mktemp("domain")) as running:
        yield running


@pytest.fixture
def dc1(domain: Domain) -> Controller:
    return domain.controllers[0]
