"""Every kind of migration between two relays with real QEMUs, and what became of the guest: `make kinds`.

Each kind is one move of a guest that counts and dirties its memory. It has passed when the guest counts on at the
destination without a gap or a repetition, its memory is what it was, exactly one QEMU is left, and there is evidence
that the kind was really used: channels in the signed receipts, numbers of QEMU's own.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from gateway.demo.guest import GuestLayout, build_boot_image, count_passes, memory_problems
from gateway.demo.machines import QEMU, Qemu, dump_region, let_run, run_state, start_qemu, stop_qemu, wait_passes
from policy.permit import Limits
from tests.transport.relay.conftest import until
from tests.transport.stages import Stage, stage
from transport.hypervisors.errors import HypervisorError
from transport.hypervisors.moving import How
from transport.hypervisors.qmp import QmpConnection
from transport.relay.news import News
from transport.relay.source import MigrationOrder, carry_as_source

VM = "11111111-2222-4333-8444-555555555555"
MIB = 1 << 20
NEWEST = Path(__file__).parents[2] / ".qemu-newest" / "qemu-system-x86_64"
DEADLINE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is to tell of one move. `channels`: of the source's receipts, in the order of their names, whose
    outcomes are `certified`; `qemu`: its answers to query-migrate,
    each with its `parameters` of that moment."""

    news: list[News]
    channels: list[dict[str, Any]]
    qemu: list[dict[str, Any]]
    certified: list[str]

    def states(self) -> set[str]:
        return {answer.get("status", "") for answer in self.qemu}

    def most(self, *path: str) -> float:
        """The largest of one of QEMU's numbers."""
        found = [0.0]
        for answer in self.qemu:
            value: Any = answer
            for member in path:
                value = value.get(member, {}) if isinstance(value, dict) else {}
            if isinstance(value, int | float):
                found.append(float(value))
        return max(found)

    def carrying(self) -> int:
        """How many channels carried something from the source."""
        return sum(1 for each in self.channels if each["sent_bytes"])


@dataclass(frozen=True, slots=True)
class Kind:
    """`evidence` gives words, or nothing if the kind was not really used."""

    name: str
    how: How
    evidence: Callable[[Seen], str]
    bandwidth: int = 0
    memory_mib: int = 32
    hot_mib: int = 4
    moves: bool = True
    claims: Mapping[str, Any] = field(default_factory=dict)  # of the permit, where they are not the usual ones


def _always(seen: Seen) -> str:
    return f"{seen.most('ram', 'dirty-sync-count'):.0f} passes"


def _return_path(seen: Seen) -> str:
    """The destination's QEMU has answered the source's, at least that it has everything."""
    back = sum(each["received_bytes"] for each in seen.channels)
    return f"{_always(seen)}, {back} bytes came back" if back else ""


def _channels(count: int, compression: str, seen: Seen) -> str:
    used = any(answer["parameters"].get("multifd-compression") == compression for answer in seen.qemu)
    return f"{count} channels of data" if used and seen.carrying() >= count else ""


def _post_copy(seen: Seen) -> str:
    asked = seen.most("ram", "postcopy-requests")
    return f"{asked:.0f} pages asked for" if "postcopy-active" in seen.states() and asked else ""


def _preempt(seen: Seen) -> str:
    second = sorted(each["sent_bytes"] for each in seen.channels)[:-1]
    return f"{max(second) // 1024} KiB on the second channel" if second and max(second) > 4096 else ""


def _throttled(seen: Seen) -> str:
    most = seen.most("cpu-throttle-percentage")
    paused = seen.most("total-time") >= _THROTTLED_SECONDS * 1000
    return (f"throttled to {most:.0f} %" + (", then paused" if paused else "")) if most else ""


def _xbzrle(seen: Seen) -> str:
    pages = seen.most("xbzrle-cache", "pages")
    return f"{pages:.0f} pages as differences" if pages else ""


def _multifd(channels: int, compression: str = "none") -> Kind:
    how = msgspec.convert({"multifd_channels": channels, "multifd_compression": compression}, How)
    name = f"multifd {channels}" + ("" if compression == "none" else f", {compression}")
    return Kind(name, how, partial(_channels, channels + 1, compression))


def _by_tls(kind: Kind) -> Kind:
    return replace(kind, name=f"{kind.name}, lanes of TLS", claims={"seal": "tls"})


_SLOW = 40 * MIB
_THROTTLED_SECONDS = 20
# Under TCG a guest at 99 % may never converge: for each pass QEMU waits for the throttled processor to come by, for a
# second in which the lane carries next to nothing, and it reckons with so little. Seen in three of ten moves.
_THROTTLE = How(
    auto_converge=True, downtime_limit_ms=80, converge_within_seconds=_THROTTLED_SECONDS, at_deadline="pause"
)
_POST_COPY = Kind("post-copy", How(post_copy_after_seconds=0), _post_copy, _SLOW, 32, 16)
KINDS: tuple[Kind, ...] = (
    Kind("pre-copy, return path", How(), _return_path),
    *(_multifd(channels, compression) for channels in (2, 4, 8) for compression in ("none", "zlib", "zstd")),
    _POST_COPY,
    Kind("post-copy after 3 passes", How(post_copy_after_passes=3, downtime_limit_ms=1), _post_copy, _SLOW, 32, 8),
    Kind(
        "post-copy, preempt, capped",
        How(post_copy_after_seconds=0, preempt=True, post_copy_bytes_per_second=8 * MIB),
        _preempt,
        _SLOW,
        32,
        16,
    ),
    Kind("auto-converge", _THROTTLE, _throttled, _SLOW),
    Kind("XBZRLE", How(xbzrle=True, downtime_limit_ms=5), _xbzrle, _SLOW),
    Kind(
        "late: guest paused",
        How(converge_within_seconds=2, at_deadline="pause", downtime_limit_ms=1),
        _always,
        _SLOW,
    ),
    Kind(
        "late: post-copy",
        How(converge_within_seconds=2, at_deadline="post-copy", downtime_limit_ms=1),
        _post_copy,
        _SLOW,
        32,
        8,
    ),
    Kind(
        "late: cancelled",
        How(converge_within_seconds=1, downtime_limit_ms=1),
        lambda seen: "given up" if "did not converge" in seen.news[-1].message else "",
        _SLOW,
        32,
        8,
        moves=False,
    ),
    *(_by_tls(kind) for kind in (Kind("pre-copy", How(), _always), _multifd(4), _POST_COPY)),
)


class WrongGuest(AssertionError):
    """The guest is not what and where it should be, or the kind was not used."""


async def move(
    kind: Kind,
    folder: Path,
    program: str = QEMU,
    meddle: Callable[[Stage], Awaitable[None]] | None = None,
    within: Callable[[Path], AbstractAsyncContextManager[Stage]] = stage,
    seconds: float = DEADLINE_SECONDS,
) -> str:
    """One move; words of evidence. `meddle` runs beside it, `within` is where. Raises WrongGuest, and more."""
    layout = GuestLayout.for_memory(kind.memory_mib, kind.hot_mib)
    image = build_boot_image(layout, folder)
    async with within(folder) as here:
        source = await start_qemu(folder / "qa" / VM, VM, memory_mib=kind.memory_mib, image=image, program=program)
        try:
            destination = await start_qemu(
                folder / "qb" / VM, VM, memory_mib=kind.memory_mib, image=image, incoming=True, program=program
            )
            try:
                await wait_passes(source, 2)
                return await _moved(kind, here, Machines(source, destination), layout, meddle, seconds)
            finally:
                await stop_qemu(destination)
        finally:
            await stop_qemu(source)


@dataclass(frozen=True, slots=True)
class Machines:
    source: Qemu
    destination: Qemu


async def _moved(
    kind: Kind,
    here: Stage,
    machines: Machines,
    layout: GuestLayout,
    meddle: Callable[[Stage], Awaitable[None]] | None,
    seconds: float,
) -> str:
    source, destination = machines.source, machines.destination
    before, after = here.site.folder / "before", here.site.folder / "after"
    await dump_region(source, before, layout)
    await let_run(source)
    limits = Limits(max_channels=16, bandwidth_bytes_per_second=kind.bandwidth)
    order = MigrationOrder(here.site.permit(vm=VM, limits=limits, **kind.claims), here.address, how=kind.how)
    answers: list[dict[str, Any]] = []
    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, source, answers)
            if meddle is not None:
                nursery.start_soon(meddle, here)
            await carry_as_source(here.source, order, here.tell, trio.Event())
            nursery.cancel_scope.cancel()
        bodies = [json.loads(json.loads(each.read_bytes())["receipt"]["body"]) for each in here.source.spool.receipts()]
        channels = [channel for body in bodies for channel in body["channels"]]
        seen = Seen(here.news, channels, answers, [body["outcome"] for body in bodies])
        last = here.news[-1]
        if (last.state == "completed") is not kind.moves:
            raise WrongGuest(f"{last.state}: {last.message}")
        if kind.moves:
            await until(lambda: source.ended, 20)
            printed = source.printed()
            await wait_passes(destination, count_passes(printed) + 5, earlier=printed)
            at = destination
        else:
            if destination.printed() or await run_state(source) != "running":
                raise WrongGuest("the guest is not where it was")
            printed = b""
            await wait_passes(source, count_passes(source.printed()) + 5)
            at = source
        printed += await dump_region(at, after, layout)
    if problems := memory_problems(before, after, layout, count_passes(printed)):
        raise WrongGuest("; ".join(problems[:3]))
    if not (words := kind.evidence(seen)):
        raise WrongGuest(f"moved, but not in this way: {sorted(seen.states())}, {channels}")
    if last.downtime_ms is not None:
        words += f", {last.downtime_ms} ms of downtime"
    return words


async def _watch(source: Qemu, answers: list[dict[str, Any]]) -> None:
    """Ask QEMU again and again by its other monitor, until it has ended."""
    try:
        async with await QmpConnection.connect(source.observer_socket, deadline_seconds=10) as monitor:
            while True:
                answer = await monitor.execute("query-migrate", deadline_seconds=30)
                parameters = await monitor.execute("query-migrate-parameters", deadline_seconds=30)
                answers.append({**answer, "parameters": parameters})
                await trio.sleep(0.02)
    except HypervisorError:
        pass
