"""How much a record should worry somebody who watches a SIEM. The receiver's own rules may well say otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final


class Severity(IntEnum):
    """The numbers are OCSF's `severity_id`."""

    INFORMATIONAL = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4


# Kinds that worry whatever their outcome. What is refused or fails is MEDIUM, all else INFORMATIONAL.
_KINDS: Final[Mapping[str, Severity]] = {
    "clock-step": Severity.MEDIUM,
    "log.recovered": Severity.MEDIUM,
    "placement.duplicate": Severity.HIGH,
    "placement.silent": Severity.MEDIUM,
    "siem.degraded": Severity.MEDIUM,
    "siem.quarantined": Severity.HIGH,
    "siem.stopped": Severity.HIGH,
    "witness.disagrees": Severity.HIGH,
    "witness.silent": Severity.MEDIUM,
}
# Parts of kinds: a way around the rules was used, or found.
_ALARMS: Final = frozenset({"breakglass", "evacuation", "revoked", "unpermitted"})

SYSLOG: Final[Mapping[Severity, int]] = {
    Severity.INFORMATIONAL: 6,
    Severity.LOW: 5,
    Severity.MEDIUM: 4,
    Severity.HIGH: 3,
}
"""RFC 5424, section 6.2.1: informational, notice, warning, error."""

TEN: Final[Mapping[Severity, int]] = {
    Severity.INFORMATIONAL: 1,
    Severity.LOW: 3,
    Severity.MEDIUM: 6,
    Severity.HIGH: 8,
}
"""CEF (0 to 3 low, 4 to 6 medium, 7 and 8 high) and LEEF (1 to 10)."""


def severity_of(kind: str, outcome: str | None) -> Severity:
    """Of a record's kind, and of its outcome as ECS has it."""
    if (known := _KINDS.get(kind)) is not None:
        return known
    if not _ALARMS.isdisjoint(kind.split(".")):
        return Severity.HIGH
    return Severity.MEDIUM if outcome == "failure" else Severity.INFORMATIONAL
