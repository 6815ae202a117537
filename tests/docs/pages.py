"""The pages of this repository: their blocks, their code spans, their headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "adr").glob("*.md")),
)
_BLOCK = re.compile(r"^([ ]*)```([^\n]*)\n(.*?)^[ ]*```[ ]*$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_HEADING = re.compile(r"^#{1,6} (.+?)[ ]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Piece:
    """A block, or a code span (`kind` None), and where it begins."""

    page: Path
    line: int
    kind: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> Iterator[Piece]:
    """What stands between fences, less its indentation."""
    text = read(page)
    for found in _BLOCK.finditer(text):
        indent, kind, body = found.groups()
        lines = [line.removeprefix(indent) for line in body.splitlines()]
        yield Piece(page, text.count("\n", 0, found.start()) + 2, kind.partition(" ")[0], "\n".join(lines))


def prose(page: Path) -> str:
    """The page with its blocks blanked, line for line."""
    return _BLOCK.sub(lambda found: "\n" * found[0].count("\n"), read(page))


def spans(page: Path) -> Iterator[Piece]:
    """Code within sentences; a line break in it is a blank."""
    text = prose(page)
    for found in _SPAN.finditer(text):
        yield Piece(page, text.count("\n", 0, found.start()) + 1, None, " ".join(found[1].split()))


def anchors(page: Path) -> frozenset[str]:
    """What a link may name after `#`, as GitHub makes it: letters, digits, - and _ of the heading, in lower case."""
    words = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in _HEADING.findall(prose(page)))
    return frozenset(re.sub(r"[^\w\- ]", "", word.lower()).replace(" ", "-") for word in words)
