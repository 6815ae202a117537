"""What one person may have refused: a share, then a wait; what is allowed costs nothing, and nobody pays for others."""

from __future__ import annotations

from typing import Any, cast

import pytest

from audit.record import Actor
from gateway.errors import LogUnavailable, TooManyRefusals
from gateway.patience import KIND, MAX_WAIT_SECONDS, Patience
from gateway.recording import Event, Recorder, actor_of
from gateway.starter import Site
from policy.facts import FROM_SITE, Person, nobody
from tests.gateway.conftest import UUID_WEB, running_gateway
from tests.gateway.test_watch import edit

ALICE = Person("idp#alice", "idp", "Alice", frozenset(), "oidc")
BOB = Person("idp#bob", "idp", "Bob", frozenset(), "oidc")
AT_ONCE, PER_MINUTE = 10, 60


class Kept:
    """A recorder that keeps events, and asks as the real one does."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[Event] = []
        self.is_broken = False
        self.patience = Patience(cast(Recorder, self), AT_ONCE, PER_MINUTE, lambda: self.now)

    async def append(self, event: Event) -> None:
        self.patience.note(event)
        if self.is_broken:
            raise LogUnavailable("full")
        self.events.append(event)

    def told(self) -> list[dict[str, Any]]:
        return [dict(event.details) for event in self.events if event.kind == KIND]


def of(person: Person, outcome: str = "denied", kind: str = "migration.decision") -> Event:
    return Event(kind, outcome, actor=actor_of(person))


async def is_heard(kept: Kept, person: Person = ALICE) -> bool:
    try:
        await kept.patience.require(person, "192.0.2.1")
    except TooManyRefusals:
        return False
    return True


@pytest.mark.parametrize("kind", ["migration.decision", "evacuation.decision", "audit.read", "migration.receipt"])
async def test_what_is_allowed_costs_nothing(kind: str) -> None:
    kept = Kept()
    for _ in range(5_000):
        await kept.append(of(ALICE, "allowed", kind))
    assert await is_heard(kept)


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [("denied", "audit.read"), ("failed", "migration.decision"), ("allowed", "decision.check"), ("denied", "x.y")],
)
async def test_who_had_their_share_waits_and_then_is_heard_again(outcome: str, kind: str) -> None:
    kept = Kept()
    for _ in range(AT_ONCE):
        assert await is_heard(kept)
        await kept.append(of(ALICE, outcome, kind))
    with pytest.raises(TooManyRefusals) as refused:
        await kept.patience.require(ALICE, "192.0.2.1")
    assert refused.value.retry_after_seconds == 1
    assert await is_heard(kept, BOB)
    kept.now += refused.value.retry_after_seconds
    assert await is_heard(kept)
    await kept.append(of(ALICE, outcome, kind))
    assert not await is_heard(kept)


async def test_one_record_a_minute_says_how_many_were_left_out_before() -> None:
    kept = Kept()
    for _ in range(AT_ONCE + 150):
        await kept.append(of(ALICE))
    assert [await is_heard(kept) for _ in range(4)] == [False] * 4
    kept.now = 59.0
    assert not await is_heard(kept)
    assert kept.told() == [{"client_address": "192.0.2.1", "retry_after_seconds": 151, "left_out_before": 0}]
    kept.now = 60.0
    kept.is_broken = True
    assert not await is_heard(kept), "refused all the same"
    kept.is_broken = False
    assert not await is_heard(kept)
    assert kept.told()[1:] == [{"client_address": "192.0.2.1", "retry_after_seconds": 91, "left_out_before": 5}]


async def test_one_request_of_very_many_records_is_waited_for_minutes_and_no_longer() -> None:
    kept = Kept()
    for _ in range(4_096):
        await kept.append(of(ALICE, kind="evacuation.decision"))
    with pytest.raises(TooManyRefusals) as refused:
        await kept.patience.require(ALICE, "192.0.2.1")
    assert refused.value.retry_after_seconds == MAX_WAIT_SECONDS + 1


async def test_whoever_claims_to_be_somebody_spends_nothing_of_theirs() -> None:
    kept = Kept()
    host = nobody("spiffe://x/host/a")
    for name in (ALICE.id, host.id):
        for _ in range(2 * AT_ONCE):
            await kept.append(Event("token.refused", "denied", actor=Actor(name, name, "nobody")))
    assert await is_heard(kept)
    assert await is_heard(kept, host)


async def test_another_site_that_names_ever_new_people_has_nobody_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.patience.REMEMBERED", 3)
    kept = Kept()
    for _ in range(AT_ONCE):
        await kept.append(of(ALICE))
    for number in range(3):
        stranger = Person(f"spiffe://other#{number}", "spiffe://other", "N", frozenset(), FROM_SITE)
        await kept.append(of(stranger))
    assert not await is_heard(kept)


@pytest.mark.whole
async def test_a_person_and_a_host_that_ask_without_end_are_told_to_wait_and_others_go_on(site: Site) -> None:
    edit(
        site.gateway_config,
        lambda text: text + f"\n[limits]\nrefusals_per_person = {AT_ONCE}\nrefusals_per_minute = 1\n",
    )
    async with running_gateway(site) as running:
        bob, alice, host = running.person("bob"), running.person("alice"), running.client("a")
        wish = {"vm": "web", "destination": "b"}
        statuses = [(await bob.post("/v1/migrations", json=wish)).status_code for _ in range(AT_ONCE)]
        assert statuses == [403] * AT_ONCE
        answer = await bob.post("/v1/migrations", json=wish)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (429, "too_many_refusals")
        seconds = answer.headers["retry-after"]
        assert 1 <= int(seconds) <= 60
        assert error["next_step"].startswith(f"wait {seconds} s")
        assert (await bob.get("/v1/whoami")).status_code == 429
        libvirts = {"vm": UUID_WEB, "destination": "b", "ports": ["libvirt", "memory"]}
        statuses = [(await host.post("/v1/relay/admission", json=libvirts)).status_code for _ in range(AT_ONCE + 1)]
        assert statuses == [200] * AT_ONCE + [429]
        decisions = await running.records("migration.decision")
        assert len(decisions) == 2 * AT_ONCE
        told = await running.records(KIND)
        assert [record["actor"]["id"] for record in told] == [
            "sealane-local#bob",
            f"{site.spiffe_id('a')}#nobody",
        ]
        assert (await host.post("/v1/relay/poll", json={"wait_seconds": 0})).status_code == 200, "it works on"
        begun = await alice.post("/v1/migrations", json=wish)
        assert begun.status_code == 201

        own = f"/v1/migrations/{begun.json()['migration_id']}"
        for _ in range(AT_ONCE):
            assert (await alice.post("/v1/decisions", json=wish)).status_code == 200
        assert (await alice.post("/v1/decisions", json=wish)).status_code == 429
        assert (await alice.get(own)).status_code == 200, "their own they can see"
        assert (await alice.post(f"{own}/cancel")).status_code == 202, "and end"
        before = len(await running.entries())
        assert (await alice.post(f"{own}/cancel")).status_code == 429, "once"
        assert (await alice.get("/v1/migrations/of-somebody-else")).status_code == 429
        assert len(await running.entries()) == before
