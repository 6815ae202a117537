"""docs/records.md has each kind of record that the code can write, with the severity that the formats give it."""

from __future__ import annotations

import re

from audit.siem.document import _ALERTS
from audit.siem.formats.severity import severity_of
from tests.docs.pages import ROOT, read

PAGE = ROOT / "docs" / "records.md"
ROW = re.compile(r"^\| (`.+?) \|[^|]+\|[^|]*\| (\w+) \|[^|]+\|$", re.MULTILINE)
FAMILIES = (
    *("audit", "breakglass", "config", "decision", "drain", "evacuation", "gateway", "host", "inventory", "key"),
    *("libvirt", "log", "migration", "placement", "policy", "siem", "site", "token", "witness"),
)
LIKE_ONE = re.compile(rf'"((?:{"|".join(FAMILIES)})\.[a-z_]+|heartbeat|clock-step|sealane-permit)"')
# Words of the same shape: keys and names of files, our loggers (`gateway.…`), and two that OCSF's table knows.
OTHERS = re.compile(
    r".*\.(?:toml|json|key|keys|vkey|listen|sinks|sources|issuers|active_directory)"
    r"|gateway\.(?!started$|stopped$).*|log\.(?:started|stopped)|inventory\.siem"
)


def written() -> set[str]:
    files = [file for package in ("audit", "gateway") for file in (ROOT / package).rglob("*.py")]
    return {kind for file in files for kind in LIKE_ONE.findall(read(file)) if not OTHERS.fullmatch(kind)}


def listed() -> dict[str, tuple[str, bool]]:
    """By kind: its severity, and whether it is marked as an alert."""
    rows = [(names, severity) for names, severity in ROW.findall(read(PAGE))]
    found = [
        (kind, severity, bool(flag)) for names, severity in rows for kind, flag in re.findall(r"`(.+?)`( ⚑)?", names)
    ]
    assert len(found) == len({kind for kind, _, _ in found}) > 50
    return {kind: (severity, flag) for kind, severity, flag in found}


def test_each_kind_that_is_written_is_listed() -> None:
    assert sorted(written() - listed().keys()) == []
    assert sorted(listed().keys() - written()) == []


def test_severities_and_alerts_are_the_formats_own() -> None:
    for kind, (severity, is_alert) in listed().items():
        assert severity == severity_of(kind, None).name.lower(), kind
        assert is_alert == (kind in _ALERTS), kind
        assert not is_alert or severity in {"medium", "high"}, kind
