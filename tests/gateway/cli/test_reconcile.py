"""`sealane audit reconcile hosts`: from a folder, and through a gateway."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from audit.log import Log
from audit.tiles import frame
from gateway.cli import reconcile
from gateway.cli.errors import CommandError
from tests.audit.disks import FastDisk
from tests.audit.samples import SIGNER, entry, record
from tests.gateway.cli.conftest import CannedGateway, Sealane, last_object, only_error_line
from tests.gateway.test_receipts import BODY
from tests.gateway.test_sites import spoilt

PERMITTED = {"permit": {"session_until": 1}}
COUNTS = {"permits": 1, "matched": 0, "pending": 0, "none": 1, "one": 0, "differ": 0, "uncounted": 0}
FINDING = {
    "what": "none",
    "migration_id": "m-1",
    "record": 7,
    "vm": "web\x1b[31m",
    "source": "spiffe://bank.example/host/a",
    "destination": "spiffe://bank.example/host/b",
    "why": ["neither host has certified what became of this permit"],
}


def test_a_folder_is_compared_without_a_gateway(sealane: Sealane, tmp_path: Path) -> None:
    with Log.open(tmp_path / "log", SIGNER, disk=FastDisk()) as log:
        for kind in ("heartbeat", "migration.decision"):
            log.append([lambda index, kind=kind: [entry(index, kind=kind, details=PERMITTED)]])  # type: ignore[misc]
    result = sealane("audit", "reconcile", "hosts", "--log", tmp_path / "log", "--since", "2026-11-01", "--json")
    document = last_object(result)
    assert document["counts"] == COUNTS
    assert [(one["what"], one["record"], one["vm"]) for one in document["findings"]] == [("none", 1, "web-1")]
    assert result.exit_code == 1
    assert sealane("audit", "reconcile", "hosts", "--log", tmp_path / "log", "--since", "1d").exit_code == 0


def test_a_gateways_findings_are_told_harmlessly_and_the_exit_code_says_that_there_are_some(
    sealane: Sealane, logged_in: CannedGateway
) -> None:
    document = {"what": "hosts", "since": "x", "counts": COUNTS, "findings": [FINDING], "record_index": 12}
    logged_in.answer("POST", "/v1/reconcile/hosts", (200, document), (200, document | {"findings": []}))
    result = sealane("audit", "reconcile", "hosts", "--since", "7d")
    assert result.exit_code == 1
    assert "neither host has certified" in result.stdout
    assert "\x1b[31m" not in result.stdout
    assert "on record as 12" in result.stdout
    result = sealane("audit", "reconcile", "hosts")
    assert result.exit_code == 0
    assert "1 permit, 0 matched" in result.stdout


def test_a_log_is_not_held_against_itself(sealane: Sealane, tmp_path: Path) -> None:
    """Nothing would be found, and that would be said of two sites."""
    result = sealane("audit", "reconcile", "sites", "--log", tmp_path, "--other-log", tmp_path / "x" / "..")
    assert result.exit_code == 2
    assert "is given as both logs; the requester must act; name a folder of each site's log" in only_error_line(result)


WEST, EAST = (f"spiffe://{name}.example/host/a" for name in ("west", "east"))
COUNTED = {"channel": 0, "port": "memory", "sent_bytes": 9, "received_bytes": 9, "sent_frames": 2, "received_frames": 2}


def halves(role: str, permit: str, other: str) -> list[tuple[int, dict[str, Any]]]:
    """What the log of one of two sites has of a migration from west to east."""
    site = {"role": role, "trust_domain": "east.example" if role == "source" else "west.example"}
    shown = {"other_jti": other, "other_permit_sha256": "a"}
    told = {"site": site | shown, "permit": {"jti": permit, "session_until": 1}}
    body = json.dumps(BODY | {"role": role, "source": WEST, "destination": EAST, "channels": [COUNTED]})
    receipt = {"role": role, "body": body, "body_sha256": hashlib.sha256(body.encode()).hexdigest()}
    records = [
        ("migration.decision", told),
        ("migration.other_site", {"permit_sha256": "a", "other_jti": other}),
        ("migration.receipt", receipt),
    ]
    found = (
        record(n, kind=kind, migration_id="m", source=WEST, destination=EAST, details=details)
        for n, (kind, details) in enumerate(records)
    )
    return [(n, msgspec.to_builtins(each)) for n, each in enumerate(found)]


def lay(folder: Path, records: Sequence[Any]) -> Path:
    """A log's folder as somebody makes it who does as they like: of numbered records, or of anything else."""
    (folder / "tail").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint").write_text(f"origin\n{len(records)}\n\n")
    told = [each[-1] if isinstance(each, list | tuple) and each else each for each in records]
    entries = (frame(msgspec.json.encode({"key": "", "record": each, "signature": ""})) for each in told)
    (folder / "tail" / "0").write_bytes(b"".join(entries))
    return folder


def test_whatever_stands_in_another_logs_folder_is_compared_or_refused_in_words(tmp_path: Path) -> None:
    ours, theirs = halves("source", "j", "k"), halves("destination", "k", "j")
    west, since = lay(tmp_path / "west", ours), "2020-01-01T00:00:00.000000Z"
    assert reconcile._of_folders(west, lay(tmp_path / "east", theirs), since)["counts"]["migrations"] == 1
    told: Counter[str] = Counter()
    for odd in spoilt(theirs):
        east = lay(tmp_path / "east", odd)
        for compare in (partial(reconcile._of_folders, west), reconcile._of_hosts):
            try:
                compare(east, since)
            except CommandError as error:
                told[error.what.partition(" ")[0]] += 1
            else:
                told["compared"] += 1
    assert told.keys() == {"entry", "compared"}
    assert min(told.values()) > 100


def test_hosts_that_are_compared_in_a_folder_are_told_of_what_cannot_be_read(sealane: Sealane, tmp_path: Path) -> None:
    odd = [(0, {"kind": "migration.decision", "details": []})]
    result = sealane("audit", "reconcile", "hosts", "--log", lay(tmp_path, odd))
    assert result.exit_code == 1
    assert "sealane audit verify" in only_error_line(result)
