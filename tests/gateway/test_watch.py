"""The watch over running migrations, at a real gateway; the test plays the relays."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import gateway.config as configuration
from certs.authority import Authority
from certs.files import read_certificates
from gateway.bell import Bell
from gateway.dispatch import Assignment
from gateway.migrations import State
from gateway.starter import Site
from policy.errors import DirectoryUnavailable
from tests.gateway.break_glass.conftest import Emergency, Hands, person, with_break_glass
from tests.gateway.conftest import Running, running_gateway

pytestmark = pytest.mark.whole

SPARE = """
[[vms]]
name = "spare"
uuid = "77777777-2222-4333-8444-555555555555"
zone = "test"
classification = "internal"
host = "a"
"""
INTERVAL = "[revocation]\ninterval_seconds = 1\nunknown_grace_seconds = 0\n"


@pytest.fixture
def watched_site(site: Site) -> Site:
    text = site.gateway_config.read_text(encoding="utf-8")
    site.gateway_config.write_text(text + INTERVAL, encoding="utf-8")
    return site


@asynccontextmanager
async def moving(site: Site, **begin: Any) -> AsyncIterator[tuple[Running, str]]:
    """A gateway with a migration that its source relay reports as running."""
    async with running_gateway(site) as running:
        migration_id, _ = await running.begin(**begin)
        await report(running, migration_id)
        yield running, migration_id


async def report(running: Running, migration_id: str, state: str = "running", host: str = "a") -> None:
    numbers = ("transferred_bytes", "remaining_bytes", "total_bytes", "rate_bytes_per_second", "pass")
    body = {"migration_id": migration_id, "state": state, **dict.fromkeys(numbers, 1)}
    answer = await running.client(host).post("/v1/relay/progress", json=body)
    assert answer.status_code == 204, answer.text


async def revoked(running: Running, count: int = 1, seconds: float = 8) -> list[dict[str, Any]]:
    """The records of revocations, as soon as there are so many."""
    with trio.fail_after(seconds):
        while len(found := await running.records("migration.revoked")) < count:
            await trio.sleep(0.02)
    return found


async def cancels(running: Running, host: str = "a") -> list[str]:
    return [each["migration_id"] for each in await running.poll(host) if each["kind"] == "cancel"]


def edit(file: Path, change: Callable[[str], str]) -> None:
    text = file.read_text(encoding="utf-8")
    assert change(text) != text
    file.write_text(change(text), encoding="utf-8")


def own_bundle(site: Site) -> Path:
    """The site's bundle, as a version of its own, without tests that its changes would break."""
    folder = configuration.load(site.gateway_config).path("bundle")
    shutil.rmtree(folder / "tests")
    edit(folder / "bundle.toml", lambda text: text.replace("version = 1", "version = 2"))
    return folder / "policies"


async def test_a_migration_whose_permission_stays_is_left_alone(watched_site: Site) -> None:
    async with moving(watched_site) as (running, _):
        await running.gateway.reload()
        with trio.move_on_after(2.5):
            await revoked(running)
        assert await running.records("migration.revoked") == []
        assert await cancels(running) == []


async def test_a_group_that_was_lost_cancels_it_at_once(watched_site: Site) -> None:
    async with moving(watched_site) as (running, migration_id):
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        await running.gateway.reload()
        (started,), (reloaded,) = [await running.records(kind) for kind in ("gateway.started", "config.reloaded")]
        assert started["details"]["people_sha256"] != reloaded["details"]["people_sha256"]
        (record,) = await revoked(running)
        assert record["outcome"] == "cancel_requested"
        assert record["migration_id"] == migration_id
        assert "No policy permits MigrateVm" in record["details"]["because"]
        assert record["details"]["obligation"] == "cancel"
        assert await cancels(running) == [migration_id]
        shown = (await running.person("carol").get(f"/v1/migrations/{migration_id}")).json()
        assert shown["cancel_requested"] is True
        assert shown["revoked"]["obligation"] == "cancel"


async def test_what_its_relay_has_not_fetched_yet_is_taken_back_and_that_is_on_record(
    watched_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.unfetched.LOOK_SECONDS", 3600)  # nobody else looks for what was withdrawn
    async with running_gateway(watched_site) as running:
        await running.poll("a")
        asked = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        await running.gateway.reload()
        await revoked(running)
        with trio.fail_after(10):
            while not (withdrawn := await running.records("migration.withdrawn")):
                await trio.sleep(0.02)
        migration_id = asked.json()["migration_id"]
        assert [(each["migration_id"], each["outcome"]) for each in withdrawn] == [(migration_id, "cancelled")]
        shown = (await running.person("carol").get(f"/v1/migrations/{migration_id}")).json()
        assert shown["state"] == "cancelled"


async def test_somebody_who_was_removed_moves_nothing_any_more(watched_site: Site) -> None:
    async with moving(watched_site) as (running, migration_id):
        edit(running.site.people, lambda text: text[text.index('[people."bob"]') :])
        await running.gateway.reload()
        (record,) = await revoked(running)
        assert "in the local directory no more" in record["details"]["because"]
        assert await cancels(running) == [migration_id]


@pytest.mark.parametrize(
    ("obligation", "outcome"), [("finish", "left_to_finish"), ("record", "recorded"), ("cancel", "cancel_requested")]
)
async def test_the_policy_says_what_becomes_of_it(watched_site: Site, obligation: str, outcome: str) -> None:
    folder = own_bundle(watched_site)
    say = f'@on_revocation("{obligation}")\n@id("operators-move")'
    edit(folder / "permits.cedar", lambda text: text.replace('@id("operators-move")\n@on_revocation("cancel")', say))
    async with moving(watched_site) as (running, migration_id):
        edit(folder / "permits.cedar", lambda text: text.replace("sealane-local#operators", "sealane-local#nobody"))
        edit(folder.parent / "bundle.toml", lambda text: text.replace("version = 2", "version = 3"))
        await running.gateway.reload()
        (record,) = await revoked(running)
        assert (record["outcome"], record["details"]["obligation"]) == (outcome, obligation)
        assert await cancels(running) == ([migration_id] if obligation == "cancel" else [])


async def test_a_stronger_word_that_comes_later_counts(watched_site: Site) -> None:
    folder = own_bundle(watched_site)
    edit(folder / "permits.cedar", lambda text: text.replace('@on_revocation("cancel")', '@on_revocation("record")'))
    async with moving(watched_site) as (running, migration_id):
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        await running.gateway.reload()
        await revoked(running)
        assert await cancels(running) == []
        edit(running.site.inventory, _vm_in_another_zone)
        await running.gateway.reload()
        (_, second) = await revoked(running, 2)
        assert second["outcome"] == "cancel_requested"
        assert await cancels(running) == [migration_id]


async def test_it_is_recorded_once_and_not_in_every_round(watched_site: Site) -> None:
    async with moving(watched_site) as (running, _):
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        await running.gateway.reload()
        await revoked(running)
        await running.gateway.reload()
        with trio.move_on_after(2.5):
            await revoked(running, 2)
        assert len(await running.records("migration.revoked")) == 1


async def test_once_the_guest_is_handed_over_it_is_too_late(watched_site: Site) -> None:
    async with moving(watched_site) as (running, migration_id):
        await report(running, migration_id, "handing_over")
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        await running.gateway.reload()
        (record,) = await revoked(running)
        assert record["outcome"] == "too_late"
        assert await cancels(running) == []


async def test_a_host_that_left_the_inventory_takes_no_part_any_more(watched_site: Site) -> None:
    async with moving(watched_site) as (running, migration_id):
        edit(running.site.inventory, lambda text: _without_host(text, "b"))
        await running.gateway.reload()
        (record,) = await revoked(running)
        assert "destination host" in record["details"]["because"]
        assert await cancels(running) == [migration_id]


async def test_a_revoked_certificate_of_the_destination_cancels_at_the_source(watched_site: Site) -> None:
    async with moving(watched_site) as (running, migration_id):
        await running.poll("b")
        revoke(running.site, "b")
        await running.gateway.reload()
        (record,) = await revoked(running)
        assert record["details"]["because"] == "the certificate of the destination host b has been revoked"
        assert await cancels(running) == [migration_id]


async def test_where_the_source_cannot_be_told_any_more_the_destination_is(watched_site: Site) -> None:
    async with moving(watched_site) as (running, migration_id):
        revoke(running.site, "a")
        await running.gateway.reload()
        (record,) = await revoked(running)
        assert record["details"]["because"] == "the certificate of the source host a has been revoked"
        assert await cancels(running, "b") == [migration_id]


async def test_while_nobody_can_tell_it_goes_on_for_a_grace(watched_site: Site) -> None:
    edit(watched_site.gateway_config, lambda text: text.replace("grace_seconds = 0", "grace_seconds = 3"))
    async with moving(watched_site) as (running, _):
        people = running.gateway.reloader._people

        async def silent(*_: object) -> Any:
            raise DirectoryUnavailable("timeout", "no answer within 4 s")

        people.reconsider = silent  # type: ignore[method-assign,assignment]
        began = trio.current_time()
        (record,) = await revoked(running)
        assert trio.current_time() - began >= 2.5
        assert "nobody can tell whether the requester still may" in record["details"]["because"]


async def test_one_whose_directory_hangs_does_not_keep_the_watch_from_others(
    watched_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.watch.PERSON_SECONDS", 0.5)
    edit(watched_site.gateway_config, lambda text: text.replace("grace_seconds = 0", "grace_seconds = 60"))
    with watched_site.people.open("a", encoding="utf-8") as file:
        file.write(person("frida", "Frida Operator", ("operators",)))
    with watched_site.inventory.open("a", encoding="utf-8") as file:
        file.write(SPARE)
    async with moving(watched_site) as (running, migration_id):
        people, hung = running.gateway.reloader._people, trio.Event()
        real = people.reconsider
        people.asks_directory = lambda who: who.id.endswith("alice")  # type: ignore[method-assign,assignment]

        async def reconsider(who: Any, now: datetime) -> Any:
            if who.id.endswith("alice"):
                await hung.wait()
            return await real(who, now)

        people.reconsider = reconsider  # type: ignore[method-assign,assignment]
        answer = await running.person("frida").post("/v1/migrations", json={"vm": "spare", "destination": "c"})
        other = answer.json()["migration_id"]
        await running.poll("a")
        await report(running, other)
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        await running.gateway.reload()
        (record,) = await revoked(running)
        assert record["migration_id"] == other
        hung.set()
        records = await revoked(running, 2)
        assert records[1]["migration_id"] == migration_id


async def test_however_many_wait_for_a_hung_directory_none_is_forgotten(
    watched_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.watch.PERSON_SECONDS", 0.5)
    monkeypatch.setattr("gateway.watch.PEOPLE_AT_ONCE", 1)
    with watched_site.people.open("a", encoding="utf-8") as file:
        file.write(person("frida", "Frida Operator", ("operators",)))
    with watched_site.inventory.open("a", encoding="utf-8") as file:
        file.write(SPARE)
    async with moving(watched_site) as (running, _):
        answer = await running.person("frida").post("/v1/migrations", json={"vm": "spare", "destination": "c"})
        assert answer.status_code == 201
        people = running.gateway.reloader._people
        people.asks_directory = lambda _: True  # type: ignore[method-assign,assignment]
        people.reconsider = lambda *_: trio.sleep_forever()  # type: ignore[method-assign]
        running.gateway.reloader._gate.bell.ring()
        records = await revoked(running, 2)
        assert len({record["migration_id"] for record in records}) == 2
        assert all("nobody can tell" in record["details"]["because"] for record in records)


async def test_what_the_log_does_not_take_is_done_when_it_does(watched_site: Site) -> None:
    async with moving(watched_site) as (running, migration_id):
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        running.log.broken = True
        await running.gateway.reload()
        with trio.move_on_after(1.5):
            await trio.sleep_forever()
        assert await cancels(running) == []
        running.log.broken = False
        running.gateway.committer._next_attempt = 0  # the pause between attempts is over
        await revoked(running)
        assert await cancels(running) == [migration_id]


async def test_after_a_restart_it_is_still_watched_and_a_relay_told_again(watched_site: Site) -> None:
    async with moving(watched_site) as (running, migration_id):
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        await running.gateway.reload()
        await revoked(running)  # … and the gateway ends before the relay has polled
    async with running_gateway(watched_site) as again:
        with trio.fail_after(5):
            while await cancels(again) != [migration_id]:
                await trio.sleep(0.05)
        assert len(await again.records("migration.revoked")) == 1


async def test_what_changes_while_the_gateway_is_down_is_noticed_when_it_is_back(watched_site: Site) -> None:
    async with moving(watched_site) as (_, migration_id):
        pass
    edit(watched_site.people, lambda text: text.replace('["operators"]', '["guests"]'))
    async with running_gateway(watched_site) as again:
        (record,) = await revoked(again)
        assert record["migration_id"] == migration_id


async def test_glass_that_is_whole_again_cancels_the_move_under_it(watched_site: Site) -> None:
    hands = Hands()
    async with running_gateway(with_break_glass(watched_site), hands.clock()) as running:
        emergency = Emergency(running, hands)
        grant = await emergency.approved()
        migration_id = (await emergency.move(grant)).json()["migration_id"]
        await running.poll("prod")
        await report(running, migration_id, host="prod")
        assert (await emergency.end(grant, "mona")).status_code == 200
        (record,) = await revoked(running)
        assert record["details"]["because"] == "the broken glass is whole again: it was ended"
        assert await cancels(running, "prod") == [migration_id]


async def test_a_grant_whose_move_is_done_has_ended(watched_site: Site) -> None:
    hands = Hands()
    async with running_gateway(with_break_glass(watched_site), hands.clock()) as running:
        emergency = Emergency(running, hands)
        grant = await emergency.approved()
        await emergency.move(grant)
        (assignment,) = await running.poll("prod")
        permit = running.open_permit(assignment["permit"])
        body = running.receipt("prod", permit, "source", "completed")
        assert (await running.client("prod").post("/v1/receipts", json=body)).status_code == 200
        running.gateway.reloader._gate.migrations.put(
            running.gateway.reloader._gate.migrations.get(permit.claims.migration_id, 0).at(2**40)  # type: ignore[union-attr]
        )
        with trio.fail_after(5):
            while await emergency.state(grant) != "ended":
                await trio.sleep(0.05)
        (record,) = await emergency.records("ended")
        assert record["details"]["break_glass"]["because"] == "used"


async def test_a_source_that_falls_silent_after_it_was_told_does_not_hide_its_migration(watched_site: Site) -> None:
    async with moving(watched_site) as (running, migration_id):
        running.gateway.reloader._gate.relay_silence_seconds = 2
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        await running.gateway.reload()
        await revoked(running)
        assert await cancels(running) == [migration_id]  # it takes the order, and is never heard of again
        with trio.fail_after(10):
            while await cancels(running, "b") != [migration_id]:
                await trio.sleep(0.1)


async def test_a_source_that_does_not_heed_is_not_asked_alone(
    watched_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.watch.HEED_SECONDS", 1.0)
    async with moving(watched_site) as (running, migration_id):
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        await running.gateway.reload()
        await revoked(running)
        await report(running, migration_id)  # as if nothing had been asked
        with trio.fail_after(8):
            while await cancels(running, "b") != [migration_id]:
                await trio.sleep(0.1)


async def test_where_post_copy_may_come_only_the_source_is_asked(
    watched_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.watch.HEED_SECONDS", 0.5)
    async with moving(watched_site) as (running, migration_id):
        migrations = running.gateway.reloader._gate.migrations
        heard = migrations.heard(migration_id)
        assert heard is not None
        assert heard.standing is not None
        migrations.put(replace(heard, standing=replace(heard.standing, post_copy=True)))
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        await running.gateway.reload()
        await revoked(running)
        assert await cancels(running) == [migration_id]
        with trio.fail_after(10):  # told again after five seconds, and some rounds of the watch
            while await cancels(running) != [migration_id]:
                await trio.sleep(0.1)
        assert await cancels(running, "b") == []


async def test_a_full_queue_of_the_source_does_not_save_its_migration(watched_site: Site) -> None:
    async with moving(watched_site) as (running, migration_id):
        dispatch = running.gateway.reloader._gate.dispatch
        source = (
            "spiffe://" + running.site.inventory.read_text(encoding="utf-8").partition("spiffe://")[2].partition('"')[0]
        )
        expires = trio.current_time() + 100
        others = [
            Assignment(f"other-{n}", "cancel", {"kind": "cancel", "migration_id": f"other-{n}"}, expires)
            for n in range(64)
        ]
        for each in others:
            dispatch.assign(source, each)
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        await running.gateway.reload()
        await revoked(running)
        with trio.fail_after(8):
            while await cancels(running, "b") != [migration_id]:
                await trio.sleep(0.1)
        for each in others:
            dispatch.acknowledge(source, each.migration_id, frozenset({"cancel"}))
        with trio.fail_after(8):
            while migration_id not in await cancels(running):
                await trio.sleep(0.1)


async def test_a_migration_that_was_only_presumed_to_have_failed_is_watched_on(watched_site: Site) -> None:
    async with running_gateway(watched_site) as running:
        migration_id, _ = await running.begin()  # taken, and nothing heard of it
        migrations = running.gateway.reloader._gate.migrations
        heard = migrations.heard(migration_id)
        assert heard is not None
        migrations.put(replace(heard, begin_until=0))
        assert replace(heard, begin_until=0).at(heard.decided).state is State.FAILED
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        await running.gateway.reload()
        (record,) = await revoked(running)
        assert record["outcome"] == "cancel_requested"
        assert await cancels(running) == [migration_id]
        await report(running, migration_id)
        heard = migrations.heard(migration_id)
        assert heard is not None
        assert heard.state is State.RUNNING


async def test_a_handover_that_begins_while_the_revocation_is_recorded_is_not_cancelled(watched_site: Site) -> None:
    async with moving(watched_site) as (running, migration_id):
        recorder = running.gateway.reloader._gate.recorder
        real = recorder.append

        async def append(event: Any, *more: Any) -> Any:
            recorded = await real(event, *more)
            if event.kind == "migration.revoked":
                await report(running, migration_id, "handing_over")
            return recorded

        recorder.append = append  # type: ignore[method-assign,assignment]
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        await running.gateway.reload()
        records = await revoked(running, 2)
        assert [record["outcome"] for record in records] == ["cancel_requested", "too_late"]
        assert await cancels(running) == await cancels(running, "b") == []


async def test_who_keeps_the_directory_from_answering_does_not_escape_a_new_forbid(watched_site: Site) -> None:
    edit(watched_site.gateway_config, lambda text: text.replace("grace_seconds = 0", "grace_seconds = 3600"))
    async with moving(watched_site) as (running, _):

        async def silent(*_: object) -> Any:
            raise DirectoryUnavailable("timeout", "no answer within 4 s")

        running.gateway.reloader._people.reconsider = silent  # type: ignore[method-assign,assignment]
        with (own_bundle(running.site) / "more.cedar").open("w", encoding="utf-8") as file:
            file.write('@id("freeze") @reason("Nothing moves.") forbid (principal, action, resource);')
        await running.gateway.reload()
        (record,) = await revoked(running)
        assert "Nothing moves" in record["details"]["because"]


async def test_a_requester_whom_we_cannot_cope_with_keeps_the_watch_from_nobody_else(watched_site: Site) -> None:
    with watched_site.people.open("a", encoding="utf-8") as file:
        file.write(person("frida", "Frida Operator", ("operators",)))
    with watched_site.inventory.open("a", encoding="utf-8") as file:
        file.write(SPARE)
    edit(watched_site.gateway_config, lambda text: text.replace("grace_seconds = 0", "grace_seconds = 3600"))
    async with moving(watched_site) as (running, _):
        people = running.gateway.reloader._people
        real = people.reconsider

        async def reconsider(who: Any, now: datetime) -> Any:
            if who.id.endswith("alice"):
                raise RuntimeError("a bug")
            return await real(who, now)

        people.reconsider = reconsider  # type: ignore[method-assign,assignment]
        answer = await running.person("frida").post("/v1/migrations", json={"vm": "spare", "destination": "c"})
        other = answer.json()["migration_id"]
        edit(running.site.people, lambda text: text.replace('["operators"]', '["guests"]'))
        await running.gateway.reload()
        (record,) = await revoked(running)
        assert record["migration_id"] == other


def revoke(site: Site, host: str) -> None:
    """By the site's own CA, as `sealane certs revoke` does."""
    (leaf, *_) = read_certificates(site.host_folder(host) / "host.pem")
    Authority.load(site.certs).revoke(leaf.serial_number, datetime.now(UTC))


def _vm_in_another_zone(text: str) -> str:
    before, mark, vms = text.partition("[[vms]]")
    return before + mark + vms.replace('zone = "test"', 'zone = "dmz"', 1)


def _without_host(text: str, name: str) -> str:
    tables = text.split("[[")
    return "[[".join(each for each in tables if f'name = "{name}"' not in each)


async def test_what_was_lost_while_it_was_being_decided_is_looked_at_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rang while this was not yet a migration that is watched, and the next round would come in half a minute."""
    edit(site.gateway_config, lambda text: text + "[revocation]\ninterval_seconds = 30\n")
    async with running_gateway(site) as running:
        gate = running.gateway.desk.gate
        proves = gate.prove

        async def prove_late(committed: Any) -> Any:
            edit(site.people, lambda text: text.replace('["operators"]', '["guests"]'))
            await running.gateway.reload()
            await trio.testing.wait_all_tasks_blocked(0.05)  # the watch has looked, and found nothing
            return await proves(committed)

        monkeypatch.setattr(gate, "prove", prove_late)
        await running.poll("a")
        answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
        assert answer.status_code == 201, answer.text
        (record,) = await revoked(running)
        assert record["migration_id"] == answer.json()["migration_id"]
        assert "No policy permits MigrateVm" in record["details"]["because"]


async def test_decisions_that_overlap_do_not_keep_the_bell_ringing() -> None:
    bell = Bell()
    looks = 0
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal looks
            while True:
                await bell.wait(60)
                looks += 1

        async def decide(seconds: float) -> None:
            for _ in range(20):
                with bell.again_if_missed():
                    await trio.sleep(seconds)

        nursery.start_soon(watch)
        async with trio.open_nursery() as deciding:
            deciding.start_soon(decide, 0.003)
            deciding.start_soon(decide, 0.005)
            await trio.sleep(0.004)
            bell.ring()
        nursery.cancel_scope.cancel()
    assert 1 <= looks <= 3
