"""`sealane audit prune`: from the gateway's configuration to a shorter folder, on record."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from audit.archive import Archive
from audit.checkpoint import LogSigner
from audit.log import Log
from audit.pruning import months_before
from audit.record import format_time
from audit.tile_tree import FolderTiles
from audit.tiles import bundle_path
from certs.files import read_private_key
from gateway.starter import HostPlan, Site, VmPlan, lay_out_site
from tests.audit.disks import FastDisk
from tests.audit.samples import entry
from tests.gateway.cli.conftest import CannedGateway, Sealane, only_error_line

ORIGIN = "gateway.example/sealane"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    now = datetime.now(UTC)
    site = lay_out_site(
        tmp_path / "site",
        hosts=[HostPlan("host-a", "127.0.0.1:7443")],
        vms=[VmPlan("web", "00000000-0000-4000-8000-000000000001", "host-a")],
        log_origin=ORIGIN,
        now=now,
    )
    text = site.gateway_config.read_text()
    site.gateway_config.write_text(text + '\n[log.retention]\narchive = "archive"\n')
    return site


def fill(site: Site) -> tuple[Path, LogSigner]:
    """600 records that are 13 months old, and 300 of today; all archived."""
    signer = LogSigner(ORIGIN, read_private_key(site.certs / "gateway" / "log.key"))  # type: ignore[arg-type]
    folder = site.gateway_config.parent / "log"
    old, now = datetime.now(UTC) - timedelta(days=400), datetime.now(UTC)
    with Log.open(folder, signer, disk=FastDisk()) as log:
        for count, time in ((600, old), (300, now)):
            log.append([lambda index, time=time: [entry(index, signer, time=format_time(time))]] * count)  # type: ignore[misc]
        text = log.checkpoint_text
    Archive(site.gateway_config.parent / "archive", [signer.verifier]).update(text, FolderTiles(folder))
    return folder, signer


def test_what_is_old_goes_after_a_check_and_on_record(site: Site, sealane: Sealane) -> None:
    folder, signer = fill(site)
    words = ["audit", "prune", "--config", site.gateway_config]
    told = json.loads(sealane(*words, "--check", "--json").stdout)
    assert (told["outcome"], told["first_entry"], told["end_entry"]) == ("would_prune", 0, 512)
    assert (folder / bundle_path(0)).exists()
    assert "entries 0 to 511 are gone" in sealane(*words).stdout
    assert not (folder / bundle_path(0)).exists()
    assert "no entry is to go" in sealane(*words).stdout
    archive = site.gateway_config.parent / "archive"
    result = sealane("audit", "verify", folder, "--key", signer.vkey)
    assert result.exit_code == 0
    assert "512 of them were pruned" in " ".join(result.stdout.split())
    told = json.loads(sealane("audit", "verify", folder, "--key", signer.vkey, "--archive", archive, "--json").stdout)
    assert (told["outcome"], told["pruned"], told["size"]) == ("verified", 0, 901)
    asked = sealane("audit", "query", "kind:log.pruned", "--log", folder, "--json")
    (found,) = json.loads(asked.stdout)["records"]
    assert found["record"]["details"]["end_entry"] == 512
    assert found["record"]["details"]["months"] == 12


def test_a_query_that_needs_what_is_gone_says_so(site: Site, sealane: Sealane) -> None:
    folder, _ = fill(site)
    assert sealane("audit", "prune", "--config", site.gateway_config).exit_code == 0
    archive = site.gateway_config.parent / "archive"
    assert (
        sealane("audit", "query", "kind:migration.decision", "--count", "--limit", "1", "--log", folder).exit_code == 0
    )
    archive.rename(archive.with_name("unmounted"))
    result = sealane("audit", "query", "kind:migration.decision", "--count", "--log", folder)
    assert result.exit_code != 0
    assert "were pruned, and their archive" in only_error_line(result)


@pytest.mark.parametrize("missing", ["retention", "archive", "stopped gateway"])
def test_what_is_missing_is_said_and_nothing_goes(site: Site, sealane: Sealane, missing: str) -> None:
    folder, signer = fill(site)
    if missing == "archive":
        (site.gateway_config.parent / "archive").rename(site.gateway_config.parent / "elsewhere")
    if missing == "retention":
        text = site.gateway_config.read_text()
        site.gateway_config.write_text(text.partition("[log.retention]")[0])
    holder = Log.open(folder, signer) if missing == "stopped gateway" else None
    result = sealane("audit", "prune", "--config", site.gateway_config)
    if holder is not None:
        holder.close()
    assert result.exit_code in {1, 2}
    words = {"retention": "[log.retention]", "archive": "is no archive", "stopped gateway": "open in another process"}
    assert words[missing] in only_error_line(result)
    assert (folder / bundle_path(0)).exists()


@pytest.mark.parametrize(
    ("now", "months", "then"),
    [
        ("2026-11-26", 12, "2025-11-26"),
        ("2026-03-31", 1, "2026-02-28"),
        ("2028-03-30", 1, "2028-02-29"),
        ("2026-01-15", 13, "2024-12-15"),
    ],
)
def test_months_are_those_of_the_calendar(now: str, months: int, then: str) -> None:
    assert months_before(datetime.fromisoformat(now).replace(tzinfo=UTC), months).date().isoformat() == then


PRUNING = {"state": "running", "asked": 7, "check": False, "record": None, "because": None}
PRUNED = PRUNING | {
    "state": "done", "record": 9, "first_entry": 0, "end_entry": 512, "before": "2025-11-26T00:00:00+00:00",
    "archive": "/mnt/worm\x1b[31m", "left_over_bundles": 0,
}  # fmt: skip


def test_a_running_gateway_is_asked_and_waited_for(sealane: Sealane, logged_in: CannedGateway) -> None:
    logged_in.answer("POST", "/v1/log/prune", (202, PRUNING))
    logged_in.answer("GET", "/v1/log/prune", (200, PRUNING), (200, PRUNED))
    result = sealane("audit", "prune")
    assert result.exit_code == 0
    assert "entries 0 to 511 are gone" in result.stdout
    assert "\x1b[31m" not in result.stdout


@pytest.mark.parametrize(
    ("latest", "said"),
    [
        (PRUNING | {"state": "failed", "because": "/mnt/worm is no archive"}, "/mnt/worm is no archive"),
        (PRUNED | {"asked": None}, "another run has begun"),
    ],
)
def test_a_gateways_pruning_that_fails_says_why(
    sealane: Sealane, logged_in: CannedGateway, latest: dict[str, object], said: str
) -> None:
    logged_in.answer("POST", "/v1/log/prune", (202, PRUNING))
    logged_in.answer("GET", "/v1/log/prune", (200, latest))
    result = sealane("audit", "prune")
    assert result.exit_code == 1
    assert said in only_error_line(result)


@pytest.mark.parametrize(
    "latest",
    [PRUNED | {"before": "soon"}, PRUNED | {"before": None}, PRUNED | {"end_entry": "512"}, {"state": "done"}, []],
)
def test_an_answer_that_does_not_say_what_went_is_no_answer(
    sealane: Sealane, logged_in: CannedGateway, latest: object
) -> None:
    logged_in.answer("POST", "/v1/log/prune", (202, PRUNING))
    logged_in.answer("GET", "/v1/log/prune", (200, latest))
    result = sealane("audit", "prune")
    assert result.exit_code == 3
    assert "an answer that is not a gateway's" in only_error_line(result)


def test_a_gateway_that_was_started_again_meanwhile_is_said(sealane: Sealane, logged_in: CannedGateway) -> None:
    logged_in.answer("POST", "/v1/log/prune", (202, PRUNING))
    logged_in.answer("GET", "/v1/log/prune", (200, None))
    result = sealane("audit", "prune")
    assert result.exit_code == 1
    assert "started again" in only_error_line(result)
