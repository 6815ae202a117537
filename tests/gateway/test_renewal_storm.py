"""A thousand relays renew within an hour: that hour in some seconds, and admissions beside it."""

from __future__ import annotations

import statistics
import time
from datetime import UTC, datetime, timedelta

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import Authority
from certs.enrolment import make_request
from certs.identity import SpiffeId
from certs.renewal import renewal_due
from gateway.starter import Site
from tests.gateway.api.test_https import configured
from tests.gateway.conftest import Running
from tests.gateway.test_enrolment import enrolling

RELAYS = 1_000
HOUR_SECONDS = 12.0  # 300 times as fast as it would be


def test_hosts_that_were_enrolled_at_once_do_not_come_back_at_once(site: Site) -> None:
    """A day's certificate: the thousand spread over two and a half hours, the busiest minute has few of them."""
    authority = Authority.load(site.certs)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    leaf = authority.issue_host("a", key, datetime.now(UTC), timedelta(hours=24))[0]
    due = sorted(renewal_due(leaf, n / RELAYS) for n in range(RELAYS))
    assert due[-1] - due[0] > timedelta(hours=2)
    busiest = max(sum(1 for moment in due if start <= moment < start + timedelta(minutes=1)) for start in due[::50])
    assert busiest < 10


async def decisions(running: Running, until: trio.Event, at_most: int) -> list[float]:
    """Seconds of each, one after the other."""
    alice = running.person("alice")
    took: list[float] = []
    while not until.is_set() and len(took) < at_most:
        began = time.perf_counter()
        answer = await alice.post("/v1/decisions", json={"vm": "web", "destination": "b"})
        assert answer.status_code == 200, answer.text
        took.append(time.perf_counter() - began)
    return took


@pytest.mark.whole
async def test_admissions_are_not_held_up_by_a_thousand_renewals(site: Site) -> None:
    configured(site, "refusals_per_person = 1000000")  # a check a time: she would have to wait
    async with enrolling(site) as running:
        office = running.gateway.desk.office
        assert office is not None
        request = make_request(ec.generate_private_key(ec.SECP256R1()))
        over = trio.Event()
        quiet = await decisions(running, over, 30)
        busy: list[float] = []

        async def watch() -> None:
            busy.extend(await decisions(running, over, 10_000))

        async def renew(n: int) -> None:
            await trio.sleep(HOUR_SECONDS * n / RELAYS)

            async def judge() -> SpiffeId:
                return SpiffeId(site.trust_domain, f"host-{n}")

            await office.renew(judge, None, request, "127.0.0.1")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as relays:
                for n in range(RELAYS):
                    relays.start_soon(renew, n)
            over.set()
        # At 83 renewals a second, where an hour's worth is less than one in three seconds.
        assert statistics.median(busy) < 5 * statistics.median(quiet) + 0.05
        assert len(await running.records("host.renewed")) == RELAYS
