"""The admission story, end to end over HTTPS: what is permitted, what is not, and what the log says of both."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
import trio

from audit.checkpoint import LogVerifier, open_checkpoint
from audit.proof import leaf_hash, verify_inclusion
from policy.engine import Engine
from policy.permit import proof_entry
from tests.gateway.conftest import UUID_WEB, Running

pytestmark = pytest.mark.whole


async def test_an_allowed_request_puts_a_permit_into_the_hands_of_the_source_relay(running: Running) -> None:
    await running.poll("a")
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 201, answer.text
    document = answer.json()
    assert document["decision"]["allowed"] is True
    assert [policy["id"] for policy in document["decision"]["policies"]] == ["operators-move"]

    (assignment,) = await running.poll("a")
    assert assignment["migration_id"] == document["migration_id"]
    assert assignment["destination_address"] == "127.0.0.3:7443"
    permit = running.open_permit(assignment["permit"])
    assert permit.claims.vm == UUID_WEB
    assert permit.claims.source == running.site.spiffe_id("a")
    assert permit.claims.aud == permit.claims.destination == running.site.spiffe_id("b")
    assert permit.proof.decision_index == document["record_index"]


async def test_the_permit_carries_a_proof_of_its_own_entry_in_the_log(running: Running) -> None:
    _, permit = await running.begin()
    proof = permit.proof
    checkpoint = open_checkpoint(proof.checkpoint, [LogVerifier.parse(running.site.vkey)])
    entry = proof_entry(permit)
    verify_inclusion(leaf_hash(entry), proof.index, checkpoint.size, proof.path_hashes(), checkpoint.root)
    assert await running.gateway.committer.read(lambda log: log.entry(proof.index)) == entry
    decision = await running.gateway.committer.read(lambda log: log.entry(proof.decision_index))
    assert leaf_hash(decision) == base64.b64decode(proof.decision_leaf_hash)


async def test_the_record_of_a_decision_is_complete_in_itself(running: Running) -> None:
    await running.poll("a")
    body = {"vm": "web", "destination": "b", "reason": "CHG-1042"}
    answer = await running.person("alice").post("/v1/migrations", json=body)
    (record,) = await running.records("migration.decision")
    assert record["outcome"] == "allowed"
    assert record["migration_id"] == answer.json()["migration_id"]
    assert record["actor"]["id"] == "sealane-local#alice"
    assert record["actor"]["groups"] == ["sealane-local#operators"]
    assert record["reason"] == "CHG-1042"
    details = record["details"]
    assert details["client_address"] == "127.0.0.1"
    assert details["decision"]["bundle_digest"] == running.gateway.reloader.in_force()["bundle"]["digest"]
    assert details["policy_request"]["principal"]["id"] == "sealane-local#alice"
    assert len(details["policy_entities"]) == 4  # person, VM, two hosts


async def test_another_user_is_denied_and_recorded_and_no_relay_gets_anything(running: Running) -> None:
    await running.poll("a")
    answer = await running.person("bob").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 403
    assert answer.json()["decision"]["allowed"] is False
    assert "No policy permits MigrateVm" in answer.json()["decision"]["denied_because"]
    (record,) = await running.records("migration.decision")
    assert (record["outcome"], record["actor"]["name"]) == ("denied", "Bob Guest")
    assert not [entry for entry in await running.entries() if entry.get("kind") == "sealane-permit"]
    assert await running.poll("a") == []


async def test_an_unknown_vm_or_host_is_denied_and_recorded(running: Running) -> None:
    alice = running.person("alice")
    for body in ({"vm": "nothing", "destination": "b"}, {"vm": "web", "destination": "nowhere"}):
        answer = await alice.post("/v1/migrations", json=body)
        assert answer.status_code == 403
        assert "inventory does not know" in answer.json()["decision"]["denied_because"]
    assert [record["outcome"] for record in await running.records("migration.decision")] == ["denied", "denied"]


async def test_a_forbid_of_the_policy_holds(running: Running) -> None:
    await running.poll("a")
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "prod"})
    assert answer.status_code == 403
    assert "stay-in-zone" in [policy["id"] for policy in answer.json()["decision"]["policies"]]


async def test_no_permit_is_issued_that_no_relay_can_take(running: Running) -> None:
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "relay_unreachable"
    (record,) = await running.records("migration.decision")
    assert record["outcome"] == "failed"
    assert record["details"]["not_admitted"] == "relay_unreachable"
    assert record["details"]["decision"]["allowed"] is True
    assert await running.poll("a") == []


async def test_whoever_may_not_move_a_vm_does_not_learn_that_its_relay_is_away(running: Running) -> None:
    answer = await running.person("bob").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 403


async def test_one_migration_of_a_vm_at_a_time(running: Running) -> None:
    await running.begin()
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "c"})
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "migration_in_progress"
    assert [record["outcome"] for record in await running.records("migration.decision")] == ["allowed", "failed"]


async def test_of_requests_at_the_same_moment_one_wins(running: Running) -> None:
    await running.poll("a")
    statuses: list[int] = []

    async def ask() -> None:
        answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
        statuses.append(answer.status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(ask)
    assert sorted(statuses) == [201] + [409] * 7
    assert len([entry for entry in await running.entries() if entry.get("kind") == "sealane-permit"]) == 1


async def test_a_vm_is_not_moved_to_where_it_is(running: Running) -> None:
    await running.poll("a")
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "a"})
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "already_there"


async def test_an_expired_token_is_refused_and_recorded(running: Running) -> None:
    client = running.client()
    old = running.token("alice", datetime.now(UTC) - timedelta(hours=2))
    answer = await client.post(
        "/v1/migrations", json={"vm": "web", "destination": "b"}, headers={"authorization": f"Bearer {old}"}
    )
    assert answer.status_code == 401
    assert answer.json()["error"]["who_must_act"] == "requester"
    assert old not in answer.text
    (record,) = await running.records("token.refused")
    assert record["details"]["check"] == "times"
    assert await running.records("migration.decision") == []


async def test_who_was_removed_from_the_directory_has_lost_the_token_at_once(running: Running) -> None:
    alice = running.person("alice")
    people = running.site.people.read_text()
    running.site.people.write_text(people[people.index('[people."bob"]') :])
    await running.gateway.reload()
    answer = await alice.post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 401


async def test_a_check_is_recorded_and_permits_nothing(running: Running) -> None:
    for username, allowed in (("alice", True), ("bob", False)):
        answer = await running.person(username).post("/v1/decisions", json={"vm": "web", "destination": "b"})
        assert answer.status_code == 200
        assert answer.json()["decision"]["allowed"] is allowed
    assert [record["outcome"] for record in await running.records("decision.check")] == ["allowed", "denied"]
    assert await running.poll("a") == []


async def test_when_the_log_fails_the_answer_is_503_and_there_is_no_permit(running: Running) -> None:
    await running.poll("a")
    alice = running.person("alice")
    running.log.broken = True
    for _ in range(2):
        answer = await alice.post("/v1/migrations", json={"vm": "web", "destination": "b"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "log_unavailable"
        assert "No space left" in answer.json()["error"]["message"]
    assert (await running.client().get("/v1/health")).status_code == 503
    assert await running.poll("a") == []


async def test_the_log_is_reopened_and_then_permits_go_on(running: Running) -> None:
    await running.poll("a")
    alice = running.person("alice")
    running.log.broken = True
    assert (await alice.post("/v1/migrations", json={"vm": "web", "destination": "b"})).status_code == 503
    running.log.broken = False
    running.gateway.committer._next_attempt = 0  # the pause between attempts is over
    assert (await alice.post("/v1/migrations", json={"vm": "web", "destination": "b"})).status_code == 201
    assert running.log.opened == 2
    assert (await running.client().get("/v1/health")).json()["status"] == "ok"


async def test_an_engine_that_raises_is_a_recorded_denial(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_self: object, _question: object) -> object:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Engine, "decide", broken)
    await running.poll("a")
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 403
    assert answer.json()["decision"]["errors"]
    assert [record["outcome"] for record in await running.records("migration.decision")] == ["denied"]


async def test_a_decision_that_does_not_fit_into_a_record_permits_nothing_and_is_recorded_in_short(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running.poll("a")
    monkeypatch.setattr("audit.record.MAX_RECORD_BYTES", 2000)
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_large_to_record")
    monkeypatch.undo()
    (record,) = await running.records("migration.decision")
    assert (record["outcome"], record["details"]["not_admitted"]) == ("denied", "too_large_to_record")
    assert not [entry for entry in await running.entries() if entry.get("kind") == "sealane-permit"]
    assert await running.poll("a") == []


async def test_how_a_vm_is_to_be_moved_is_recorded_decided_on_and_told_to_the_relay(running: Running) -> None:
    await running.poll("a")
    how = {"post_copy_after_passes": 3, "downtime_limit_ms": 50, "bandwidth_bytes_per_second": 1 << 20}
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b", "how": how})
    assert answer.status_code == 201, answer.text
    (assignment,) = await running.poll("a")
    assert assignment["how"] == how
    assert running.open_permit(assignment["permit"]).claims.limits.bandwidth_bytes_per_second == 1 << 20
    (record,) = await running.records("migration.decision")
    assert record["details"]["asked"]["how"] == how
    assert record["details"]["policy_request"]["context"]["post_copy"] is True


async def test_a_plain_move_says_nothing_that_a_relay_of_an_earlier_version_would_not_know(running: Running) -> None:
    await running.begin()
    (record,) = await running.records("migration.decision")
    assert "how" not in record["details"]["asked"]
    assert "post_copy" not in record["details"]["policy_request"]["context"]


@pytest.mark.parametrize(
    ("how", "words"),
    [({"multifd_compression": "zstd"}, "multifd channels"), ({"speed": 1}, "speed"), ({"xbzrle": 1}, "xbzrle")],
)
async def test_wishes_that_make_no_sense_are_refused_before_anything_is_decided(
    running: Running, how: dict[str, object], words: str
) -> None:
    await running.poll("a")
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b", "how": how})
    assert answer.status_code == 400
    assert words in answer.text
    assert await running.records("migration.decision") == []
