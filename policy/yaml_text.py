"""A strict subset of YAML, in which a text is what it seems: no anchors, aliases, tags or keys given twice.

YAML 1.1 reads `no` as false, `017` as 15 and `1:30` as 90, and 1.2 does not. Such plain words are refused: quotes say
what was meant. What is left is text, true, false, whole numbers, lists and mappings, the same in every version.
Errors: NotStrict, with line and column from 1; the author of the file must act.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

MAX_CHARACTERS: Final = 1024 * 1024
MAX_DEPTH: Final = 20
_NUMBER: Final = re.compile(r"0|-?[1-9][0-9]{0,17}")
# What some YAML reads as something else than text (yaml.org/type): refused where it stands without quotes.
_AMBIGUOUS: Final = re.compile(
    r"|~|null|y|n|yes|no|on|off|true|false"  # the last two: in other letters than ours
    r"|[-+]?0[0-9_]+|[-+]?0[box][0-9a-f_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|\+[0-9_]+|-?[0-9][0-9_]*"
    r"|[-+]?[0-9][0-9_]*\.?[0-9_]*(e[-+]?[0-9]+)?|[-+]?\.[0-9_]+(e[-+]?[0-9]+)?|[-+]?\.(inf|nan)|=|<<",
    re.IGNORECASE,
)
Path = tuple[str | int, ...]
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotStrict(ValueError):
    """What is refused, and where."""

    def __init__(self, line: int, column: int, detail: str) -> None:
        super().__init__(f"line {line}, column {column}: {detail}")
        self.line, self.column, self.detail = line, column, detail


@dataclass(slots=True)
class Document:
    """The value, and the place of each part of it by its path: keys and places in lists, from the root."""

    value: Any = None
    places: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def place(self, path: Path) -> tuple[int, int]:
        """The place of a part, or of the closest thing around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, (1, 1))


def decode(text: str) -> Document:
    """Read one document; an empty one is an empty mapping. Raises NotStrict."""
    if len(text) > MAX_CHARACTERS:
        raise NotStrict(1, 1, f"is longer than {MAX_CHARACTERS} characters: split the file")
    try:
        return _Builder(yaml.parse(text, Loader=_LOADER)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise NotStrict(line, column, f"is not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise NotStrict(1, 1, f"is not YAML: {' '.join(str(error).split())[:200]}") from error


class _Builder:
    """Makes values of the parser's events; the parser itself keeps no depth on Python's stack."""

    def __init__(self, events: Any) -> None:
        self._events = events
        self._made = Document()

    def document(self) -> Document:
        self._next()  # the stream begins
        if isinstance(self._next(), yaml.StreamEndEvent):
            return Document({})
        self._made.value = self._value(self._next(), (), 0)
        self._next()  # the document ends
        if not isinstance(event := self._next(), yaml.StreamEndEvent):
            raise _refused(event, "holds a second document: use a file of its own")
        return self._made

    def _next(self) -> Any:
        return next(self._events)

    def _value(self, event: Any, path: Path, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused(event, "uses an anchor or alias (& or *): write the value out, or put it into quotes")
        if getattr(event, "tag", None):
            raise _refused(event, f"uses a tag ({event.tag}): write the value without, or put it into quotes")
        if depth > MAX_DEPTH:
            raise _refused(event, f"is nested deeper than {MAX_DEPTH}")
        self._made.places[path] = (event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(inner := self._next(), yaml.SequenceEndEvent):
                items.append(self._value(inner, (*path, len(items)), depth + 1))
            return items
        mapping: dict[str, Any] = {}
        while not isinstance(inner := self._next(), yaml.MappingEndEvent):
            key = self._value(inner, (*path, ""), depth + 1)
            if not isinstance(key, str):
                raise _refused(inner, "has a key that is no text: put it into quotes")
            if key in mapping:
                raise _refused(inner, f"has the key {key!a} twice")
            mapping[key] = self._value(self._next(), (*path, key), depth + 1)
        return mapping


def _scalar(event: Any) -> str | bool | int:
    text: str = event.value
    if not event.implicit[0]:  # quoted, or a block
        return text
    if text in {"true", "false"}:
        return text == "true"
    if _NUMBER.fullmatch(text):
        return int(text)
    if _AMBIGUOUS.fullmatch(text):
        shown = text or "nothing"
        raise _refused(event, f"{shown!a} is not the same in every YAML: write true, false, a plain number, or quotes")
    return text


def _refused(event: Any, detail: str) -> NotStrict:
    return NotStrict(event.start_mark.line + 1, event.start_mark.column + 1, detail)
