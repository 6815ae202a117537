"""A proof bundle: records of a log with what proves them, in one file that needs neither us nor the log any more.

JSON lines, ASCII, each canonical. First the header, then a line for each entry, by index:

    header   {"format":"sealane-proof/1", "checkpoint":…, "origin":…, "query":null|{"asked_at","text","timezone"},
              "range":null|{"from","to","left":[base64…],"right":[base64…]}, "entries":N,
              "reference":{"certificates":PEM, "keys":[vkey…], "policy_bundle":null|{path: text}}}
    single   {"index":i, "entry":TEXT, "path":[base64…]}              without a range: an inclusion proof each
    in range {"index":i, "entry":TEXT}  or  {"index":i, "leaf":base64}     with one: every index of it, none left out

With a range the root follows from the leaves and the subtrees beside them: take out, alter or swap one line, and it
does not. A `leaf` hides an entry: that it does not match the query is then the word of whoever exported it. `reference`
is for people; nobody who verifies trusts it. Reading is `verify_bundle.py`, which shares no code with this.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from audit.errors import QueryRefused
from audit.proof import leaf_hash
from audit.tile_tree import TileTree

FORMAT: Final = "sealane-proof/1"
MAX_ENTRIES: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class AskedQuery:
    """The query that a range was searched by, and when: `30d` is counted from then. RFC 3339 UTC."""

    text: str
    asked_at: str
    timezone: str | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """What helps people to make sense of it: keys, certificates (PEM), the files of the policy bundle."""

    keys: Sequence[str] = ()
    certificates: str = ""
    policy_bundle: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Sealed:
    """The tree to prove by: its signed checkpoint, and what else goes into the header."""

    tree: TileTree
    origin: str
    checkpoint: str
    reference: Reference = field(default_factory=Reference)


def export_entries(sealed: Sealed, indices: Sequence[int]) -> Iterator[str]:
    """The lines of a bundle of single entries. Raises QueryRefused, IndexError, LogError, OSError."""
    wanted = sorted(set(indices))
    _require_bounded(len(wanted))
    yield _line(_header(sealed, len(wanted), None, None))
    for index in wanted:
        path = [_base64(node) for node in sealed.tree.inclusion_path(index)]
        yield _line({"index": index, "entry": sealed.tree.entry(index).decode(), "path": path})


def export_range(
    sealed: Sealed,
    start: int,
    end: int,
    *,
    query: AskedQuery | None = None,
    shown: Callable[[int, bytes], bool] | None = None,
) -> Iterator[str]:
    """The lines of a bundle of every entry in [start, end); those not `shown` as their hash alone.

    Raises QueryRefused, LogError, OSError.
    """
    if not 0 <= start < end <= sealed.tree.size:
        raise QueryRefused(f"the log has entries 0 to {sealed.tree.size - 1}: {start} to {end - 1} is no part of it")
    _require_bounded(end - start)
    left, right = sealed.tree.beside(start, end)
    beside = {"left": [_base64(node) for node in left], "right": [_base64(node) for node in right]}
    yield _line(_header(sealed, end - start, {"from": start, "to": end, **beside}, query))
    for index, entry in enumerate(sealed.tree.entries(start, end), start):
        if shown is None or shown(index, entry):
            yield _line({"index": index, "entry": entry.decode()})
        else:
            yield _line({"index": index, "leaf": _base64(leaf_hash(entry))})


def _header(
    sealed: Sealed, entries: int, of_range: Mapping[str, Any] | None, query: AskedQuery | None
) -> dict[str, Any]:
    asked = None
    if query is not None:
        asked = {"text": query.text, "asked_at": query.asked_at, "timezone": query.timezone}
    reference = sealed.reference
    return {
        "format": FORMAT,
        "origin": sealed.origin,
        "checkpoint": sealed.checkpoint,
        "entries": entries,
        "range": of_range,
        "query": asked,
        "reference": {
            "keys": list(reference.keys),
            "certificates": reference.certificates,
            "policy_bundle": None if reference.policy_bundle is None else dict(reference.policy_bundle),
        },
    }


def _require_bounded(entries: int) -> None:
    if not 1 <= entries <= MAX_ENTRIES:
        raise QueryRefused(f"a proof holds from 1 to {MAX_ENTRIES} entries, not {entries}: give a smaller range")


def _line(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True) + "\n"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
