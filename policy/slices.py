"""The entities of a request as Cedar takes them: without memberships that nothing asks for, people parsed once.

Most of a slice is its person's groups, and the same person asks again. What is kept is under the whole text of the
person: another fact is another text.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cedarpy
import msgspec

from policy.cedar_policy import GROUP
from policy.request import Json

MAX_KEPT: Final = 2_000_000  # characters of people: some 200 with a hundred groups each


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who asks. `groups`: those that policies name, None where it is not plain that those are all.

    `parsed` is None where a fact of the person might be a group.
    """

    parsed: cedarpy.Entities | None
    groups: frozenset[str] | None


class Slices:
    """Of one bundle: `named_groups` are all that its policies name. Threads may share it."""

    def __init__(self, named_groups: frozenset[str], schema: cedarpy.Schema) -> None:
        self._named_groups = {group: group for group in named_groups}
        self._schema = schema
        self._people: dict[bytes, Person] = {}  # in the order of their last use
        self._kept = 0
        self._lock = threading.Lock()

    def parse(
        self, context: str, principal: Json, entities: Sequence[Json]
    ) -> tuple[cedarpy.Entities, frozenset[str] | None]:
        """The slice, and the named groups of its person, None where another entity may have a say in that.

        Raises ValueError for what does not fit the schema, TypeError and RecursionError for what is no JSON.

        A membership is left out where no policy names the group: Cedar only asks whether somebody is in a group that it
        is given, and gives none but those that policies name. A fact that were a group could be another, so where one
        might be (in `context`, or in an attribute), all memberships stay.
        """
        person = self._person([each for each in entities if each["uid"] == principal])
        others = [self._without_unnamed(each) for each in entities if each["uid"] != principal]
        text = _text(others)
        if person.parsed is None or GROUP in context or text.count(GROUP) != _memberships(others):
            return cedarpy.Entities.from_json_str(_text(entities), self._schema), None
        return person.parsed.with_added_json_str(text, self._schema), person.groups

    def _person(self, entities: Sequence[Json]) -> Person:
        key = msgspec.json.encode(entities)
        with self._lock:
            if (known := self._people.pop(key, None)) is None:
                known = self._read(entities)
                self._kept += len(key)
            self._people[key] = known
            while self._kept > MAX_KEPT and len(self._people) > 1:
                oldest = next(iter(self._people))
                del self._people[oldest]
                self._kept -= len(oldest)
        return known

    def _read(self, entities: Sequence[Json]) -> Person:
        kept = [self._without_unnamed(each) for each in entities]
        text = _text(kept)
        if len(kept) != 1 or text.count(GROUP) != _memberships(kept):
            return Person(None, None)
        parents = kept[0]["parents"]
        all_groups = all(each["type"] == GROUP for each in parents)
        groups = frozenset(self._named_groups[each["id"]] for each in parents) if all_groups else None
        return Person(cedarpy.Entities.from_json_str(text, self._schema), groups)

    def _without_unnamed(self, entity: Json) -> Json:
        parents = [p for p in entity["parents"] if p["type"] != GROUP or p["id"] in self._named_groups]
        return {**entity, "parents": parents}


def _memberships(entities: Sequence[Json]) -> int:
    return sum(parent["type"] == GROUP for each in entities for parent in each["parents"])


def _text(entities: Sequence[Json]) -> str:
    return msgspec.json.encode(entities).decode()
