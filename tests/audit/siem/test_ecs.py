"""Documents against the published field set of ECS 8.17: names, types, allowed values, and which types go together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit.siem.document import ECS_VERSION, LogEntry, body_of
from audit.siem.mapping import MAPPING
from tests.audit.siem.entries import log_entry, permit_entry

ECS: dict[str, Any] = json.loads(Path(__file__).with_name("ecs_8.17.json").read_text())["fields"]
# Types that Elasticsearch stores and searches as the published one.
COMPATIBLE = {("date", "date_nanos"), ("match_only_text", "text"), ("wildcard", "keyword")}
KINDS = [
    *("migration.decision", "migration.receipt", "migration.cancel_requested", "token.issued", "token.refused"),
    *("audit.read", "siem.asked", "siem.degraded", "placement.unpermitted", "breakglass.used", "heartbeat"),
    *("config.reloaded", "breakglass.sealed_sign_in", "witness.disagrees"),
]
ENTRIES = [
    permit_entry(3),
    *(log_entry(1, kind=kind, outcome=outcome) for kind in KINDS for outcome in ("allowed", "denied", "failed", None)),
]


def leaves(mapping: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, member in mapping["properties"].items():
        here = f"{path}.{name}".lstrip(".")
        if "properties" in member:
            yield from leaves(member, here)
        else:
            yield here, member["type"]


def test_every_field_outside_our_own_is_published_with_a_type_that_fits() -> None:
    assert ECS_VERSION == "8.17.0"
    for name, kind in leaves(MAPPING):
        if name.startswith("sealane."):
            continue
        published = ECS[name]["type"]
        assert kind == published or (published, kind) in COMPATIBLE, name


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda each: each.id)
def test_values_are_allowed_and_go_together(entry: LogEntry) -> None:
    event = body_of(entry)["event"]
    for name in ("kind", "category", "type", "outcome"):
        if name in event:
            values = event[name] if isinstance(event[name], list) else [event[name]]
            assert set(values) <= set(ECS[f"event.{name}"]["values"]), (name, values)
            assert isinstance(event[name], list) == ECS[f"event.{name}"].get("array", False), name
    expected = ECS["event.category"]["expected_types"]
    for category in event["category"]:
        assert set(event["type"]) <= set(expected[category]), (category, event["type"])
