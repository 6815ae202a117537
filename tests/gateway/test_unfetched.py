"""Permits that no relay fetches: withdrawn in seconds, on record before it is told, and never used later."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from gateway.cancelling import ask_for_end
from gateway.migrations import BEGIN_GRACE_SECONDS, NOT_BEGUN, State
from gateway.starter import Site
from gateway.unfetched import Unfetched
from tests.gateway.conftest import Running, running_gateway

pytestmark = pytest.mark.whole


async def assigned(running: Running, host: str = "a") -> str:
    """A migration whose permit waits for the relay of its source, which has been heard of."""
    assert await running.poll(host) == []
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["migration_id"])


async def told(running: Running, migration_id: str) -> dict[str, Any]:
    return (await running.person("alice").get(f"/v1/migrations/{migration_id}")).json()  # type: ignore[no-any-return]


async def fetch(running: Running, migration_id: str, host: str = "a") -> tuple[int, dict[str, Any]]:
    answer = await running.client(host).post("/v1/relay/assignment", json={"migration_id": migration_id})
    return answer.status_code, answer.json()


async def ended(running: Running, migration_id: str) -> dict[str, Any]:
    with trio.fail_after(10):
        while (shown := await told(running, migration_id))["outcome"] is None:
            await trio.sleep(0.05)
    return shown


async def test_who_asked_hears_in_seconds_that_no_relay_fetched_the_permit_and_who_must_act(site: Site) -> None:
    async with running_gateway(site) as running:
        running.gateway.desk.gate.dispatch.fetch_seconds = 0.2
        migration_id = await assigned(running)
        shown = await ended(running, migration_id)
        assert shown["state"] == "failed"
        assert "the relay on a did not fetch the permit" in shown["message"]
        assert "The operator of a starts its relay" in shown["message"]
        (record,) = await running.records("migration.withdrawn")
        (decision,) = await running.records("migration.decision")
        assert (record["migration_id"], record["outcome"]) == (migration_id, "failed")
        assert record["details"]["decision_record"] == decision["sequence"]
        assert record["details"]["jti"] == decision["details"]["permit"]["jti"]
        status, said = await fetch(running, migration_id)
        assert (status, said["error"]["code"]) == (403, "withdrawn")

        again = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
        assert (again.status_code, again.json()["error"]["code"]) == (503, "relay_unreachable")
        running.gateway.desk.gate.dispatch.fetch_seconds = 60
        await assigned(running)  # once it polls again it gets work again
    async with running_gateway(site) as running:
        shown = await told(running, migration_id)
        assert (shown["state"], "did not fetch" in shown["message"]) == ("failed", True)
        assert (await fetch(running, migration_id))[0] == 403


async def test_what_is_not_on_record_is_not_told_and_not_given_out_either(site: Site) -> None:
    async with running_gateway(site) as running:
        migration_id = await assigned(running)
        running.log.broken = True
        (waiting,) = [each for host in running.gateway.desk.gate.dispatch._hosts.values() for each in host.waiting]
        waiting.fetch_by = trio.current_time()
        assert (await fetch(running, migration_id))[0] == 403
        heard = running.gateway.desk.gate.migrations.heard(migration_id)
        assert heard is not None
        assert heard.message is None
        running.log.broken = False
        await ended(running, migration_id)
        assert len(await running.records("migration.withdrawn")) == 1


async def test_the_end_of_a_connection_ends_its_poll_which_swallows_nothing(running: Running) -> None:
    async with trio.open_nursery() as nursery:
        client = running.client("a")

        async def poll_until_cut() -> None:
            await client.post("/v1/relay/poll", json={"wait_seconds": 30})

        nursery.start_soon(poll_until_cut)
        host = f"spiffe://{running.site.trust_domain}/host/a"
        dispatch = running.gateway.desk.gate.dispatch
        with trio.fail_after(10):
            while not dispatch.is_reachable(host, 60):
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    with trio.fail_after(10):
        while dispatch._hosts[host].left is None:
            await trio.sleep(0.02)
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 201, "it may only be restarting"
    (assignment,) = await running.poll("a")  # at once, not five seconds later
    assert assignment["migration_id"] == answer.json()["migration_id"]


async def test_a_cancel_before_the_relay_has_the_permit_takes_it_back(running: Running) -> None:
    migration_id = await assigned(running)
    client = running.client("a")
    polled = await client.post("/v1/relay/poll", json={"wait_seconds": 0})
    assert polled.json()["assignments"] == [{"kind": "permit", "migration_id": migration_id}], "no permit in it"
    assert (await running.person("alice").post(f"/v1/migrations/{migration_id}/cancel")).status_code == 202
    assert (await told(running, migration_id))["state"] == "cancelled"
    assert (await fetch(running, migration_id))[0] == 403
    assert (await fetch(running, migration_id, "b"))[0] == 403


async def test_a_cancel_that_took_a_permit_back_is_on_record_before_it_is_told_and_reads_the_same_after_a_restart(
    site: Site,
) -> None:
    async with running_gateway(site) as running:
        migration_id = await assigned(running)
        assert (await running.person("alice").post(f"/v1/migrations/{migration_id}/cancel")).status_code == 202
        (record,) = await running.records("migration.withdrawn")
        assert (record["migration_id"], record["outcome"]) == (migration_id, "cancelled")
        (asked,) = await running.records("migration.cancel_requested")
        assert asked["sequence"] < record["sequence"]
        before = await told(running, migration_id)
        assert (before["state"], before["message"]) == ("cancelled", record["details"]["because"])
    async with running_gateway(site) as running:
        assert await told(running, migration_id) == before
        assert (await running.poll("a")) == []


async def test_a_cancel_that_cannot_be_recorded_is_not_told_and_gives_the_permit_to_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(site) as running:
        migration_id = await assigned(running)
        withdraw = running.gateway.desk.gate.dispatch.withdraw

        def and_then_the_disk_is_full(host: str, migration_id: str) -> bool:
            running.log.broken = True
            return withdraw(host, migration_id)

        monkeypatch.setattr(running.gateway.desk.gate.dispatch, "withdraw", and_then_the_disk_is_full)
        assert (await running.person("alice").post(f"/v1/migrations/{migration_id}/cancel")).status_code == 503
        assert (await fetch(running, migration_id))[0] == 403
        heard = running.gateway.desk.gate.migrations.heard(migration_id)
        assert heard is not None
        assert heard.message is None
        running.log.broken = False
        assert (await ended(running, migration_id))["state"] == "cancelled"
        assert len(await running.records("migration.withdrawn")) == 1


async def test_a_cancel_reads_as_one_though_the_gateway_ended_before_the_second_record_of_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(site) as running:
        migration_id = await assigned(running)

        async def ends_here(_: Unfetched) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(Unfetched, "look", ends_here)
        with trio.move_on_after(1):
            await running.person("alice").post(f"/v1/migrations/{migration_id}/cancel")
        assert len(await running.records("migration.cancel_requested")) == 1
    monkeypatch.undo()
    async with running_gateway(site) as running:
        assert await running.records("migration.withdrawn") == []
        heard = running.gateway.desk.gate.migrations.heard(migration_id)
        assert heard is not None
        later = heard.at(heard.begin_until + BEGIN_GRACE_SECONDS + 1)
        assert (later.state, later.message) == (State.CANCELLED, NOT_BEGUN)


async def test_a_request_that_is_given_up_leaves_one_record(running: Running) -> None:
    migration_id = await assigned(running)
    gate = running.gateway.desk.gate
    migration = gate.migrations.heard(migration_id)
    assert migration is not None
    assert ask_for_end(gate, migration, 0)
    with trio.move_on_after(0):
        await running.gateway.desk.reporting._unfetched.look()
    assert (await ended(running, migration_id))["state"] == "cancelled"
    assert len(await running.records("migration.withdrawn")) == 1


async def test_a_permit_whose_answer_was_lost_is_given_out_no_more_once_its_end_was_asked_for(running: Running) -> None:
    migration_id = await assigned(running)
    assert (await fetch(running, migration_id))[0] == 200
    assert (await fetch(running, migration_id))[0] == 200, "an answer may be lost"
    assert (await running.person("alice").post(f"/v1/migrations/{migration_id}/cancel")).status_code == 202
    assert (await fetch(running, migration_id))[0] == 403, "who has it needs it no more, and others must not begin"
    assert await running.poll("a") == [{"kind": "cancel", "migration_id": migration_id}]
