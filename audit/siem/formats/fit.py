"""A document within a receiver's limit. A receiver that gets more cuts it, or takes the rest for a second message.

What is left out, in this order, until it fits: the original; all but the beginning of long texts and lists; all but
what says which record it is. `sealane.omitted` names what is missing. Then the leaf hash still ties it to the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

LEAST_LIMIT_BYTES: Final = 2048
"""What every format needs for a document of which all is left out that can be."""

_SHORT_TEXT: Final = 128
_SHORT_LIST: Final = 4


def fit(body: dict[str, Any], render: Callable[[dict[str, Any]], bytes], limit_bytes: int) -> bytes:
    """The fullest rendering of `body` of at most `limit_bytes` (LEAST_LIMIT_BYTES or more)."""
    line = render(body)
    if len(line) <= limit_bytes:
        return line
    for smaller in _smaller(body):
        line = render(smaller)
        if len(line) <= limit_bytes:
            return line
    raise AssertionError(f"{len(line)} bytes for a bare document, {limit_bytes} allowed")


def _smaller(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    event = {name: value for name, value in body["event"].items() if name != "original"}
    without = ["event.original"] if "original" in body["event"] else []
    if without:
        yield {**body, "event": event, "sealane": {**body["sealane"], "omitted": without}}
    short = _shortened({**body, "event": event})
    short["sealane"]["omitted"] = [*without, "long values"]
    yield short
    own = body["sealane"]
    names = ("id", "sequence", "hash", "kind", "action", "outcome", "category", "type", "module", "dataset")
    yield {
        "@timestamp": body["@timestamp"],
        "message": event["action"],
        "event": {name: event[name] for name in names if name in event},
        "sealane": {
            "kind": own["kind"],
            "origin": own["origin"].encode("ascii", "replace").decode()[:_SHORT_TEXT],
            "omitted": [*without, "all but what identifies it"],
        },
    }


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shortened(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_shortened(each) for each in value[:_SHORT_LIST]]
    return value[: _SHORT_TEXT - 1] + "…" if isinstance(value, str) and len(value) > _SHORT_TEXT else value
