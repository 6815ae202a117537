"""Keeps every source of the inventory read, and puts together what they tell: the one inventory that is asked.

Each source has a task that reads it when it is due. A name that nobody knows makes all of them be asked at once, so
that a VM created a moment ago is known; however many ask for made-up names, that happens at most once in
`ask_again_seconds`, and only those who ask for such names wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from policy.errors import InventoryRefused, InventoryUnavailable
from policy.inventory import Inventory, Layer, merge
from policy.sources.reading import Reading, Source


@dataclass(frozen=True, slots=True)
class News:
    """What a reading changed. `failure`: why it failed; None if it succeeded. `moved`: VMs with another host now."""

    source: str
    failure: str | None
    digest: str | None = None
    vms: int = 0
    hosts: int = 0
    moved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """How a source is, for people. `age_seconds`: since it was last confirmed; None: never.

    `failure`: why the last reading failed; `answers`: what it said was at fault, not that it said nothing.
    """

    name: str
    age_seconds: int | None
    believed: bool
    failure: str | None
    answers: bool
    vms: int
    hosts: int
    digest: str | None


@dataclass(slots=True)
class _Held:
    source: Source
    lock: trio.Lock = field(default_factory=trio.Lock)
    reading: Reading | None = None
    failure: str | None = None
    answers: bool = True


OnNews = Callable[[News], Awaitable[None]]


class Sources:
    """`sources` in order of precedence; `clock` monotonic, in seconds. Empty until `begin` or `run` has read them."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        ask_again_seconds: float = 5,
        ask_deadline_seconds: float = 5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._held = [_Held(source) for source in sources]
        self._ask_again_seconds = ask_again_seconds
        self._ask_deadline_seconds = ask_deadline_seconds
        self._clock = clock
        self._confirmed: dict[str, float] = {}
        self._asked_at: float | None = None
        self._asking: trio.Event | None = None
        self._silent: tuple[str, ...] = ()
        self._placed: dict[str, str | None] = {}
        self._inventory = self._merged()
        self.on_news: OnNews | None = None

    @property
    def inventory(self) -> Inventory:
        """What is known now: without whatever has been silent for too long."""
        if self._silent_now() != self._silent:
            self._put_together()
        return self._inventory

    def conditions(self) -> list[Condition]:
        return [self._condition(held) for held in self._held]

    async def refresh(self, name: str) -> News | None:
        """Read one source now; what came of it, if that is news. Errors: InventoryRefused, InventoryUnavailable."""
        held = next(held for held in self._held if held.source.name == name)
        return await self._refresh(held, self._clock())

    async def begin(self) -> None:
        """Read all of them for the first time, at the same time. Those that fail are left to `run`, and so are those
        that have not answered when this is cancelled."""
        async with trio.open_nursery() as nursery:
            for held in self._held:
                if held.reading is None:
                    nursery.start_soon(self._refresh_quietly, held, self._clock())

    async def run(self) -> None:
        """Read each source when it is due, until cancelled."""
        async with trio.open_nursery() as nursery:
            for held in self._held:
                nursery.start_soon(self._keep, held)

    async def ask_again(self) -> None:
        """Somebody named what nobody knows: read all sources, if that was not done just now. Never raises."""
        if self._asking is not None:
            await self._asking.wait()
            return
        now = self._clock()
        if self._asked_at is not None and now - self._asked_at < self._ask_again_seconds:
            return
        self._asked_at = now
        self._asking = done = trio.Event()
        try:
            # Shielded: a requester who hangs up must not use up the others' attempt.
            with trio.move_on_after(self._ask_deadline_seconds, shield=True):
                async with trio.open_nursery() as nursery:
                    for held in self._held:
                        nursery.start_soon(self._refresh_quietly, held, now)
        finally:
            self._asking = None
            done.set()

    async def _keep(self, held: _Held) -> None:
        if held.reading is None and held.failure is None:  # it was not waited for
            await self._refresh_quietly(held, self._clock())
        while True:
            await trio.sleep(held.source.pace.refresh_seconds)
            await self._refresh_quietly(held, self._clock())

    async def _refresh_quietly(self, held: _Held, wanted_at: float) -> None:
        had_failed = held.failure is not None
        try:
            news = await self._refresh(held, wanted_at)
        except (InventoryRefused, InventoryUnavailable) as error:
            news = None if had_failed else News(held.source.name, str(error))
        if news is not None and self.on_news is not None:
            await self.on_news(news)

    async def _refresh(self, held: _Held, wanted_at: float) -> News | None:
        async with held.lock:
            name = held.source.name
            if self._confirmed.get(name, wanted_at) > wanted_at:
                return None  # whoever waited here finds what another task has just read
            # Age counts from the start: what changed while the answer was on its way is not fresh.
            started = self._clock()
            reading = await self._read(held)
            had_failed, held.failure = held.failure is not None, None
            unchanged = held.reading is not None and held.reading.told is reading.told
            held.reading = reading
            self._confirmed[name] = started
            if unchanged and not had_failed and name not in self._silent:
                return None
            self._put_together()
            moved = self._moved()
            return News(name, None, reading.digest, len(reading.told.vms), len(reading.told.hosts), moved)

    async def _read(self, held: _Held) -> Reading:
        seconds = held.source.pace.deadline_seconds
        try:
            with trio.fail_after(seconds):
                return await held.source.read(held.reading)
        except (InventoryRefused, InventoryUnavailable) as error:
            held.failure, held.answers = error.detail, isinstance(error, InventoryRefused)
            raise
        except trio.TooSlowError as error:
            held.failure, held.answers = f"no answer within {seconds:g} s", False
            raise InventoryUnavailable(held.source.name, held.failure) from error

    def _silent_now(self) -> tuple[str, ...]:
        return tuple(held.source.name for held in self._held if not self._is_believed(held))

    def _is_believed(self, held: _Held) -> bool:
        limit, confirmed = held.source.pace.max_age_seconds, self._confirmed.get(held.source.name)
        return confirmed is not None and (limit is None or self._clock() - confirmed <= limit)

    def _put_together(self) -> None:
        self._silent = self._silent_now()
        self._inventory = self._merged()

    def _moved(self) -> tuple[str, ...]:
        """VMs that the inventory places elsewhere than when it was last known whole."""
        vms = self._inventory.vms
        moved = tuple(uuid for uuid, host in self._placed.items() if uuid in vms and vms[uuid].host != host)
        if self._silent:
            self._placed |= {uuid: vms[uuid].host for uuid in moved}
        else:
            self._placed = {uuid: vm.host for uuid, vm in vms.items()}
        return moved

    def _merged(self) -> Inventory:
        return merge([self._layer(held) for held in self._held], self._confirmed, self._clock)

    def _layer(self, held: _Held) -> Layer:
        source = held.source
        if held.reading is not None and self._is_believed(held):
            return Layer(source.name, held.reading.told, tells_hosts=source.tells_hosts)
        limit = source.pace.max_age_seconds
        # Why is for the operator (`conditions`): whoever asks for a VM is told no more than that.
        since = "has not answered yet" if held.reading is None else f"has been silent for more than {limit:g} s"
        return Layer(source.name, None, f"{source.name} {since}", source.tells_hosts)

    def _condition(self, held: _Held) -> Condition:
        confirmed = self._confirmed.get(held.source.name)
        told = held.reading.told if held.reading is not None else None
        return Condition(
            name=held.source.name,
            age_seconds=None if confirmed is None else int(self._clock() - confirmed),
            believed=self._is_believed(held),
            failure=held.failure,
            answers=held.answers,
            vms=len(told.vms) if told else 0,
            hosts=len(told.hosts) if told else 0,
            digest=held.reading.digest if held.reading else None,
        )
