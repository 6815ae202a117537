"""`sealane audit archive`: of a folder, again, and of a log that was put back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from audit.log import Log
from audit.log_keys import KEYS_FILE, successor_line
from tests.audit.disks import FastDisk
from tests.audit.samples import OTHER_SIGNER, SIGNER, one
from tests.gateway.cli.conftest import CannedGateway, Sealane, last_object


def grow(directory: Path, entries: int) -> None:
    with Log.open(directory, SIGNER, disk=FastDisk()) as log:
        log.append([one] * entries)


def test_an_archive_grows_is_verified_and_refuses_a_log_that_was_put_back(sealane: Sealane, tmp_path: Path) -> None:
    log, archive = tmp_path / "log", tmp_path / "archive"
    key = ("--key", SIGNER.vkey)
    for added, size in ((5, 5), (300, 305)):
        grow(log, added)
        document = last_object(sealane("audit", "archive", archive, *key, "--log", log, "--json"))
        assert (document["outcome"], document["size"], document["added"]) == ("archived", size, added)
    assert sealane("audit", "verify", archive, *key).exit_code == 0
    grow(tmp_path / "older", 5)
    refused = sealane("audit", "archive", archive, *key, "--log", tmp_path / "older")
    assert refused.exit_code == 1
    assert "305 are archived" in refused.stderr
    assert "put back" in refused.stderr
    assert sealane("audit", "archive", archive, *key, "--log", tmp_path / "nowhere").exit_code == 2
    assert sealane("audit", "archive", archive, "--key", "nonsense", "--log", log).exit_code == 2


def test_an_archive_follows_its_log_to_another_key_and_whoever_pins_either_verifies_it(
    sealane: Sealane, tmp_path: Path
) -> None:
    log, archive = tmp_path / "log", tmp_path / "archive"
    grow(log, 5)
    assert sealane("audit", "archive", archive, "--key", SIGNER.vkey, "--log", log).exit_code == 0
    (log / KEYS_FILE).write_text(successor_line(SIGNER, OTHER_SIGNER))
    for signer in (replace(OTHER_SIGNER, former=SIGNER), OTHER_SIGNER):
        with Log.open(log, signer, disk=FastDisk()) as opened:
            opened.append([one])
    document = last_object(sealane("audit", "archive", archive, "--key", SIGNER.vkey, "--log", log, "--json"))
    assert (document["outcome"], document["added"]) == ("archived", 2)
    for pinned in (SIGNER, OTHER_SIGNER):
        assert sealane("audit", "verify", archive, "--key", pinned.vkey).exit_code == 0
    (log / KEYS_FILE).write_text(successor_line(SIGNER, OTHER_SIGNER).replace('"old":', '"odd":'))
    refused = sealane("audit", "archive", archive, "--key", SIGNER.vkey, "--log", log)
    assert refused.exit_code == 1
    assert "malformed" in refused.stderr


def test_what_a_former_key_signs_after_its_successor_is_not_archived(sealane: Sealane, tmp_path: Path) -> None:
    """Stolen, it could else go on with the log as the archive has it; the archive is the evidence, of that as well."""
    log, archive = tmp_path / "log", tmp_path / "archive"
    grow(log, 5)
    assert sealane("audit", "archive", archive, "--key", SIGNER.vkey, "--log", log).exit_code == 0
    (log / KEYS_FILE).write_text(successor_line(SIGNER, OTHER_SIGNER))
    grow(log, 1)
    refused = sealane("audit", "archive", archive, "--key", OTHER_SIGNER.vkey, "--log", log)
    assert refused.exit_code == 1
    assert "not signed by a pinned key" in refused.stderr
    with Log.open(log, replace(OTHER_SIGNER, former=SIGNER), disk=FastDisk()) as opened:
        opened.append([one])
    assert sealane("audit", "archive", archive, "--key", OTHER_SIGNER.vkey, "--log", log).exit_code == 0


@pytest.fixture
def two_keys(logged_in: CannedGateway, tmp_path: Path) -> CannedGateway:
    """A gateway whose log has changed its key."""
    log = tmp_path / "log"
    grow(log, 5)
    for signer in (replace(OTHER_SIGNER, former=SIGNER), OTHER_SIGNER):
        with Log.open(log, signer, disk=FastDisk()) as opened:
            opened.append([one])
    logged_in.answer("GET", "/v1/log/checkpoint", (200, (log / "checkpoint").read_bytes()))
    logged_in.answer("GET", "/v1/log/tile/entries/000.p/7", (200, (log / "tail" / "0").read_bytes()))
    return logged_in


def test_through_a_gateway_that_says_how_its_keys_followed_one_of_them_is_enough(
    two_keys: CannedGateway, sealane: Sealane, tmp_path: Path
) -> None:
    archive, lines = tmp_path / "archive", successor_line(SIGNER, OTHER_SIGNER)
    two_keys.answer("GET", "/v1/log/keys", (200, lines.encode()))
    result = sealane("audit", "archive", archive, "--key", SIGNER.vkey)
    assert result.exit_code == 0, result.output
    for pinned in (SIGNER, OTHER_SIGNER):
        assert sealane("audit", "verify", archive, "--key", pinned.vkey).exit_code == 0
    two_keys.answer("GET", "/v1/log/keys", (200, lines.replace('"old":', '"odd":').encode()))
    refused = sealane("audit", "archive", archive, "--key", SIGNER.vkey)
    assert refused.exit_code == 1
    assert "/v1/log/keys: a line of the file `keys` is malformed" in refused.stderr


def test_through_a_gateway_that_does_not_know_that_question_each_key_must_be_named(
    two_keys: CannedGateway, sealane: Sealane, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    two_keys.answer("GET", "/v1/log/keys", (404, {"error": {"code": "not_known", "message": "no such call"}}))
    result = sealane("audit", "archive", archive, "--key", SIGNER.vkey)
    assert result.exit_code == 1, result.output
    assert sealane("audit", "archive", archive, "--key", SIGNER.vkey, "--key", OTHER_SIGNER.vkey).exit_code == 0
