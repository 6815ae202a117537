"""Auditors: reading needs ReadAudit, is recorded, and what is read can be proven."""

from __future__ import annotations

import base64

import httpx

from audit.checkpoint import Checkpoint, LogVerifier, open_checkpoint
from audit.proof import leaf_hash, verify_consistency, verify_inclusion
from audit.verify import verify_log
from gateway.starter import Site
from tests.gateway.conftest import Running, running_gateway


async def get(client: httpx.AsyncClient, path: str, **parameters: object) -> dict[str, object]:
    answer = await client.get(path, params={key: str(value) for key, value in parameters.items()})
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


async def checkpoint(running: Running, client: httpx.AsyncClient) -> Checkpoint:
    text = str((await get(client, "/v1/checkpoint"))["checkpoint"])
    return open_checkpoint(text, [LogVerifier.parse(running.site.vkey)])


async def test_reading_records_needs_read_audit(running: Running) -> None:
    for username in ("alice", "bob"):
        for path in ("/v1/records", "/v1/records/0", "/v1/proofs/inclusion?index=0&size=1"):
            assert (await running.person(username).get(path)).status_code == 403
    assert {record["outcome"] for record in await running.records("audit.read")} == {"denied"}


async def test_each_read_is_recorded_with_what_was_read_and_by_whom(running: Running) -> None:
    carol = running.person("carol")
    found = await get(carol, "/v1/records", kind="gateway.started")
    (started,) = found["records"]  # type: ignore[misc]
    assert started["index"] == 0  # type: ignore[has-type]
    await get(carol, "/v1/records/0")
    reads = await running.records("audit.read")
    assert [read["actor"]["name"] for read in reads] == ["Carol Auditor"] * 2
    assert [read["details"]["read"] for read in reads] == [
        {"records": {"kind": "gateway.started", "limit": 50}},
        {"record": 0},
    ]


async def test_what_cannot_be_recorded_is_not_shown(running: Running) -> None:
    running.log.broken = True
    assert (await running.person("carol").get("/v1/records")).status_code == 503


async def test_pages_follow_each_other_without_gap_or_double(running: Running) -> None:
    alice, carol = running.person("alice"), running.person("carol")
    for _ in range(7):
        await alice.post("/v1/decisions", json={"vm": "web", "destination": "b"})
    seen: list[int] = []
    after: object = None
    while True:
        more = {} if after is None else {"after": after}
        page = await get(carol, "/v1/records", kind="decision.check", limit=3, **more)
        seen += [record["index"] for record in page["records"]]  # type: ignore[attr-defined]
        after = page["next"]
        if after is None:
            break
    assert len(seen) == 7
    assert seen == sorted(set(seen), reverse=True)


async def test_filters_are_strict(running: Running) -> None:
    carol = running.person("carol")
    for query in ("nonsense=1", "limit=0", "limit=201", "after=-1", "since=yesterday"):
        assert (await carol.get(f"/v1/records?{query}")).status_code == 400, query


async def test_inclusion_and_consistency_are_provable_to_an_outsider(running: Running) -> None:
    carol = running.person("carol")
    before = await checkpoint(running, carol)
    for _ in range(3):
        await running.person("alice").post("/v1/decisions", json={"vm": "web", "destination": "b"})
    entry = str((await get(carol, "/v1/records/0"))["entry"]).encode()
    after = await checkpoint(running, carol)
    path = (await get(carol, "/v1/proofs/inclusion", index=0, size=after.size))["path"]
    verify_inclusion(leaf_hash(entry), 0, after.size, decoded(path), after.root)
    grown = await get(carol, "/v1/proofs/consistency", **{"from": before.size, "to": after.size})
    verify_consistency(before.size, before.root, after.size, after.root, decoded(grown["path"]))


def decoded(path: object) -> list[bytes]:
    assert isinstance(path, list)
    return [base64.b64decode(node) for node in path]


async def test_what_is_not_in_the_log_is_not_found(running: Running) -> None:
    carol = running.person("carol")
    for path in (
        "/v1/records/999999",
        "/v1/proofs/inclusion?index=5&size=999999",
        "/v1/proofs/consistency?from=9&to=3",
    ):
        assert (await carol.get(path)).status_code == 404, path


async def test_a_checkpoint_needs_no_more_than_a_valid_token(running: Running) -> None:
    assert (await running.client().get("/v1/checkpoint")).status_code == 401
    assert (await checkpoint(running, running.person("bob"))).origin == running.site.log_origin


async def test_ones_own_migration_is_followed_without_a_record_and_that_of_others_is_not_shown(
    running: Running,
) -> None:
    migration_id, _ = await running.begin()
    assert (await running.person("alice").get(f"/v1/migrations/{migration_id}")).status_code == 200
    assert await running.records("audit.read") == []
    assert (await running.person("bob").get(f"/v1/migrations/{migration_id}")).status_code == 403
    assert (await running.person("carol").get(f"/v1/migrations/{migration_id}")).status_code == 200
    assert [record["outcome"] for record in await running.records("audit.read")] == ["denied", "allowed"]
    assert (await running.person("carol").get("/v1/migrations/unknown")).status_code == 404
    mistyped = (await running.person("alice").get("/v1/migrations/unknown")).json()["error"]["message"]
    assert mistyped.startswith("no migration of yours has that id, and seeing those of others is denied")


async def test_what_was_denied_can_be_looked_up_by_its_id(running: Running) -> None:
    answer = await running.person("bob").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    shown = await running.person("carol").get(f"/v1/migrations/{answer.json()['migration_id']}")
    assert shown.json()["state"] == "denied"


async def test_the_independent_verifier_is_content_with_what_the_gateway_wrote(site: Site) -> None:
    async with running_gateway(site) as running:
        await running.begin()
        await running.person("bob").post("/v1/migrations", json={"vm": "web", "destination": "b"})
        await get(running.person("carol"), "/v1/records")
    verdict = verify_log(site.log, [site.vkey])
    assert verdict.ok, verdict.problems
    assert not verdict.problems
