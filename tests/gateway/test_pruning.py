"""Pruning a running gateway's log: by order of who may, by schedule; on record, with commits and questions going on."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.archive import Archive
from audit.checkpoint import LogSigner
from audit.group import Unsigned
from audit.log import Log
from audit.log_keys import KEYS_FILE, successor_line
from audit.record import format_time
from audit.tile_tree import FolderTiles
from audit.tiles import bundle_path
from audit.verify import Options, verify_log
from audit.verify_keys import keys_joined_by
from certs.files import read_private_key
from gateway.starter import Site
from policy.identity.local import hash_password, person_table
from tests.audit.disks import FastDisk
from tests.audit.samples import record
from tests.gateway.conftest import CHEAP, Running, running_gateway

pytestmark = pytest.mark.whole

OLD = datetime.now(UTC) - timedelta(days=400)


def signer_of(site: Site) -> LogSigner:
    key = read_private_key(site.certs / "gateway" / "log.key")
    assert isinstance(key, Ed25519PrivateKey)
    return LogSigner(site.log_origin, key)


def archive_of(site: Site) -> Path:
    return site.gateway_config.parent / "archive"


def archive(site: Site, signer: LogSigner) -> None:
    text = (site.log / "checkpoint").read_text()
    Archive(archive_of(site), [signer.verifier], FastDisk()).update(text, FolderTiles(site.log))


@pytest.fixture
def aged(site: Site) -> Site:
    """600 records that are 13 months old and 300 of today; all archived; retention is set."""
    age(site, signer_of(site))
    return site


def age(site: Site, signer: LogSigner) -> None:

    def of(time: datetime) -> Any:
        return lambda index: [Unsigned.of(record(index, origin=site.log_origin, time=format_time(time)))]

    with Log.open(site.log, signer, disk=FastDisk()) as log:
        for count, time in ((600, OLD), (300, datetime.now(UTC))):
            for first in range(0, count, 50):
                log.append([of(time)] * min(50, count - first))
    with Log.open(site.log, signer, disk=FastDisk()):
        pass  # seals the last full bundle
    archive(site, signer)
    retain(site)


@pytest.fixture
def site(site: Site) -> Site:
    """With petra of the platform team, who prunes."""
    petra = person_table("petra", "Petra Platform", ("platform-team",), hash_password("not asked for", cost=CHEAP))
    site.people.write_text(site.people.read_text(encoding="utf-8") + "\n" + petra, encoding="utf-8")
    return site


def retain(site: Site, every_hours: int = 0) -> None:
    text = site.gateway_config.read_text(encoding="utf-8").partition("\n[log.retention]")[0]
    site.gateway_config.write_text(
        f'{text}\n[log.retention]\narchive = "archive"\nevery_hours = {every_hours}\n', encoding="utf-8"
    )


async def end_of(running: Running, **body: Any) -> dict[str, Any]:
    """Ask as the platform team, and wait for the end."""
    client = running.person("petra")
    answer = await client.post("/v1/log/prune", json=body)
    assert answer.status_code == 202, answer.text
    document: dict[str, Any] = answer.json()
    with trio.fail_after(120):
        while document["state"] == "running":
            await trio.sleep(0.02)
            document = (await client.get("/v1/log/prune")).json()
    return document


async def test_what_is_old_goes_while_the_gateway_runs_and_all_else_goes_on(aged: Site) -> None:
    async with running_gateway(aged) as running:
        told = await end_of(running, check=True)
        assert (told["state"], told["first_entry"], told["end_entry"], told["record"]) == ("done", 0, 512, None)
        assert (aged.log / bundle_path(0)).exists()
        told = await end_of(running)
        assert (told["state"], told["end_entry"]) == ("done", 512)
        assert not (aged.log / bundle_path(0)).exists()
        assert not (aged.log / bundle_path(1)).exists()
        (said,) = await running.records("log.pruned")
        assert (said["sequence"], said["actor"]["name"], said["details"]["asked"]) == (
            told["record"],
            "Petra Platform",
            told["asked"],
        )
        assert [one["outcome"] for one in await running.records("log.prune_asked")] == ["allowed", "allowed"]
        # It decides, watches, finds and proves what is old and what is new.
        for _ in range(40):
            await running.gateway.keeping.watching.look(running.gateway.committer)
        answer = await running.person("alice").post("/v1/decisions", json={"vm": "web", "destination": "b"})
        assert answer.status_code == 200
        shown = (await running.person("carol").get("/v1/records/3")).json()
        assert shown["record"]["sequence"] == 3  # from the archive, which is mounted
        found = await running.person("carol").get("/v1/records", params={"query": f"until:{OLD:%Y-%m-%d}", "limit": 1})
        assert found.status_code == 200
        assert (await end_of(running))["first_entry"] == (await end_of(running))["end_entry"] == 512
    verdict = verify_log(aged.log, [signer_of(aged).vkey], options=Options(sampled=True))
    assert (verdict.ok, verdict.problems, verdict.pruned) == (True, [], 512)
    assert verify_log(aged.log, [signer_of(aged).vkey], options=Options(archive=archive_of(aged))).pruned == 0
    async with running_gateway(aged) as running:  # and it starts again
        assert running.gateway.committer.failed_because is None


async def test_who_may_not_prune_is_refused_on_record(aged: Site) -> None:
    async with running_gateway(aged) as running:
        for person in ("alice", "carol"):
            assert (await running.person(person).post("/v1/log/prune", json={})).status_code == 403
            assert (await running.person(person).get("/v1/log/prune")).status_code == 403
        assert [one["outcome"] for one in await running.records("log.prune_asked")] == ["denied", "denied"]
        assert (aged.log / bundle_path(0)).exists()


@pytest.mark.parametrize(
    ("what", "because"),
    [
        ("unmounted", "archive is no archive"),
        ("damaged", "has another entry 0 than the log"),
        ("of another history", "differs from what was seen of it at size 300"),
    ],
)
async def test_an_archive_that_does_not_prove_it_keeps_everything_and_admissions_go_on(
    aged: Site, what: str, because: str
) -> None:
    folder = archive_of(aged)
    if what == "unmounted":
        folder.rename(folder.with_name("elsewhere"))
    elif what == "damaged":
        bundle = folder / bundle_path(0)
        bundle.write_bytes(bundle.read_bytes().replace(b"maintenance", b"maintenancf", 1))
    else:
        with Log.open(folder.with_name("other"), signer_of(aged), disk=FastDisk()) as log:
            log.append([lambda index: [Unsigned.of(record(index, origin=aged.log_origin))]] * 300)
        (folder / "checkpoint").write_text((folder.with_name("other") / "checkpoint").read_text())
    async with running_gateway(aged) as running:
        told = await end_of(running)
        assert told["state"] == "failed"
        assert because in told["because"]
        assert not await running.records("log.pruned")
        assert (aged.log / bundle_path(0)).exists()
        assert running.gateway.committer.failed_because is None
        answer = await running.person("alice").post("/v1/decisions", json={"vm": "web", "destination": "b"})
        assert answer.status_code == 200


async def test_the_schedule_prunes_without_being_asked(aged: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.pruning.FIRST_SECONDS", 0.05)
    retain(aged, every_hours=24)
    async with running_gateway(aged) as running:
        with trio.fail_after(120):
            while (aged.log / bundle_path(1)).exists():
                await trio.sleep(0.02)
        (said,) = await running.records("log.pruned")
        assert (said["actor"], said["details"]["by_schedule"]) == (None, True)


async def test_an_archive_from_before_the_logs_key_was_replaced_counts(site: Site) -> None:
    former, signer = LogSigner(site.log_origin, Ed25519PrivateKey.generate()), signer_of(site)
    age(site, former)
    (site.log / KEYS_FILE).write_text(successor_line(former, signer))
    with Log.open(site.log, replace(signer, former=former), disk=FastDisk()) as log:
        log.append([lambda index: [Unsigned.of(record(index, origin=site.log_origin))]])
    async with running_gateway(site) as running:
        lines = await running.person("carol").get("/v1/log/keys")  # for an archive that is made through the gateway
        assert keys_joined_by(lines.content, [former.vkey]).heirs == (former.vkey, signer.vkey)
        told = await end_of(running)
        assert (told["state"], told["end_entry"]) == ("done", 512)
        kept = (site.log / KEYS_FILE).read_bytes()
        (site.log / KEYS_FILE).write_bytes(bytes(300_000))  # is told, and stops no admission
        refused = await running.person("carol").get("/v1/log/keys")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "search_unavailable")
        assert running.gateway.committer.failed_because is None
        (site.log / KEYS_FILE).write_bytes(kept)
    verdict = verify_log(site.log, [former.vkey], options=Options(archive=archive_of(site)))
    assert (verdict.problems, verdict.pruned) == ([], 0)


async def test_without_retention_nothing_is_ever_pruned(running: Running) -> None:
    answer = await running.person("petra").post("/v1/log/prune", json={})
    assert answer.status_code == 404
    assert "log.retention" in json.dumps(answer.json())
