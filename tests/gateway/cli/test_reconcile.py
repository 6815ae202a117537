"""`sealane audit reconcile hosts`: from a folder, and through a gateway."""

from __future__ import annotations

from pathlib import Path

from audit.log import Log
from tests.audit.disks import FastDisk
from tests.audit.samples import SIGNER, entry
from tests.gateway.cli.conftest import CannedGateway, Sealane, last_object, only_error_line

PERMITTED = {"permit": {"session_until": 1}}
COUNTS = {"permits": 1, "matched": 0, "pending": 0, "none": 1, "one": 0, "differ": 0}
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
    assert sealane("audit", "reconcile", "hosts").exit_code == 0


def test_a_log_is_not_held_against_itself(sealane: Sealane, tmp_path: Path) -> None:
    """Nothing would be found, and that would be said of two sites."""
    result = sealane("audit", "reconcile", "sites", "--log", tmp_path, "--other-log", tmp_path / "x" / "..")
    assert result.exit_code == 2
    assert "name a folder of each site's log" in only_error_line(result)
