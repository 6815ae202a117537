"""A migration that outlives what it began with: its permit's `exp`, and the source's certificate."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from certs import layout
from certs.tls import local_leaf_sha256
from tests.transport.kinds import KINDS, move
from tests.transport.relay.conftest import until
from tests.transport.relay.cutter import Network
from tests.transport.site import Site
from tests.transport.stages import Limits, Stage, qmp_host, stage_over_network
from transport.errors import OfferRefused
from transport.hypervisors.moving import How
from transport.relay.host import RelayHost

pytestmark = pytest.mark.real
MIB = 1 << 20
NAMED = {kind.name: kind for kind in KINDS}
AHEAD_SECONDS = 200  # beyond `exp` of the tests' permits and the skew, and not beyond `session_until`


async def test_a_guest_moves_on_past_exp_and_over_a_renewed_certificate(short_path: Path) -> None:
    network: list[Network] = []
    ahead = [0]
    leaves: set[bytes] = set()
    slow = replace(KINDS[0], bandwidth=12 * MIB, memory_mib=64, hot_mib=2)

    def host(site: Site, name: str, limits: Limits) -> RelayHost:
        made = qmp_host(site, name, limits)
        return replace(made, permits=replace(made.permits, clock=lambda: int(time.time()) + ahead[0]))

    async def renew_and_cut(here: Stage) -> None:
        await until(lambda: network[0].forwarded > MIB, 60)
        leaves.add(local_leaf_sha256(here.source.credentials))
        layout.issue_host(here.site.certs, "a", datetime.now(UTC))
        here.source.identity.reload(datetime.now(UTC))
        leaves.add(local_leaf_sha256(here.source.credentials))
        ahead[0] = AHEAD_SECONDS
        with pytest.raises(OfferRefused, match="expired"):  # what begins now is refused
            permit = here.site.permit(iat=int(time.time()), exp=int(time.time()) + 1)
            here.source.permits.verify(permit, source=here.site.spiffe("a"), destination=None)
        assert network[0].cut("lane", "control") == 2

    within = partial(stage_over_network, network, {"resume_seconds": 30.0}, host=host)
    assert await move(slow, short_path, meddle=renew_and_cut, within=within)
    assert len(leaves) == 2, "the certificate was renewed"
    assert network[0].controls >= 2, "the session went on over another connection"


async def test_a_guest_in_post_copy_outlasts_the_deadline_of_its_destination(short_path: Path) -> None:
    """It would stand still until it is recovered, and a guest of libvirt's for ever."""
    how = How(post_copy_after_seconds=0, post_copy_bytes_per_second=4 * MIB)
    slow = replace(NAMED["post-copy"], how=how, bandwidth=40 * MIB)
    seen: list[Stage] = []

    async def look(here: Stage) -> None:
        seen.append(here)

    def host(site: Site, name: str, limits: Limits) -> RelayHost:
        return qmp_host(site, name, limits if name == "b" else {})

    within = partial(stage_over_network, [], {"migration_deadline_seconds": 4.0}, host=host)
    assert await move(slow, short_path, meddle=look, within=within)
    assert not [news for news in seen[0].news if "interrupted" in news.message]


class Soon(Mapping[str, int]):
    """Claims: seconds from the moment at which the permit is made."""

    def __init__(self, **seconds: int) -> None:
        self._seconds = seconds

    def __getitem__(self, name: str) -> int:
        return int(time.time()) + self._seconds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._seconds)

    def __len__(self) -> int:
        return len(self._seconds)


async def test_a_guest_in_post_copy_outlasts_the_session_of_its_permit(short_path: Path) -> None:
    """Its source interrupts it then, and recovers it at once."""
    how = How(post_copy_after_seconds=0, post_copy_bytes_per_second=2 * MIB)
    slow = replace(NAMED["post-copy"], how=how, bandwidth=40 * MIB, claims=Soon(exp=8, session_until=8))
    seen: list[Stage] = []

    async def look(here: Stage) -> None:
        seen.append(here)

    assert await move(slow, short_path, meddle=look)
    assert [news for news in seen[0].news if "interrupted; the relays are recovering it" in news.message]
