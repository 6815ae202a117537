"""`sealane audit archive`: of a folder, again, and of a log that was put back."""

from __future__ import annotations

from pathlib import Path

from audit.log import Log
from tests.audit.disks import FastDisk
from tests.audit.samples import SIGNER, one
from tests.gateway.cli.conftest import Sealane, last_object


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
