"""Does a receiver's file hold exactly the lines that the log's entries make: none missing, none altered, none added?

For receivers that cannot be asked, but whose files can be brought here: rsyslog's output, a file of JSON lines, an
export. Nothing in a line is believed but which entry it claims to be; that entry's line is made again, from the log,
and compared byte by byte. Memory is a byte for each entry and a few pages of lines, however large the file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from audit.siem.document import Document, LogEntry, Render, document_id
from audit.siem.formats.parse import MAX_LINE_BYTES, LineError, parse_line
from audit.siem.reconcile import MAX_KEPT, Altered, Findings

PAGE_ENTRIES: Final = 256
_PAGES: Final = 64
_OURS: Final = (b"Sealane", b"sealane")

Stored = tuple[str, bytes]
"""Where a line is, in words, and the line without its end."""


@dataclass(slots=True)
class LineFindings:
    """`repeated`: lines that came more than once, unaltered. `others`: lines that are not of this log."""

    findings: Findings
    repeated: int = 0
    others: int = 0

    def document(self) -> dict[str, Any]:
        """For people and programs."""
        return {**self.findings.document(), "repeated": self.repeated, "other_lines": self.others}


@dataclass(slots=True)
class LineSource:
    """The log, as the sink sends it. `read` gives the entries [start, end); `line` what it makes of a document."""

    origin: str
    size: int
    read: Callable[[int, int], Sequence[bytes]]
    render: Render
    line: Callable[[Document], bytes]
    _pages: OrderedDict[int, list[bytes | None]] = field(default_factory=OrderedDict)

    def expected(self, index: int) -> bytes | None:
        """The line of the entry; None for one that the sink does not get."""
        number, offset = divmod(index, PAGE_ENTRIES)
        if number not in self._pages:
            self._pages[number] = self._page(number)
            while len(self._pages) > _PAGES:
                self._pages.popitem(last=False)
        self._pages.move_to_end(number)
        return self._pages[number][offset]

    def _page(self, number: int) -> list[bytes | None]:
        start = number * PAGE_ENTRIES
        entries = self.read(start, min(self.size, start + PAGE_ENTRIES))
        documents = [self.render(LogEntry(self.origin, index, entry)) for index, entry in enumerate(entries, start)]
        return [None if each is None else self.line(each) for each in documents]


def reconcile_lines(stored: Iterable[Stored], source: LineSource, start: int, end: int) -> LineFindings:
    """Compare the entries [start, end), which the log must have, with all lines that there are."""
    found = LineFindings(Findings(start, end))
    findings = found.findings
    seen = bytearray(end - start)
    for place, line in stored:
        index = _claimed(line, source.origin)
        if index is None:
            found.others += 1
        elif index < 0 or index >= source.size:
            _keep(findings.added, place)
        elif start <= index < end:
            held = parse_line(line)
            expected = source.expected(index)
            if expected is None:
                _keep(findings.added, place)
            elif held.line != expected:
                seen[index - start] |= 2
                _keep(findings.altered, Altered(index, place, ("line",)))
            else:
                found.repeated += seen[index - start] & 1
                seen[index - start] |= 1
    for index in range(start, end):
        findings.compared += 1
        if not seen[index - start] and source.expected(index) is not None:
            _keep(findings.missing, index)
    return found


def _claimed(line: bytes, origin: str) -> int | None:
    """The entry that a line claims to be: None for a line of another log or program, -1 for a forgery of ours."""
    try:
        held = parse_line(line)
    except LineError:
        return -1 if any(name in line for name in _OURS) and len(line) <= MAX_LINE_BYTES else None
    return held.sequence if held.id == document_id(origin, held.sequence) else None


def _keep(kept: list[Any], one: Any) -> None:
    if len(kept) < MAX_KEPT:
        kept.append(one)
