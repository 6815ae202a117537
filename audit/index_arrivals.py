"""Where each VM was last certified to run: a projection of its own, so that a gateway's start need not read the log.

A destination's receipt that says that the guest runs there is an arrival; so is `placement.adopted`, which says where
relays showed it. A receipt of a named port is none (`moves_guest`): another program's stream moves no guest; nor is one
that came late or again (`places_vm`). A record whose `placement_forgotten` names a VM ends what was known of it: the
inventory has said something newer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from audit.errors import RecordInvalid
from audit.record import parse_time

TABLE = (
    "CREATE TABLE IF NOT EXISTS arrivals"
    " (vm TEXT PRIMARY KEY, host TEXT NOT NULL, time INTEGER NOT NULL, source TEXT NOT NULL) WITHOUT ROWID;\n"
)
ARRIVED = frozenset({"running", "completed"})


@dataclass(frozen=True, slots=True)
class Arrival:
    """On `host` (a SPIFFE id) since `time_us` (unix microseconds), by a "receipt" or a "report"."""

    host: str
    time_us: int
    source: str


def apply_to(known: dict[str, Arrival | None], document: Mapping[str, Any]) -> None:
    """Note what one record says, in `known`: VM's UUID to its arrival, or None if it is forgotten."""
    details = document.get("details")
    if not isinstance(details, Mapping):
        return
    if (forgotten := details.get("placement_forgotten")) is not None and isinstance(forgotten, list):
        known.update({vm: None for vm in forgotten if isinstance(vm, str)})
    if is_certificate_of_arrival(document):
        known[document["vm"]["uuid"]] = Arrival(document["destination"], _time_us(document), "receipt")
    if document.get("kind") == "placement.adopted" and isinstance(host := details.get("host"), str):
        vms = details.get("vms")
        for vm in vms if isinstance(vms, list) else ():
            if isinstance(vm, str):
                known[vm] = Arrival(host, _time_us(document), "report")


def _time_us(document: Mapping[str, Any]) -> int:
    try:
        return int(parse_time(document["time"]).timestamp() * 10**6)
    except (KeyError, TypeError, ValueError, RecordInvalid):
        return 0


def is_certificate_of_arrival(document: Mapping[str, Any]) -> bool:
    """A destination's receipt that says that the guest runs there."""
    details, vm, outcome = document.get("details"), document.get("vm"), document.get("outcome")
    return (
        document.get("kind") == "migration.receipt"
        and isinstance(outcome, str)
        and outcome in ARRIVED
        and isinstance(details, Mapping)
        and details.get("role") == "destination"
        and details.get("moves_guest") is not False
        and details.get("places_vm") is not False
        and isinstance(vm, Mapping)
        and isinstance(vm.get("uuid"), str)
        and isinstance(document.get("destination"), str)
    )
