"""Several sources as one inventory: precedence, silence, age, and asking again for what nobody knows."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from policy.errors import InventoryRefused, InventoryUnavailable
from policy.sources.file import FileSource
from policy.sources.keeper import News, Sources
from policy.sources.reading import Pace, Reading
from policy.told import Told, parse_json

UUID = "6f1c2a52-4c0e-4a57-9d3c-0b8f6f0f7a11"
NEW = "6f1c2a52-4c0e-4a57-9d3c-0b8f6f0f7a12"
PACE = Pace(refresh_seconds=60, deadline_seconds=5, max_age_seconds=600)


@dataclass
class Stub:
    """A source whose answers the test sets: what a network would do is tested with each real source."""

    name: str
    told: Told | None
    pace: Pace = PACE
    tells_hosts: bool = False
    reads: int = 0
    gate: trio.Event | None = None

    async def read(self, before: Reading | None) -> Reading:
        self.reads += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.told is None:
            raise InventoryUnavailable(self.name, "is down")
        return before if before is not None and before.told is self.told else Reading(self.told, "digest")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def tells(uuid: str = UUID, **facts: object) -> Told:
    return parse_json(json.dumps({"vms": [{"uuid": uuid, **facts}]}).encode(), "stub", partial=True)


def everything(**changes: object) -> Told:
    return tells(UUID, **{"name": "ledger", "zone": "production", "classification": "restricted", **changes})


async def begun(*sources: Stub, clock: Clock | None = None, **limits: float) -> Sources:
    made = Sources(sources, clock=clock or Clock(), **limits)
    await made.begin()
    return made


async def test_of_each_fact_the_first_source_that_tells_it_counts() -> None:
    first = Stub("overrides", tells(classification="restricted"))
    second = Stub("cmdb", everything(classification="internal", tags=["linux"]))
    found = (await begun(first, second)).inventory.vm("ledger")
    assert found is not None
    assert (found.zone, found.classification, found.tags) == ("production", "restricted", frozenset({"linux"}))
    assert found.provenance.classification.source == "overrides"
    assert found.provenance.zone.source == found.provenance.tags.source == "cmdb"


async def test_a_source_that_is_silent_hides_all_below_it() -> None:
    clock = Clock()
    first, second = Stub("overrides", tells(classification="restricted")), Stub("cmdb", everything(), PACE)
    second.pace = replace(PACE, max_age_seconds=None)
    sources = await begun(first, second, clock=clock)
    first.told = None
    clock.now += 600
    assert sources.inventory.vm(UUID) is not None
    clock.now += 1
    assert sources.inventory.vm(UUID) is None
    because = sources.inventory.why_unknown("ledger")
    assert "could be told by overrides" in because
    assert "silent for more than 600 s" in because


async def test_what_a_source_above_tells_whole_does_not_need_the_one_that_is_silent() -> None:
    sources = await begun(Stub("file", everything(tags=["pci"])), Stub("cmdb", None))
    assert sources.inventory.vm("ledger") is not None
    untagged = await begun(Stub("file", everything()), Stub("cmdb", None))
    assert "its tags could be told by cmdb" in untagged.inventory.why_unknown(UUID)


async def test_a_source_that_comes_back_is_believed_again() -> None:
    clock = Clock()
    cmdb = Stub("cmdb", everything())
    sources = await begun(cmdb, clock=clock)
    told, cmdb.told = cmdb.told, None
    clock.now += 700
    with pytest.raises(InventoryUnavailable):
        await sources.refresh("cmdb")
    assert sources.inventory.vm(UUID) is None
    assert sources.conditions()[0].failure == "is down"
    cmdb.told = told
    news = await sources.refresh("cmdb")
    assert news is not None  # that it works again is news
    assert sources.inventory.vm(UUID) is not None
    assert sources.conditions()[0].failure is None


async def test_a_vm_of_which_not_enough_is_told_is_unknown_and_says_what_is_missing() -> None:
    sources = await begun(Stub("cmdb", tells(name="ledger", zone="test")))
    assert sources.inventory.vm("ledger") is None
    assert "no source tells its classification" in sources.inventory.why_unknown("ledger")
    assert any(UUID in problem for problem in sources.inventory.problems)


async def test_a_name_that_two_vms_have_is_nobodys() -> None:
    sources = await begun(
        Stub("file", everything()), Stub("nova", tells(NEW, name="ledger", zone="a", classification="b"))
    )
    assert sources.inventory.vm("ledger") is None
    assert "name it by its UUID" in sources.inventory.why_unknown("ledger")
    assert sources.inventory.vm(UUID) is not None
    assert sources.inventory.vm(NEW) is not None


async def test_a_label_in_another_spelling_does_not_slip_past_the_policy_for_it() -> None:
    other = tells(NEW, name="other", zone="Production", classification="internal")
    sources = await begun(Stub("file", everything()), Stub("cmdb", other))
    assert sources.inventory.vm("other") is None
    assert "spelt 'Production', and elsewhere 'production'" in sources.inventory.why_unknown("other")
    assert sources.inventory.vm("ledger") is not None


async def test_a_vm_created_a_moment_ago_is_known_when_it_is_asked_for() -> None:
    cmdb = Stub("cmdb", everything())
    sources = await begun(cmdb)
    cmdb.told = tells(NEW, name="new", zone="test", classification="internal")
    assert sources.inventory.vm("new") is None
    await sources.ask_again()
    assert sources.inventory.vm("new") is not None


async def test_made_up_names_cost_one_reading_in_a_while_however_many_there_are() -> None:
    clock, cmdb = Clock(), Stub("cmdb", everything())
    sources = await begun(cmdb, clock=clock, ask_again_seconds=5)
    cmdb.gate = trio.Event()
    clock.now += 1
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(sources.ask_again)
        await trio.testing.wait_all_tasks_blocked()
        cmdb.gate.set()
    assert cmdb.reads == 2
    await sources.ask_again()
    assert cmdb.reads == 2
    clock.now += 5
    await sources.ask_again()
    assert cmdb.reads == 3


async def test_who_hangs_up_does_not_use_up_the_attempt_of_the_others() -> None:
    cmdb = Stub("cmdb", everything())
    sources = await begun(cmdb)
    cmdb.gate, cmdb.told = trio.Event(), tells(NEW, name="new", zone="test", classification="internal")
    async with trio.open_nursery() as nursery:
        impatient = trio.CancelScope()

        async def ask_and_leave() -> None:
            with impatient:
                await sources.ask_again()

        nursery.start_soon(ask_and_leave)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(sources.ask_again)
        impatient.cancel()
        cmdb.gate.set()
    assert sources.inventory.vm("new") is not None


async def test_a_source_that_hangs_keeps_nobody_longer_than_the_deadline(autojump_clock: MockClock) -> None:
    slow, quick = Stub("slow", everything(), PACE), Stub("quick", tells(NEW, name="n", zone="a", classification="b"))
    sources = Sources([quick, slow], ask_deadline_seconds=2, clock=trio.current_time)
    slow.gate = trio.Event()
    with trio.fail_after(2.5):
        await sources.ask_again()
    assert quick.reads == 1
    assert sources.conditions()[0].believed


async def test_each_source_is_read_when_it_is_due_and_only_news_is_told(autojump_clock: MockClock) -> None:
    told: list[News] = []

    async def listen(news: News) -> None:
        told.append(news)

    cmdb = Stub("cmdb", everything(host="a"), replace(PACE, refresh_seconds=10))
    sources = Sources([cmdb], clock=trio.current_time)
    await sources.begin()
    sources.on_news = listen
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sources.run)
        await trio.sleep(25)
        assert (cmdb.reads, told) == (3, [])
        cmdb.told = everything(host="b")
        await trio.sleep(10)
        assert [(news.failure, news.moved) for news in told] == [(None, (UUID,))]
        cmdb.told = None
        await trio.sleep(30)
        assert len(told) == 2  # that it fails is news once
        assert told[1].failure == "inventory source cmdb: is down"
        nursery.cancel_scope.cancel()


async def test_a_file_is_read_again_when_it_changes_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "inventory.toml"
    entry = f'[[vms]]\nname = "web"\nuuid = "{UUID}"\nzone = "test"\nclassification = "internal"\n'
    file.write_text(entry)
    sources = Sources([FileSource("inventory", file, Pace(max_age_seconds=None))])
    await sources.refresh("inventory")
    assert await sources.refresh("inventory") is None
    file.write_text(entry.replace('"test"', '"dmz"'))
    assert await sources.refresh("inventory") is not None
    file.write_text(entry[:-5])
    with pytest.raises(InventoryRefused):
        await sources.refresh("inventory")
    found = sources.inventory.vm("web")
    assert found is not None
    assert found.zone == "dmz"


async def test_entries_that_only_add_to_another_source_need_to_be_allowed(tmp_path: Path) -> None:
    file = tmp_path / "overrides.toml"
    file.write_text(f'[[vms]]\nuuid = "{UUID}"\nclassification = "restricted"\n')
    with pytest.raises(InventoryRefused, match="is missing; it must be"):
        await FileSource("overrides", file, PACE).read(None)
    assert (await FileSource("overrides", file, PACE, partial=True).read(None)).told.vms[UUID].zone is None


async def test_ages_are_those_of_the_moment_of_the_look_up() -> None:
    clock = Clock()
    sources = await begun(Stub("cmdb", everything()), clock=clock)
    ages = []
    for _ in range(3):
        found = sources.inventory.vm("ledger")
        assert found is not None
        ages.append(found.provenance.zone.age_seconds)
        clock.now += 30
    assert ages == [0, 30, 60]


async def test_what_was_not_waited_for_at_the_start_is_read_at_once_and_what_failed_when_it_is_due() -> None:
    hanging, down = Stub("hanging", everything(), gate=trio.Event()), Stub("down", None)
    sources = Sources([hanging, down])
    with trio.move_on_after(0.1):
        await sources.begin()
    assert [each.believed for each in sources.conditions()] == [False, False]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sources.run)
        assert hanging.gate is not None
        hanging.gate.set()
        with trio.fail_after(10):
            while not sources.conditions()[0].believed:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert (hanging.reads, down.reads) == (2, 1)
