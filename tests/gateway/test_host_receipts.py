"""Two receipts that tell one story match; one, none, and two that do not are found, once their time is over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
import trio

from gateway.host_receipts import BEFORE_RESTART, GRACE_SECONDS, UNCOUNTED, Report, brief, compare_receipts
from tests.gateway.conftest import Running
from tests.gateway.test_receipts import BODY

UNTIL = 1_000_000
LATER = UNTIL + GRACE_SECONDS
CHANNEL = {"channel": 0, "port": "memory", "sent_bytes": 9, "received_bytes": 4, "sent_frames": 2, "received_frames": 1}
MIRRORED = CHANNEL | {"sent_bytes": 4, "received_bytes": 9, "sent_frames": 1, "received_frames": 2}


def decision(migration_id: str = "m", permit: object = ...) -> tuple[int, dict[str, Any]]:
    details = {"permit": {"session_until": UNTIL} if permit is ... else permit}
    parties = {"vm": {"name": "web", "uuid": "u"}, "source": "a", "destination": "b"}
    return 7, {"kind": "migration.decision", "migration_id": migration_id, "details": details, **parties}


def receipt(role: str, **changes: Any) -> tuple[int, dict[str, Any]]:
    story = {"outcome": "running", "channels": [CHANNEL if role == "source" else MIRRORED]}
    body = json.dumps(BODY | {"role": role} | story | changes)
    sha256 = hashlib.sha256(body.encode()).hexdigest()
    details = {"role": role, "body": body, "body_sha256": sha256}
    return 8, {"kind": "migration.receipt", "migration_id": "m", "details": details}


def report(*records: tuple[int, Mapping[str, Any]], now: int = LATER) -> Report:
    found = compare_receipts(records, now)
    assert compare_receipts([(index, brief(record)) for index, record in records], now) == found
    return found


def test_two_receipts_that_tell_one_story_match() -> None:
    source = receipt("source", outcome="handed-over")
    held = source[1]["details"]["body_sha256"]
    found = report(decision(), source, receipt("destination", peer_receipt_sha256=held))
    assert (found.permits, found.matched, found.pending, found.findings) == (1, 1, 0, ())


def test_one_or_none_is_found_after_its_time_and_not_before() -> None:
    for records, what, why in (
        ([decision()], "none", "neither host"),
        ([decision(), receipt("source")], "one", "the destination has certified nothing"),
        ([decision(), receipt("destination")], "one", "the source has certified nothing"),
    ):
        assert report(*records, now=LATER - 1).pending == 1
        (finding,) = report(*records).findings
        assert (finding.what, finding.record, finding.vm) == (what, 7, "web")
        assert why in finding.why[0]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"outcome": "discarded"}, "the source says running, the destination discarded"),
        ({"vm": "another"}, "another vm"),
        ({"permit_sha256": "1" * 64}, "another permit_sha256"),
        ({"source_fingerprint": "1" * 64}, "another source_fingerprint"),
        ({"channels": []}, "counts 1 channel, the destination 0"),
        ({"channels": [MIRRORED | {"received_bytes": 8}]}, "the source sent 9 bytes, the destination received 8"),
        ({"channels": [MIRRORED | {"sent_frames": 5}]}, "the source received 1 frames, the destination sent 5"),
        ({"peer_receipt_sha256": "1" * 64}, "the destination got another receipt from its peer"),
    ],
)
def test_two_that_differ_are_found_at_once(changes: dict[str, Any], why: str) -> None:
    (finding,) = report(decision(), receipt("source"), receipt("destination", **changes), now=0).findings
    assert finding.what == "differ"
    assert any(why in one for one in finding.why), finding.why


def test_a_destination_that_lacks_memory_of_what_its_source_calls_completed_is_found() -> None:
    source = receipt("source", outcome="completed")
    (finding,) = report(decision(), source, receipt("destination", lacks_memory=True)).findings
    assert finding.why == ("the source says completed, the destination that memory had not come",)
    assert not report(decision(), source, receipt("destination", lacks_memory=True), receipt("destination")).findings
    assert not report(
        decision(), receipt("source", outcome="handed-over"), receipt("destination", lacks_memory=True)
    ).findings


def test_content_that_differs_is_found() -> None:
    ours, theirs = ({"0/source-to-destination": digit * 64} for digit in "12")
    both = receipt("source", content_digests=ours), receipt("destination", content_digests=theirs)
    (finding,) = report(decision(), *both).findings
    assert "they certify different content" in finding.why


@pytest.mark.parametrize("silent", ["source", "destination"])
def test_a_host_that_certifies_no_content_where_its_peer_does_is_found(silent: str) -> None:
    """Both do where a permit requires it. One that carried something else would leave it out."""
    content = {"source": {"0/source-to-destination": "1" * 64}, "destination": {"0/source-to-destination": "1" * 64}}
    both = (receipt(role, content_digests=None if role == silent else said) for role, said in content.items())
    (finding,) = report(decision(), *both).findings
    assert (finding.what, finding.why) == ("differ", (f"the {silent} certifies no content, its peer does",))


@pytest.mark.parametrize("role", ["source", "destination"])
def test_who_says_that_it_was_restarted_is_found_whatever_it_hides_and_called_no_liar(role: str) -> None:
    """Else a host that carried other content would say so."""
    receipts: dict[str, dict[str, Any]] = {
        "source": {"content_digests": {"0/source-to-destination": "1" * 64}},
        "destination": {"content_digests": {"0/source-to-destination": "2" * 64}},
        role: {"content_digests": None, "channels": [], "lacks_counts": True},
    }
    told = [receipt(each, **changes) for each, changes in receipts.items()]
    (finding,) = report(decision(), *told).findings
    assert (finding.what, finding.why) == ("uncounted", (UNCOUNTED[role],))
    assert report(decision(), *told).counts()["uncounted"] == 1


def test_a_restart_excuses_nothing_but_what_a_restart_does() -> None:
    lacking = {"channels": [], "lacks_counts": True}
    (finding,) = report(decision(), receipt("source"), receipt("destination", **lacking, outcome="discarded")).findings
    assert finding.what == "differ"
    (finding,) = report(decision(), receipt("source", **lacking), receipt("destination", vm="another")).findings
    assert (finding.what, finding.why) == ("differ", ("they name another vm", UNCOUNTED["source"]))
    held = {"peer_receipt_sha256": "1" * 64}
    (finding,) = report(decision(), receipt("source", **lacking), receipt("destination", **held)).findings
    assert (finding.what, finding.why) == ("uncounted", (BEFORE_RESTART["destination"], UNCOUNTED["source"]))
    (finding,) = report(decision(), receipt("source"), receipt("destination", **lacking, **held)).findings
    assert finding.what == "differ", "it is the source that would have had to be restarted"


def test_a_broken_session_need_not_have_the_same_counts() -> None:
    broken = receipt("destination", outcome="discarded", channels=[MIRRORED | {"received_bytes": 3}])
    assert report(decision(), receipt("source", outcome="failed"), broken).findings == ()


def test_what_was_denied_or_is_of_an_earlier_time_is_no_finding() -> None:
    assert report(decision(permit=None), receipt("source")).permits == 0
    assert report(receipt("source")).findings == ()


def test_a_permit_that_was_withdrawn_needs_no_receipt_and_must_have_none() -> None:
    withdrawn = 8, {"kind": "migration.withdrawn", "migration_id": "m", "outcome": "cancelled", "details": {}}
    assert report(decision(), withdrawn).counts() == dict.fromkeys(report().counts(), 0)
    (finding,) = report(decision(), withdrawn, receipt("source"), now=0).findings
    assert (finding.what, finding.why) == ("differ", ("the source used a permit that was withdrawn",))


@pytest.mark.parametrize("body", ["{", '{"a": ' + "[" * 100_000, '{"a": "\\ud800"}'])
def test_a_receipt_that_is_no_json_is_a_finding_and_no_crash(body: str) -> None:
    bad = receipt("destination")
    bad[1]["details"]["body"] = body
    (finding,) = report(decision(), receipt("source"), bad).findings
    assert finding.why == ("a receipt cannot be read",)


@pytest.mark.whole
async def test_the_gateway_answers_auditors_and_records_what_it_found(running: Running) -> None:
    migration_id, permit = await running.begin()
    for host, role, outcome in (("a", "source", "handed-over"), ("b", "destination", "discarded")):
        body = running.receipt(host, permit, role, outcome)
        assert (await running.client(host).post("/v1/receipts", json=body)).status_code in {200, 201}
    since = {"since": "2026-01-01T00:00:00.000000Z"}
    carol = running.person("carol")
    answer = await carol.post("/v1/reconcile/hosts", json=since)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    (finding,) = document["findings"]
    assert (finding["what"], finding["migration_id"]) == ("differ", migration_id)
    (record,) = await running.records("audit.reconciled")
    assert record["sequence"] == document["record_index"]
    assert record["outcome"] == "failed"
    assert record["details"]["counts"] == {
        "permits": 1,
        "matched": 0,
        "pending": 0,
        "none": 0,
        "one": 0,
        "differ": 1,
        "uncounted": 0,
    }
    assert record["details"]["findings"] == [
        {"what": "differ", "migration_id": migration_id, "record": finding["record"]}
    ]
    assert (await running.person("bob").post("/v1/reconcile/hosts", json=since)).status_code == 403
    assert (await carol.post("/v1/reconcile/hosts", json={"since": "yesterday"})).status_code == 400


@pytest.mark.whole
async def test_questions_over_a_whole_span_hold_little_of_each_record_and_come_one_at_a_time(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may read the log could else have the gateway hold gigabytes, by asking some times at once."""
    await running.begin()
    reading = running.gateway.desk.reading
    asks = reading._newest
    at_once = most = 0
    held: list[Any] = []

    async def asking(*args: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await trio.sleep(0.02)
        found = await asks(*args)
        held.extend(record for _, record in found)
        at_once -= 1
        return found

    monkeypatch.setattr(reading, "_newest", asking)

    async def ask(who: str) -> None:
        answer = await running.person(who).post("/v1/reconcile/hosts", json={"since": "2026-01-01T00:00:00.000000Z"})
        assert answer.status_code == 200, answer.text

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(ask, "carol")
    assert most == 1
    assert len(held) == 4
    (whole,) = await running.records("migration.decision")
    assert len(msgspec.json.encode(held[0])) < len(msgspec.json.encode(whole)) / 5
