"""Where each VM was last certified to run: a projection of its own, so that a gateway's start need not read the log.

A destination's receipt that says that the guest runs there is an arrival. A record whose `placement_forgotten` names a
VM ends what was known of it: the inventory has said something newer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TABLE = "CREATE TABLE IF NOT EXISTS arrivals (vm TEXT PRIMARY KEY, host TEXT NOT NULL) WITHOUT ROWID;\n"
ARRIVED = frozenset({"running", "completed"})


def apply_to(known: dict[str, str | None], document: Mapping[str, Any]) -> None:
    """Note what one record says, in `known`: VM's UUID to the host's SPIFFE id, or None if it is forgotten."""
    details = document.get("details")
    if not isinstance(details, Mapping):
        return
    if (forgotten := details.get("placement_forgotten")) is not None and isinstance(forgotten, list):
        known.update({vm: None for vm in forgotten if isinstance(vm, str)})
    if is_certificate_of_arrival(document):
        known[document["vm"]["uuid"]] = document["destination"]


def is_certificate_of_arrival(document: Mapping[str, Any]) -> bool:
    """A destination's receipt that says that the guest runs there."""
    details, vm = document.get("details"), document.get("vm")
    return (
        document.get("kind") == "migration.receipt"
        and document.get("outcome") in ARRIVED
        and isinstance(details, Mapping)
        and details.get("role") == "destination"
        and isinstance(vm, Mapping)
        and isinstance(vm.get("uuid"), str)
        and isinstance(document.get("destination"), str)
    )
