"""Does the SIEM hold exactly the entries [start, end) of the log: none missing, none altered, none added?

Nothing that the SIEM says of itself is believed: each document must be, to the last field, what the log's own bytes
make it. An original that was altered fails by leaf hash and signature; altered fields beside an unharmed original would
show an analyst what somebody wrote there. A filter that changed since is no finding, redaction that changed is: what
was written under the old one differs from what should be there now, and it alone cannot say whether that was us.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

import msgspec
import trio

from audit.siem.document import Document, LogEntry, Render, document_id, document_of
from audit.siem.sink import Refusal

Deliver = Callable[[Sequence[Document]], Awaitable[Sequence[Refusal]]]
MAX_LISTED: Final = 100
MAX_KEPT: Final = 100_000
PAGE_ENTRIES: Final = 1000
_MAX_FIELDS: Final = 20


@dataclass(frozen=True, slots=True)
class Held:
    """A document as a receiver holds it. `place`: where, in its own words."""

    id: str
    place: str
    body: Any


@runtime_checkable
class Readable(Protocol):
    """A sink whose receiver can be asked what it holds. All raise SinkAway."""

    async def refresh(self) -> None:
        """Make visible what was delivered."""

    async def read_back(self, start: int, end: int, origin: str) -> Sequence[Held]:
        """All that claims to be of the entries [start, end) of the log `origin`."""

    async def strangers(self, size: int, origin: str) -> Sequence[Held]:
        """What no entry of that log, of `size` entries, can account for; nothing of other logs."""


@dataclass(frozen=True, slots=True)
class Altered:
    """`fields`: the names of those that differ from what the log makes of this entry."""

    index: int
    place: str
    fields: tuple[str, ...]


@dataclass(slots=True)
class Findings:
    """`missing`: indices of entries. `added`: places of documents that no entry of the log accounts for."""

    start: int
    end: int
    compared: int = 0
    repaired: int = 0
    missing: list[int] = field(default_factory=list)
    altered: list[Altered] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return not (self.missing or self.altered or self.added)

    def document(self, listed: int = MAX_LISTED) -> dict[str, Any]:
        """For the record and the answer: counts, and the first of each."""
        return {
            "from": self.start,
            "to": self.end,
            "compared": self.compared,
            "repaired": self.repaired,
            "agrees": self.agrees,
            "missing_count": len(self.missing),
            "altered_count": len(self.altered),
            "added_count": len(self.added),
            "missing": self.missing[:listed],
            "altered": [
                {"index": each.index, "place": each.place, "fields": list(each.fields)}
                for each in self.altered[:listed]
            ],
            "added": self.added[:listed],
        }


def compare(
    entries: Sequence[LogEntry], held: Sequence[Held], findings: Findings, render: Render = document_of
) -> None:
    """Add to `findings` where `held` lacks, exceeds or contradicts `entries` as `render` shows them."""
    by_id: defaultdict[str, list[Held]] = defaultdict(list)
    for each in held:
        by_id[each.id].append(each)
    for entry in entries:
        copies = by_id.pop(entry.id, [])
        expected = render(entry)
        findings.compared += 1
        if expected is None:
            if not copies:
                continue
            expected = document_of(entry)  # of a time when it was wanted
        if not copies:
            findings.missing.append(entry.index)
        for copy in copies:
            if differing := differing_fields(copy.body, expected.body):
                findings.altered.append(Altered(entry.index, copy.place, tuple(differing[:_MAX_FIELDS])))
        # The same id in a second index: a copy, which a count would take for a second event.
        findings.added += [copy.place for copy in copies[1:]]
    findings.added += [each.place for copies in by_id.values() for each in copies]


async def reconcile(
    sink: Readable,
    entries: Sequence[LogEntry],
    findings: Findings,
    *,
    deliver: Deliver | None = None,
    render: Render = document_of,
) -> None:
    """Compare one page of consecutive entries; with `deliver`, send what is missing, and look again.

    What was altered or added is not repaired: that is evidence, and needs rights that a shipper should not have.
    Raises SinkAway.
    """
    found = await _look(sink, entries, render)
    if deliver is not None and found.missing:
        wanted = set(found.missing)
        documents = [render(entry) for entry in entries if entry.index in wanted]
        await deliver([document for document in documents if document is not None])
        await sink.refresh()
        found = await _look(sink, entries, render)
        findings.repaired += len(wanted - set(found.missing))
    findings.compared += found.compared
    findings.missing += found.missing[: MAX_KEPT - len(findings.missing)]
    findings.altered += found.altered[: MAX_KEPT - len(findings.altered)]
    findings.added += found.added[: MAX_KEPT - len(findings.added)]


async def find_strangers(sink: Readable, log_size: Callable[[], int], origin: str, findings: Findings) -> None:
    """Add documents that claim no place in the log, or one beyond its end. Raises SinkAway.

    The log goes on growing: what was delivered while the receiver was asked is within its end afterwards.
    """
    held = await sink.strangers(log_size(), origin)
    size = log_size()
    findings.added += [each.place for each in held if not _is_within(each, size, origin)]


def _is_within(held: Held, size: int, origin: str) -> bool:
    match held.body:
        case {"event": {"sequence": int(sequence)}, "sealane": {"origin": str(claimed)}}:
            return claimed == origin and held.id == document_id(origin, sequence) and 0 <= sequence < size
    return False


async def _look(sink: Readable, entries: Sequence[LogEntry], render: Render) -> Findings:
    start, end = entries[0].index, entries[-1].index + 1
    held = await sink.read_back(start, end, entries[0].origin)
    found = Findings(start, end)
    await trio.to_thread.run_sync(compare, entries, held, found, render)
    return found


def differing_fields(held: Any, expected: Any, path: str = "") -> list[str]:
    """The paths of the fields in which two documents differ."""
    if _is_same(held, expected):
        return []
    if not isinstance(held, dict) or not isinstance(expected, dict):
        return [path or "(everything)"]
    found: list[str] = []
    for name in sorted(held.keys() | expected.keys(), key=str):
        here = f"{path}.{name}".lstrip(".")
        if name not in held or name not in expected:
            found.append(here)
        else:
            found += differing_fields(held[name], expected[name], here)
    return found


def _is_same(held: Any, expected: Any) -> bool:
    """Encoded: to Python 1, 1.0 and True are equal. What a receiver holds may be what nobody can encode."""
    try:
        encoded = msgspec.json.encode(held, order="sorted")
    except (ValueError, TypeError, OverflowError, RecursionError):
        return False
    return encoded == msgspec.json.encode(expected, order="sorted")
