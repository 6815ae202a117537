"""Reports of relays, judged against the log: where a VM is, who came without a permit, runs twice or fell silent."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import trio

from gateway.host_reports import HostReports, Report, ReportedGuest, TooManyGuests
from gateway.placement import Placement
from gateway.recording import Clock
from gateway.starter import Site
from policy.facts import VmFacts
from policy.inventory import Inventory
from tests.gateway.conftest import UUID_WEB, Running, running_gateway

A, B = (f"spiffe://example.test/host/{name}" for name in "ab")
GONE: list[str] = []


@dataclass
class Relay:
    """The reports of one host's relay, as it would send them."""

    running: Running
    host: str
    epoch: str = "e" * 32
    sequence: int = 0
    answers: list[httpx.Response] = field(default_factory=list)

    async def report(self, *guests: dict[str, Any], full: bool = True, gone: list[str] = GONE, **more: Any) -> bool:
        """Whether the gateway wants a snapshot."""
        self.sequence += 1
        body = {
            "epoch": self.epoch, "sequence": self.sequence, "full": full, "more": False, "report_seconds": 15,
            "confirmed_ms_ago": 0, "guests": list(guests), "gone": gone, **more,
        }  # fmt: skip
        answer = await self.running.client(self.host).post("/v1/relay/placement", json=body)
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["resync"])


def guest(uuid: str = UUID_WEB, since_s: float = 5, seen_s: float = 0, **more: Any) -> dict[str, Any]:
    return {
        "uuid": uuid, "name": "", "presence": "active", "run_state": "running", "is_sure": True, "arrival": "found",
        "since_ms_ago": int(since_s * 1000), "seen_ms_ago": int(seen_s * 1000), "devices": [], **more,
    }  # fmt: skip


async def alarms(running: Running) -> list[tuple[str, Any, Any]]:
    """Kind, VM and destination of what was recorded of placement, but adoptions."""
    records = [entry["record"] for entry in await running.entries() if "record" in entry]
    found = [record for record in records if record["kind"].startswith("placement.")]
    return [
        (each["kind"].removeprefix("placement."), (each["vm"] or {}).get("name"), each["destination"])
        for each in found
        if each["kind"] != "placement.adopted"
    ]


@pytest.fixture
def spiffe(running: Running) -> str:
    return f"spiffe://{running.site.trust_domain}/host/"


@pytest.mark.whole
async def test_devices_that_a_relay_reports_decide_and_are_shown_and_recorded(running: Running) -> None:
    alice, relay, move = running.person("alice"), Relay(running, "a"), {"vm": "web", "destination": "b"}
    answer = await alice.post("/v1/decisions", json=move)
    assert answer.json()["decision"]["allowed"]
    assert "devices" not in {fact["fact"] for fact in answer.json()["decision"]["facts"]}  # nobody has reported
    await relay.report(guest(devices=["hostdev:pci", "tpm:emulator", "\u202etpm"]))
    answer = await alice.post("/v1/migrations", json=move)
    assert answer.status_code == 403
    decision = answer.json()["decision"]
    assert [policy["id"] for policy in decision["policies"]] == ["host-devices-stay"]
    (told,) = [fact for fact in decision["facts"] if fact["fact"] == "devices"]
    assert (told["value"], told["source"]) == (["hostdev:pci", "tpm:emulator", "unreadable"], "report")
    assert 0 <= told["age_seconds"] < 30
    (record,) = await running.records("migration.decision")
    (vm,) = [each for each in record["details"]["policy_entities"] if each["uid"]["type"] == "Sealane::Vm"]
    assert vm["attrs"]["devices"] == told["value"]
    await relay.report(guest(devices=["tpm:emulator"]), full=False)
    assert (await alice.post("/v1/decisions", json=move)).json()["decision"]["allowed"]
    await relay.report(guest(devices=[f"blocked:{n:02}" for n in range(32)]), full=False)  # what comes after is cut off
    decision = (await alice.post("/v1/decisions", json=move)).json()["decision"]
    assert [policy["id"] for policy in decision["policies"]] == ["host-devices-stay"]
    (told,) = [fact for fact in decision["facts"] if fact["fact"] == "devices"]
    assert "too-many" in told["value"]


@pytest.mark.whole
async def test_a_vm_where_it_is_expected_raises_no_alarm(running: Running) -> None:
    assert await Relay(running, "a").report(guest()) is False
    assert await alarms(running) == []


@pytest.mark.whole
@pytest.mark.parametrize("arrival", ["found", "started", "migrated", "restored"])
async def test_a_vm_that_came_without_a_permit_is_an_alarm_once(running: Running, spiffe: str, arrival: str) -> None:
    await Relay(running, "a").report()
    b = Relay(running, "b")
    await b.report(guest(arrival=arrival, name="web-on-b"))
    await b.report(guest(arrival=arrival), full=False)
    assert await alarms(running) == [("unpermitted", "web", spiffe + "b")]
    (record,) = await running.records("placement.unpermitted")
    assert record["source"] == spiffe + "a"
    assert record["actor"]["id"] == spiffe + "b"
    details = record["details"]
    assert (details["arrival"], details["expected_by"], details["last_migration"]) == (arrival, "inventory", None)
    assert details["name_on_host"] == "web-on-b"


@pytest.mark.whole
async def test_it_goes_on_from_where_it_really_is(running: Running, spiffe: str) -> None:
    await Relay(running, "a").report()
    await Relay(running, "b").report(guest())
    await running.poll("b")
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "c"})
    assert answer.status_code == 201, answer.text
    (record,) = await running.records("migration.decision")
    assert record["source"] == spiffe + "b"
    assert record["details"]["placement"] == {"source": "report", "age_seconds": 0}


@pytest.mark.whole
@pytest.mark.parametrize(("name", "ports"), [("web-on-a", ["libvirt", "memory"]), ("", ["memory"])])
async def test_a_domain_of_libvirts_gets_the_ports_that_libvirt_needs(
    running: Running, name: str, ports: list[str]
) -> None:
    await Relay(running, "a").report(guest(name=name))
    await running.poll("a")
    await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    (record,) = await running.records("migration.decision")
    assert record["details"]["asked"]["ports"] == ports


@pytest.mark.whole
async def test_a_permitted_migration_raises_no_alarm_at_any_moment(running: Running) -> None:
    a, b = Relay(running, "a"), Relay(running, "b")
    await a.report(guest())
    _, permit = await running.begin()
    await b.report(guest(presence="arriving", run_state="inmigrate"))
    await b.report(guest(since_s=0, run_state="paused", arrival="migrated"))
    await a.report(guest(presence="leaving", run_state="postmigrate"))
    await b.report(guest(since_s=0, arrival="migrated"))
    await a.report()
    for host, role, outcome in (("b", "destination", "running"), ("a", "source", "completed")):
        receipt = running.receipt(host, permit, role, outcome)
        assert (await running.client(host).post("/v1/receipts", json=receipt)).status_code == 200
    await b.report(guest(since_s=1, arrival="migrated"))
    await a.report()
    assert await alarms(running) == []


@pytest.mark.whole
async def test_a_permit_for_one_host_covers_no_arrival_at_another(running: Running, spiffe: str) -> None:
    await Relay(running, "a").report(guest())
    migration, _ = await running.begin(destination="b")
    await Relay(running, "a").report()
    await Relay(running, "c").report(guest(since_s=0))
    assert await alarms(running) == [("unpermitted", "web", spiffe + "c")]
    (record,) = await running.records("placement.unpermitted")
    assert record["details"]["last_migration"]["migration_id"] == migration


@pytest.mark.whole
async def test_a_copy_that_runs_beside_the_original_denies_every_move_until_one_ends(running: Running) -> None:
    a, c = Relay(running, "a"), Relay(running, "c")
    await a.report(guest(since_s=60))
    await c.report(guest(since_s=5, arrival="started"))
    assert {kind for kind, _, _ in await alarms(running)} == {"unpermitted", "duplicate"}
    await running.poll("a")
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert error["code"] == "running_on_two_hosts"
    assert error["message"] == "web runs on a and c at once"
    (decision,) = await running.records("migration.decision")
    assert decision["details"]["not_admitted"] == "running_on_two_hosts"
    assert decision["details"]["permit"] is None
    await c.report()
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 201, answer.text
    assert [kind for kind, _, _ in await alarms(running)][-1] == "duplicate_ended"


@pytest.mark.whole
async def test_an_old_look_at_the_source_makes_no_duplicate(running: Running) -> None:
    """It was seen on a before it began on b: no moment at which both had it."""
    await Relay(running, "a").report(guest(since_s=60, seen_s=20), confirmed_ms_ago=20_000)
    await Relay(running, "b").report(guest(since_s=10))
    assert "duplicate" not in {kind for kind, _, _ in await alarms(running)}


@pytest.mark.whole
async def test_alarms_and_places_survive_a_restart_of_the_gateway(site: Site, spiffe_of: str) -> None:
    async with running_gateway(site) as running:
        await Relay(running, "a").report()
        await Relay(running, "b").report(guest())
        assert len(await alarms(running)) == 1
    async with running_gateway(site) as running:
        await Relay(running, "b").report(guest())
        assert len(await alarms(running)) == 1
        await Relay(running, "b").report()
        await Relay(running, "c").report(guest())  # moved on while nobody looked
        assert await alarms(running) == [
            ("unpermitted", "web", spiffe_of + "b"),
            ("unpermitted", "web", spiffe_of + "c"),
        ]


@pytest.fixture
def spiffe_of(site: Site) -> str:
    return f"spiffe://{site.trust_domain}/host/"


@pytest.mark.whole
async def test_a_vm_that_the_inventory_places_nowhere_is_adopted_where_it_is_first_seen(site: Site) -> None:
    text = site.inventory.read_text().replace('host = "a"\n', "")
    site.inventory.write_text(text)
    async with running_gateway(site) as running:
        await Relay(running, "b").report(guest())
        assert await alarms(running) == []
        (record,) = await running.records("placement.adopted")
        assert record["details"]["vms"] == [UUID_WEB]
    async with running_gateway(site) as running:
        await Relay(running, "b").report()
        await Relay(running, "c").report(guest())
        assert [kind for kind, _, _ in await alarms(running)] == ["unpermitted"]


@pytest.mark.whole
async def test_a_log_that_is_down_delays_an_alarm_and_loses_none(running: Running) -> None:
    client = running.client("b")
    running.log.broken = True
    body = {
        "epoch": "e" * 32, "sequence": 1, "full": True, "more": False, "report_seconds": 15,
        "confirmed_ms_ago": 0, "guests": [guest()], "gone": [],
    }  # fmt: skip
    assert (await client.post("/v1/relay/placement", json=body)).status_code == 503
    running.log.broken = False
    with trio.fail_after(20):
        while (await client.post("/v1/relay/placement", json=body)).status_code != 200:
            await trio.sleep(0.05)
    assert [kind for kind, _, _ in await alarms(running)] == ["unpermitted"]


@pytest.mark.whole
async def test_a_host_that_makes_things_up_does_not_fill_the_log(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.placement_watching.ALARMS_AT_ONCE", 2)
    monkeypatch.setattr("gateway.placement_watching.ALARM_SECONDS", 3600.0)
    async with running_gateway(site) as running:
        await Relay(running, "a").report()
        liar = Relay(running, "b")
        for _ in range(5):
            await liar.report(guest())
            await liar.report()
        assert [kind for kind, _, _ in await alarms(running)] == ["unpermitted", "unpermitted"]
        other = Relay(running, "c")
        await other.report(guest())
        assert len(await alarms(running)) == 3  # each host has its own measure


@dataclass
class Stepping:
    """A wall clock that a test moves."""

    ahead: timedelta = timedelta()

    def clock(self) -> Clock:
        return Clock(
            lambda: datetime.now(UTC) + self.ahead, lambda: time.monotonic_ns() + int(self.ahead.total_seconds() * 1e9)
        )


@pytest.mark.whole
async def test_silence_is_recorded_once_and_so_is_its_end(site: Site) -> None:
    stepping = Stepping()
    config = site.gateway_config.read_text()
    assert "[limits]" not in config
    site.gateway_config.write_text(config + "\n[limits]\nplacement_silence_seconds = 3600\n")
    async with running_gateway(site, stepping.clock()) as running:
        a = Relay(running, "a")
        await a.report(guest())
        stepping.ahead = timedelta(seconds=4000)
        watch = running.gateway.placement
        await watch.notice_silence()
        await watch.notice_silence()
        assert [kind for kind, _, _ in await alarms(running)] == ["silent"]
        await a.report(guest(), full=False)
        assert [kind for kind, _, _ in await alarms(running)] == ["silent", "heard"]


@pytest.mark.whole
async def test_only_hosts_report_and_only_well_formed(running: Running) -> None:
    body: dict[str, Any] = {
        "epoch": "e" * 32, "sequence": 1, "full": True, "more": False, "report_seconds": 15,
        "confirmed_ms_ago": 0, "guests": [], "gone": [],
    }  # fmt: skip
    assert (await running.person("alice").post("/v1/relay/placement", json=body)).status_code == 403
    for change in (
        {"guests": [guest(uuid=UUID_WEB.replace("1", "A"))]},
        {"guests": [guest(name="a\nb")]},
        {"guests": [guest(presence="elsewhere")]},
        {"guests": [guest()] * 101},
        {"guests": [guest(devices=["x"] * 33)]},
        {"sequence": 0},
        {"epoch": "E" * 32},
        {"host": "b"},
    ):
        answer = await running.client("a").post("/v1/relay/placement", json={**body, **change})
        assert answer.status_code == 400, change


# --- reports by themselves ------------------------------------------------------------------------------------


@pytest.mark.whole
@pytest.mark.parametrize("step", [timedelta(hours=1), timedelta(hours=-1)], ids=["forward", "back"])
async def test_a_clock_that_is_stepped_makes_no_host_silent_and_keeps_no_silent_one(
    site: Site, step: timedelta
) -> None:
    wall, ticks = timedelta(), 0
    clock = Clock(lambda: datetime.now(UTC) + wall, lambda: time.monotonic_ns() + ticks)
    async with running_gateway(site, clock) as running:
        await Relay(running, "a").report(guest())
        watching = running.gateway.placement
        wall += step
        await watching.notice_silence()
        assert await alarms(running) == []
        ticks += 61 * 10**9
        await watching.notice_silence()
        assert [kind for kind, _, _ in await alarms(running)] == ["silent"]
        (record,) = await running.records("placement.silent")
        assert 61_000 <= record["details"]["silent_ms"] < 120_000
        assert running.gateway.desk.gate.placement.active(UUID_WEB) == {}


@pytest.mark.whole
async def test_a_clock_that_is_set_back_hides_no_arrival(site: Site, spiffe_of: str) -> None:
    ahead = timedelta(hours=1)
    async with running_gateway(site, Clock(lambda: datetime.now(UTC) + ahead, time.monotonic_ns)) as running:
        a, b, c = (Relay(running, name) for name in "abc")
        await a.report()
        for _ in range(2):  # an alarm; then it is adopted there
            await b.report(guest())
        await b.report()
        ahead = timedelta()
        await c.report(guest(since_s=0))
        assert await alarms(running) == [
            ("unpermitted", "web", spiffe_of + "b"),
            ("unpermitted", "web", spiffe_of + "c"),
        ]
        (_, record) = await running.records("placement.unpermitted")
        assert record["source"] == spiffe_of + "b"
        assert record["details"]["here_for_ms"] < 120_000


@pytest.mark.whole
async def test_a_clock_that_is_set_back_makes_no_alarm_of_a_move_that_is_not_settled(site: Site) -> None:
    ahead = timedelta(minutes=4)
    async with running_gateway(site, Clock(lambda: datetime.now(UTC) + ahead, time.monotonic_ns)) as running:
        await Relay(running, "a").report(guest())
        migration_id, _ = await running.begin()
        counts = ("transferred_bytes", "remaining_bytes", "total_bytes", "rate_bytes_per_second", "pass")
        told = {"migration_id": migration_id, "state": "failed", **dict.fromkeys(counts, 0)}
        answer = await running.client("a").post("/v1/relay/progress", json=told)
        assert answer.status_code in {200, 204}, answer.text
        ahead = timedelta()
        await Relay(running, "b").report(guest(since_s=0, arrival="migrated"))
        assert await alarms(running) == []


@asynccontextmanager
async def moved(site: Site, stepping: Stepping) -> AsyncIterator[tuple[Running, Relay, Relay]]:
    """web was moved from a to b, and both have certified it; the relays of both."""
    async with running_gateway(site, stepping.clock()) as running:
        a, b = Relay(running, "a"), Relay(running, "b")
        await a.report(guest())
        _, permit = await running.begin()
        for host, role, outcome in (("b", "destination", "running"), ("a", "source", "completed")):
            receipt = running.receipt(host, permit, role, outcome)
            assert (await running.client(host).post("/v1/receipts", json=receipt)).status_code == 200
        await a.report()
        await b.report(guest(since_s=1, arrival="migrated"))
        yield running, a, b


@pytest.mark.whole
async def test_a_host_that_says_each_time_that_the_guest_has_just_come_hides_no_second_copy(site: Site) -> None:
    stepping = Stepping()
    async with moved(site, stepping) as (running, a, b):
        for seconds in (2, 4):
            stepping.ahead = timedelta(seconds=seconds)
            await a.report(guest(since_s=0))
            await b.report(guest(since_s=seconds, arrival="migrated"))
        assert ("duplicate", "web", None) in await alarms(running)


@pytest.mark.whole
async def test_nor_that_it_runs_a_copy_at_all_whose_move_was_settled_long_ago(site: Site, spiffe_of: str) -> None:
    """It has the memory of the guest that left, and could go on with it; in its reports it goes and comes again."""
    stepping = Stepping()
    async with moved(site, stepping) as (running, a, _):
        await a.report(guest(since_s=0))
        assert await alarms(running) == [], "a guest may have come back, and the receipts that say so be under way"
        for minutes in (1, 3):
            stepping.ahead = timedelta(minutes=minutes)
            await a.report()
            await a.report(guest(since_s=0))
        assert await alarms(running) == [("unpermitted", "web", spiffe_of + "a")]


def reported(n: int = 1, **more: Any) -> ReportedGuest:
    values: dict[str, Any] = {
        "uuid": f"{n:08x}-0000-4000-8000-000000000000", "presence": "active", "run_state": "running",
        "arrival": "found", "is_sure": True, "since": 0.0, "seen": 10.0, **more,
    }  # fmt: skip
    return ReportedGuest(**values)


def report(sequence: int, *guests: ReportedGuest, full: bool = False, more: bool = False, epoch: str = "e") -> Report:
    return Report(epoch, sequence, full, more, 0, guests, ())


def test_a_snapshot_counts_only_when_its_last_part_is_here() -> None:
    reports = HostReports()
    assert reports.take("a", report(1, reported(1), full=True, more=True), 10.0, 10.0)
    state = reports.get("a")
    assert state is not None
    assert not state.complete
    assert reports.take("a", report(2, reported(2)), 10.0, 10.0)
    assert state.complete
    assert len(state.guests) == 2


def test_a_lost_a_repeated_and_a_foreign_report_ask_for_a_snapshot_and_change_nothing() -> None:
    reports = HostReports()
    assert reports.take("a", report(1, reported(1), full=True), 10.0, 10.0)
    for odd in (report(3, reported(2)), report(1, reported(2)), report(2, reported(2), epoch="f")):
        assert not reports.take("a", odd, 11.0, 11.0)
    state = reports.get("a")
    assert state is not None
    assert len(state.guests) == 1
    assert reports.take("a", report(2, reported(2)), 12.0, 12.0)


def test_what_is_active_is_so_since_it_was_first_said_unless_the_host_was_away() -> None:
    reports = HostReports()
    reports.take("a", report(1, reported(1, since=5.0), full=True), 10.0, 10.0)
    state = reports.get("a")
    assert state is not None

    def since() -> float:
        return state.guests[reported(1).uuid].since

    reports.take("a", report(2, reported(1, since=20.0)), 20.0, 20.0)
    assert since() == 5.0
    reports.take("a", report(1, reported(1, since=30.0), full=True, epoch="f"), 30.0, 30.0)
    assert since() == 5.0, "also where its relay says that it began anew"
    reports.take("a", report(2, reported(1, since=3.0), epoch="f"), 31.0, 31.0)
    assert since() == 3.0
    reports.take("a", report(3, reported(1, presence="leaving"), epoch="f"), 32.0, 32.0)
    reports.take("a", report(4, reported(1, since=33.0), epoch="f"), 33.0, 33.0)
    assert since() == 33.0, "it did not leave after all"
    reports.take("a", report(5, reported(1, since=90.0), epoch="f"), 100.0, 100.0)
    assert since() == 90.0, "in more than a minute it may have left and come back"


def test_changes_before_any_snapshot_are_not_believed() -> None:
    reports = HostReports()
    assert not reports.take("a", report(1, reported(1)), 10.0, 10.0)
    assert list(reports.fresh(10.0 - 60)) == []


def test_more_guests_than_any_host_has_are_refused() -> None:
    reports = HostReports()
    for part in range(20):
        guests = [reported(part * 100 + n) for n in range(100)]
        reports.take("a", report(part + 1, *guests, full=part == 0, more=True), 10.0, 10.0)
    with pytest.raises(TooManyGuests):
        reports.take("a", report(21, reported(5000)), 10.0, 10.0)
    assert list(reports.fresh(10.0 - 60)) == []


INVENTORY = f"""
[[hosts]]
name = "a"
spiffe_id = "{A}"
site = "s"
zone = "z"
jurisdiction = "DE"
address = "10.0.0.1:1"
[[hosts]]
name = "b"
spiffe_id = "{B}"
site = "s"
zone = "z"
jurisdiction = "DE"
address = "10.0.0.2:1"
[[vms]]
name = "web"
uuid = "{UUID_WEB}"
zone = "z"
classification = "public"
host = "a"
"""


class Scene:
    def __init__(self) -> None:
        self.now = 1000.0
        self.placement = Placement(lambda: self.now, 60, lambda: self.now)
        self.inventory = Inventory.parse(INVENTORY.encode())
        vm = self.inventory.vm("web")
        assert vm is not None
        self.vm: VmFacts = vm

    def show(self, host: str, seen: float, since: float = 0.0) -> None:
        guests = [reported(uuid=UUID_WEB, seen=seen, since=since)]
        self.placement.take(host, Report("e", 1, True, False, int((self.now - seen) * 1000), guests, ()))

    def where(self) -> tuple[str | None, str, int | None]:
        found = self.placement.locate(self.vm, self.inventory)
        return (found.host.name if found.host else None, found.source, found.age_seconds)


def test_the_inventory_a_receipt_and_a_report_place_a_vm_the_newer_the_better() -> None:
    scene = Scene()
    assert scene.where() == ("a", "inventory", None)
    scene.placement.certify(UUID_WEB, B, 900.0)
    assert scene.where() == ("b", "receipt", 100)
    scene.show(A, seen=890.0)
    assert scene.where() == ("b", "receipt", 100)  # a look from before the receipt
    scene.show(A, seen=950.0, since=940.0)
    assert scene.where() == ("a", "report", 50)


def test_a_silent_hosts_report_is_not_believed_any_longer() -> None:
    scene = Scene()
    scene.show(B, seen=1000.0)
    assert scene.where() == ("b", "report", 0)
    scene.now += 61
    assert scene.where() == ("a", "inventory", None)


def test_the_operators_word_in_the_inventory_is_newer_than_what_was_reported_before() -> None:
    scene = Scene()
    scene.placement.adopt(UUID_WEB, B, 900.0)
    scene.show(B, seen=950.0)
    assert scene.where() == ("b", "report", 50)
    scene.placement.forget([UUID_WEB], 960.0)
    assert scene.where() == ("a", "inventory", 40)


def test_two_hosts_at_once_are_a_contradiction_that_names_both() -> None:
    scene = Scene()
    scene.show(A, seen=1000.0)
    scene.show(B, seen=1000.0, since=990.0)
    found = scene.placement.locate(scene.vm, scene.inventory)
    assert (found.problem, found.detail) == ("running_on_two_hosts", "web runs on a and b at once")


def test_a_host_that_says_the_vm_has_just_come_does_not_draw_it_from_where_it_is_expected_and_seen() -> None:
    scene = Scene()
    scene.show(A, seen=1000.0)
    scene.now += 1
    scene.show(B, seen=1001.0, since=1001.0)
    assert scene.where()[0] == "a"
