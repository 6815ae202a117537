"""One guest, in one place: relays that die around each line of their journals, whatever the move comes to.

The relays, their network and their spools are real; the hypervisors are a model that notices a guest which runs twice,
so that many deaths take seconds. `test_handover` has those of a move that succeeds, with real QEMUs and SIGKILL; with
ALL_DEATHS=1 in the environment they are here, too, and each death of one relay with each of the other.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import pytest
import trio

from policy.permit import VerifiedPermit
from tests.transport.relay.conftest import unheard, until
from tests.transport.site import Site
from transport.errors import ConnectionBroken
from transport.hypervisors.errors import MigrationFailed
from transport.hypervisors.migration_progress import MigrationProgress
from transport.relay import spool
from transport.relay.ends import Arrival, Milestones, Report, Whereabouts
from transport.relay.host import RelayHost, open_host
from transport.relay.inlets import Inlet, Port, SourceLanes
from transport.relay.service import serve_relay
from transport.relay.source import MigrationOrder, carry_as_source

LIMITS = {
    "settle_retry_seconds": 0.05,
    "message_seconds": 10.0,
    "handshake_seconds": 10.0,
    "resume_seconds": 0.1,
    "drain_seconds": 0.1,
    "hypervisor_seconds": 0.1,
}
AT_ONCE = 16
WORLD_SECONDS = 90  # of 32 relays in one process, on a machine that does much else
_ONE_PLACE = frozenset({("running", "gone"), ("running", "waiting"), ("gone", "running")})


class Died(BaseException):
    """The relay, where SIGKILL would have ended it."""


@dataclass
class World:
    """Where the guest is, and which relay dies when. `plan`: "before:STATE" or "after:STATE" by host, or ""."""

    what: str
    plan: dict[str, str]
    at_source: str = "running"  # paused, gone
    at_destination: str = "waiting"  # whole, running, gone
    died: list[str] = field(default_factory=list)
    wrongs: list[str] = field(default_factory=list)
    dead: set[str] = field(default_factory=set)
    owned: dict[str, list[int]] = field(default_factory=lambda: {"a": [], "b": []})  # journals, by descriptor

    def bury(self, host: str) -> None:
        """What the kernel takes back with a process."""
        for descriptor in self.owned.pop(host):
            with contextlib.suppress(OSError):
                if ".jsonl" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):  # else its session has ended
                    os.close(descriptor)
        self.owned[host] = []
        self.dead.discard(host)

    def start(self, where: Literal["at_source", "at_destination"]) -> None:
        setattr(self, where, "running")
        if (self.at_source, self.at_destination) == ("running", "running"):
            self.wrongs.append("the guest runs twice")

    def require_alive(self, host: str) -> None:
        if host in self.dead:
            raise Died

    def note(self, host: str, moment: str) -> None:
        self.require_alive(host)
        if self.plan[host] == moment and moment not in self.died:
            self.died.append(moment)
            self.dead.add(host)
            raise Died

    @property
    def is_in_one_place(self) -> bool:
        return (self.at_source, self.at_destination) in _ONE_PLACE


class _End:
    vm_binding: Literal["uuid", "none"] = "uuid"
    hands_over = True

    def __init__(self, world: World) -> None:
        self.world = world
        self.facts: dict[str, object] = {}

    async def is_in_post_copy(self) -> bool:
        return False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class ModelSource(_End):
    recovers = ""

    async def prepare(self) -> str:
        return "1:1"

    def inlets(self, socket_path: Path) -> list[Inlet]:  # noqa: ARG002
        return []

    async def migrate(self, lanes: SourceLanes, milestones: Milestones, report: Report) -> None:  # noqa: ARG002
        self.world.require_alive("a")
        if self.world.what == "breaks":
            raise MigrationFailed("as asked for")
        self.world.at_source = "paused"
        if self.world.what != "is lost at the destination":
            self.world.at_destination = "whole"
        if self.world.what == "breaks when all is there":
            raise ConnectionBroken("as asked for")

    async def last_numbers(self) -> MigrationProgress | None:
        self.world.require_alive("a")
        return MigrationProgress("completed")

    async def whereabouts(self, *, accepted: bool) -> Whereabouts:  # noqa: ARG002
        return "gone" if await self.is_gone() else "here"

    async def resume_guest(self) -> None:
        self.world.require_alive("a")
        self.world.start("at_source")

    async def release(self) -> None:
        self.world.require_alive("a")
        if self.world.at_destination != "running":
            self.world.wrongs.append("the only guest is ended")
        self.world.at_source = "gone"

    def recovery(self, pause_seconds: float) -> contextlib.AbstractAsyncContextManager[bool]:
        raise NotImplementedError

    async def go_on_with_post_copy(self, lanes: SourceLanes, report: Report) -> None:
        raise NotImplementedError

    async def is_gone(self) -> bool:
        return self.world.at_source == "gone"

    def broke(self, cause: str) -> None:
        pass


class ModelDestination(_End):
    async def prepare(self, folder: Path) -> str:  # noqa: ARG002
        return "2:2"

    async def dial(self, port: Port, arrival: Arrival) -> socket.socket:
        raise NotImplementedError

    async def look_ahead(self) -> None:
        pass

    async def wait_loaded(self, seconds: float) -> bool:  # noqa: ARG002
        return self.world.at_destination in {"whole", "running"}

    def begin_post_copy(self) -> bool:
        return False

    async def listen_again(self, folder: Path) -> None:
        raise NotImplementedError

    async def hold_until_whole(self) -> None:
        raise NotImplementedError

    async def start_guest(self) -> None:
        self.world.require_alive("b")
        self.world.start("at_destination")

    async def discard(self) -> None:
        self.world.require_alive("b")
        if self.world.at_destination == "running":
            self.world.wrongs.append("a guest that runs is discarded")
        self.world.at_destination = "gone"


@dataclass
class Stage:
    """Many worlds at one site, by the name of the folder that both of a world's relays have."""

    site: Site
    worlds: dict[str, World] = field(default_factory=dict)

    def opened(self, name: str, host: str, listen: str) -> RelayHost:
        config = self.site.relay_config(host, kind="qmp", qmp_socket=str(self.site.folder / "{uuid}.sock"))
        folder = self.site.folder / name / host
        relay = msgspec.structs.replace(config.relay, listen=listen, state_dir=str(folder))
        limits = msgspec.structs.replace(config.limits, **LIMITS)
        return open_host(msgspec.structs.replace(config, relay=relay, limits=limits))

    def owed(self, name: str) -> list[Path]:
        return list((self.site.folder / name / "a" / "journals").glob("source-*.jsonl"))

    async def live(self, name: str, host: str, listen: str, order: MigrationOrder | None) -> None:
        """A relay, and its successors; the first one of `a` begins the move."""
        while True:
            opened = self.opened(name, host, listen)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve_relay, opened, lambda _: None)
                    if order is not None:
                        nursery.start_soon(carry_as_source, opened, order, unheard, trio.Event())
            except* Died:
                order = None
                self.worlds[name].bury(host)

    async def play(self, name: str, vm: str) -> None:
        """Until the source owes nothing any more and the guest is in one place."""
        world, listen = self.worlds[name], f"{name.replace('w', '127.7.')}.1:7443"  # nobody else's while it is dead
        order = MigrationOrder(self.site.permit(vm=vm), listen)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.live, name, "b", listen, None)
            await until_listening(listen)
            nursery.start_soon(self.live, name, "a", "127.0.0.1:0", order)
            await until(lambda: bool(world.died) or not any(world.plan.values()), WORLD_SECONDS)
            await until(lambda: world.is_in_one_place and not self.owed(name), WORLD_SECONDS)
            nursery.cancel_scope.cancel()


@pytest.fixture
def stage(site: Site, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage(site)
    durable, own = spool._append_line, spool._own

    def of(path: Path) -> tuple[World, str]:
        folder = path.parent.parent
        return made.worlds[folder.parent.name], folder.name

    def owning(path: Path) -> int | None:
        descriptor = own(path)
        if descriptor is not None and path.suffix == ".jsonl":
            world, host = of(path)
            world.owned[host].append(descriptor)
        return descriptor

    def append_line(path: Path, entry: dict[str, Any]) -> None:
        world, host = of(path)
        world.note(host, f"before:{entry['state']}")
        durable(path, entry)
        world.note(host, f"after:{entry['state']}")

    def world_of(host: RelayHost) -> World:
        return made.worlds[Path(host.config.relay.state_dir).parent.name]

    def source_end(host: RelayHost, *_: Any, **__: Any) -> ModelSource:
        return ModelSource(world_of(host))

    def destination_end(host: RelayHost, _: VerifiedPermit, __: Mapping[str, Any], *___: Any) -> ModelDestination:
        return ModelDestination(world_of(host))

    monkeypatch.setattr(spool, "_append_line", append_line)
    monkeypatch.setattr(spool, "_own", owning)
    monkeypatch.setattr(RelayHost, "source_end", source_end)
    monkeypatch.setattr(RelayHost, "destination_end", destination_end)
    return made


async def until_listening(address: str) -> None:
    with trio.fail_after(20):
        while True:
            with contextlib.suppress(OSError):
                host, _, port = address.rpartition(":")
                await (await trio.open_tcp_stream(host, int(port))).aclose()
                return
            await trio.sleep(0.01)


SOURCE: dict[str, tuple[str, ...]] = {
    "succeeds": ("begun", "handed-over", "outcome-running", "ended"),
    "breaks": ("begun", "abandoned", "resumed", "ended"),
    "breaks when all is there": ("abandoned", "resumed", "ended"),
    "is lost at the destination": ("handed-over", "outcome-discarded", "ended"),
}
DESTINATION: dict[str, tuple[str, ...]] = {
    "succeeds": ("admitted", "prepared", "running", "started", "ended"),
    "breaks": ("admitted", "prepared", "discarded", "ended"),
    "breaks when all is there": ("discarded", "ended"),
    "is lost at the destination": ("discarded", "ended"),
}


def deaths(states: tuple[str, ...]) -> list[str]:
    return ["", *(f"{when}:{state}" for state in states for when in ("before", "after"))]


def cases() -> list[tuple[str, str, str]]:
    every = [
        (what, *pair) for what in SOURCE for pair in itertools.product(deaths(SOURCE[what]), deaths(DESTINATION[what]))
    ]
    if os.environ.get("ALL_DEATHS"):
        return every
    return [(what, a, b) for what, a, b in every if bool(a) != bool(b) and what != "succeeds"]


async def test_a_guest_is_in_one_place_whatever_dies(stage: Stage) -> None:
    at_once, wrong = trio.CapacityLimiter(AT_ONCE), []

    async def one(number: int, what: str, source: str, destination: str) -> None:
        name = f"w{number}"
        world = stage.worlds[name] = World(what, {"a": source, "b": destination})
        async with at_once:
            try:
                await stage.play(name, f"11111111-2222-4333-8444-{number:012x}")
            except* trio.TooSlowError:
                world.wrongs.append(f"it is nowhere: {world.at_source} and {world.at_destination}")
        if world.wrongs:
            wrong.append(f"{what}, a dies {source or 'not'}, b {destination or 'not'}: {world.wrongs}")

    async with trio.open_nursery() as nursery:
        for number, (what, source, destination) in enumerate(cases()):
            if source != "before:begun":  # then nothing was begun
                nursery.start_soon(one, number, what, source, destination)
    assert not wrong, "\n".join(wrong)
