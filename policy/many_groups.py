"""People in very many groups: how a record of 60 KiB holds them all, so that the decision can be replayed.

Ids of groups share long beginnings: the SID of the domain, the name of the issuer. In a record they are written once:

    {"S-1-5-21-1004336348-1177238915-682003330-": [513, 1105, …], "S-1-5-32-": [545], "https://idp.test#": ["staff"]}

An entity of a person with many groups then has `groups` in this form in place of `parents`; `expand_entities` gives
back what was decided on. A thousand groups of one domain take about 6 KiB.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

MANY: Final = 150  # up to so many are written out, for people and search engines to read
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,9}")
_GROUP: Final = "Sealane::Group"

Json = dict[str, Any]


def compact_ids(ids: Iterable[str]) -> dict[str, list[int | str]]:
    """Group ids by their beginnings, sorted. The relative ids of SIDs become numbers."""
    compact: dict[str, list[int | str]] = {}
    for each in sorted(ids):
        beginning, rest = _split(each)
        number = beginning.startswith("S-1-") and _NUMBER.fullmatch(rest) is not None
        compact.setdefault(beginning, []).append(int(rest) if number else rest)
    return compact


def expand_ids(compact: Mapping[str, Any]) -> list[str]:
    """The ids again, sorted. Raises ValueError for what `compact_ids` does not write."""
    ids = []
    for beginning, rests in compact.items():
        if not isinstance(beginning, str) or not isinstance(rests, list):
            raise ValueError("groups in a form that is not ours")  # noqa: TRY004 - from a record, not from a caller
        for rest in rests:
            if type(rest) is not int and not isinstance(rest, str):
                raise ValueError("groups in a form that is not ours")
            ids.append(f"{beginning}{rest}")
    return sorted(ids)


def digest_of_ids(ids: Iterable[str]) -> str:
    """SHA-256 in hex over the sorted ids, each ended by a line feed, which no id holds."""
    return hashlib.sha256("".join(f"{each}\n" for each in sorted(ids)).encode()).hexdigest()


def compact_entities(entities: list[Json]) -> list[Json]:
    """For a record: entities with more than MANY groups have them in the compact form."""
    return [_compact(entity) if len(entity["parents"]) > MANY else entity for entity in entities]


def expand_entities(entities: list[Json]) -> list[Json]:
    """What was decided on, from a record. Raises ValueError; what has no compact groups is given back as it is."""
    return [_expand(entity) if isinstance(entity, dict) and "groups" in entity else entity for entity in entities]


def _compact(entity: Json) -> Json:
    if any(parent["type"] != _GROUP for parent in entity["parents"]):
        return entity
    ids = [parent["id"] for parent in entity["parents"]]
    return {"uid": entity["uid"], "attrs": entity["attrs"], "groups": compact_ids(ids)}


def _expand(entity: Json) -> Json:
    if set(entity) != {"uid", "attrs", "groups"} or not isinstance(entity["groups"], dict):
        raise ValueError("an entity in a form that is not ours")
    parents = [{"type": _GROUP, "id": each} for each in expand_ids(entity["groups"])]
    return {"uid": entity["uid"], "attrs": entity["attrs"], "parents": parents}


def _split(group: str) -> tuple[str, str]:
    """At the last hyphen of a SID, or behind the issuer's `#`."""
    separator = "-" if group.startswith("S-1-") and "#" not in group else "#"
    end = group.rfind("-") if separator == "-" else group.find("#")
    return group[: end + 1], group[end + 1 :]
