"""The C2SP tlog-tiles layout: paths of tiles and bundles, and the framing of entries in a bundle. Pure.

    tile/<L>/<N>        256 hashes of 32 bytes: nodes [256·N, 256·N+256) at tree level 8·L
    tile/entries/<N>    256 entries, each  u16 length (big-endian) ‖ entry

N is written in groups of three digits, all but the last prefixed `x`: 1234067 is x001/x234/067.
Source: c2sp.org/tlog-tiles.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from audit.errors import RecordTooLarge
from audit.proof import HASH_BYTES

TILE_WIDTH = 256
TILE_BYTES = TILE_WIDTH * HASH_BYTES
MAX_FRAMED_BYTES = 2**16 - 1

MAX_LEVEL = 7  # a log has fewer than 2^63 entries, of which level 7 has 2^56 below each node

_RESOURCE = re.compile(
    r"(?P<kind>entries|[0-9]|[1-9][0-9])/(?P<number>(?:x[0-9]{3}/){0,8}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)
_NUMBER = re.compile(r"(?:x[0-9]{3}/)*[0-9]{3}")


def tile_path(level: int, number: int) -> PurePosixPath:
    """Where the full tile `number` of tile level `level` is, relative to the log."""
    return PurePosixPath("tile", str(level)) / number_path(number)


def bundle_path(number: int) -> PurePosixPath:
    """Where the full entry bundle `number` is, relative to the log."""
    return PurePosixPath("tile", "entries") / number_path(number)


def completed_by(number: int) -> list[tuple[int, int]]:
    """(level, number) of each tile that becomes full with entry bundle `number`, from level 0 up."""
    found = [(0, number)]
    while (found[-1][1] + 1) % TILE_WIDTH == 0:
        level, last = found[-1]
        found.append((level + 1, last // TILE_WIDTH))
    return found


def number_path(number: int) -> PurePosixPath:
    """`number` as C2SP spells it in paths."""
    return PurePosixPath(number_text(number))


def number_text(number: int) -> str:
    """The same as text: starting looks at tens of thousands of names."""
    text = f"{number % 1000:03}"
    while number := number // 1000:
        text = f"x{number % 1000:03}/{text}"
    return text


def parse_number_text(text: str) -> int | None:
    """The number that `text` spells, or None if `number_text` would not have written it."""
    if not _NUMBER.fullmatch(text):
        return None
    number = int(text.replace("x", "").replace("/", ""))
    return number if number_text(number) == text else None


@dataclass(frozen=True, slots=True)
class Resource:
    """A tile (`level`) or entry bundle (`level` None) as clients ask for it; `width` entries, 256 if it is full."""

    level: int | None
    number: int
    width: int

    @property
    def lowest_entry(self) -> int:
        return self.number << 8 * ((self.level or 0) + 1)


def parse_resource(text: str) -> Resource | None:
    """What stands after `tile/` in a C2SP URL: `<L>/<N>[.p/<W>]` or `entries/<N>[.p/<W>]`; None for anything else."""
    match = _RESOURCE.fullmatch(text)
    if match is None:
        return None
    number = parse_number_text(match["number"])
    width = int(match["width"] or TILE_WIDTH)
    if number is None or not 1 <= width <= TILE_WIDTH or (match["width"] and width == TILE_WIDTH):
        return None
    level = None if match["kind"] == "entries" else int(match["kind"])
    return None if level is not None and level > MAX_LEVEL else Resource(level, number, width)


def frame(entry: bytes) -> bytes:
    """`entry`, which fits, as it stands in a bundle."""
    return len(entry).to_bytes(2) + entry


def require_fits(entry: bytes) -> None:
    """Raises RecordTooLarge for an entry whose length does not fit its prefix."""
    if len(entry) > MAX_FRAMED_BYTES:
        raise RecordTooLarge(len(entry), MAX_FRAMED_BYTES)


def unframe(bundle: bytes) -> tuple[list[bytes], int]:
    """The whole entries at the start of `bundle`, and how many bytes they take (a torn entry follows)."""
    entries = []
    position = 0
    while position + 2 <= len(bundle):
        end = position + 2 + int.from_bytes(bundle[position : position + 2])
        if end > len(bundle):
            break
        entries.append(bundle[position + 2 : end])
        position = end
    return entries, position


def split_tile(tile: bytes) -> tuple[bytes, ...]:
    """The hashes in a full tile of TILE_BYTES."""
    return tuple(tile[start : start + HASH_BYTES] for start in range(0, TILE_BYTES, HASH_BYTES))


def framed_bytes(entries: Iterable[bytes]) -> int:
    """How many bytes `entries` take in a bundle."""
    return sum(2 + len(entry) for entry in entries)
