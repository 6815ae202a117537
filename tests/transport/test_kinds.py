"""Some kinds of migration with real QEMUs, of each sort one; `make kinds` tries all of them (docs/moving.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transport.kinds import KINDS, NEWEST, Kind, move
from tests.transport.relay.conftest import short_path as short_path  # noqa: PLC0414 - a fixture

pytestmark = pytest.mark.real
NAMED = {kind.name: kind for kind in KINDS}
# Not XBZRLE: a guest that is starved while it moves dirties nothing, and no difference is sent. `make kinds` has it.
HERE = ("multifd 2, zstd", "post-copy, preempt, capped", "post-copy after 3 passes")
BY_TLS = ("multifd 4, lanes of TLS",)
LATE = ("late: guest paused", "late: cancelled")


@pytest.mark.parametrize("kind", [NAMED[name] for name in (*HERE, *BY_TLS, *LATE)], ids=lambda kind: kind.name)
async def test_a_guest_moves_unharmed_in_every_kind(kind: Kind, short_path: Path) -> None:
    assert await move(kind, short_path)


@pytest.mark.fetched("newest-qemu")
@pytest.mark.parametrize("name", ["pre-copy, return path", "post-copy, preempt, capped"])
async def test_a_guest_moves_unharmed_between_the_newest_qemus(name: str, short_path: Path) -> None:
    assert await move(NAMED[name], short_path, str(NEWEST))
