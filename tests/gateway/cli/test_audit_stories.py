"""`sealane audit show`, `migration` and `who-moved`: a whole migration told, and whatever a record holds harmless."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from audit.checkpoint import LogSigner
from audit.log import Log
from audit.record import Actor, Record, Vm, encode_entry
from gateway.cli.errors import Refused
from gateway.cli.proving import proof_of_one, sealed_folder
from gateway.cli.record_replies import NumberedRecord
from gateway.cli.stories import ended, life_of, moves_of, story_of
from tests.audit.query.documents import documents
from tests.gateway.cli.conftest import CannedGateway, Sealane, last_object, only_error_line
from tests.gateway.cli.test_audit import EVIL
from tests.gateway.cli.test_record_folder import SIGNER

UUID = "00000000-0000-4000-8000-000000000001"
SOURCE, DESTINATION = "spiffe://bank.example/host/host-a", "spiffe://bank.example/host/host-b"


def entry(sequence: int, kind: str, **members: Any) -> bytes:
    values: dict[str, Any] = {
        "kind": kind,
        "origin": SIGNER.origin,
        "sequence": sequence,
        "boot_id": "boot",
        "time": f"2026-11-22T21:42:{sequence:02}.000000Z",
        "monotonic_ns": sequence * 10**9,
        "migration_id": "m-1",
        "vm": Vm(UUID, "web-1"),
        "source": SOURCE,
        "destination": DESTINATION,
    } | members
    return encode_entry(Record(**values), SIGNER.sign, SIGNER.key_id)


def receipt(sequence: int, role: str, outcome: str) -> bytes:
    details = {
        "role": role,
        "downtime_ms": 240,
        "sent_bytes": 5000,
        "chain": ["x"],
        "body": json.dumps({"lane_cipher": "AES-256-GCM", "resumptions": 2}),
        "tls": {"version": "TLSv1.3", "group": "X25519MLKEM768", "cipher": "TLS_AES_256_GCM_SHA384"},
    }
    return entry(sequence, "migration.receipt", outcome=outcome, details=details)


DECISION = {
    "asked": {"vm": "web-1", "destination": "host-b", "ticket": "CHG-7"},
    "client_address": "192.0.2.7",
    "decision": {
        "allowed": True,
        "policies": [{"id": "operators-move", "effect": "permit", "reason": "operators move what is theirs"}],
        "errors": [],
        "bundle_digest": "ab" * 32,
    },
    "permit": {"jti": "j-1", "exp": 1_790_000_000},
}
ALICE = Actor("okta#alice", "alice", "oidc", "https://issuer.example", ("ops", "staff"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    denied = {"decision": {"allowed": False, "denied_because": "card data stays", "policies": [], "errors": []}}
    entries = [
        entry(0, "migration.decision", outcome="allowed", actor=ALICE, reason="empty host-a", details=DECISION),
        receipt(1, "source", "completed"),
        receipt(2, "destination", "running"),
        entry(3, "migration.decision", outcome="denied", actor=Actor("m", "mallory", "local"), migration_id="m-2",
              destination=None, details=denied | {"asked": {"destination": "host-zz"}}),
        entry(4, "heartbeat", migration_id=None, vm=None, source=None, destination=None, details={"n": 1}),
    ]  # fmt: skip
    with Log.open(tmp_path / "log", SIGNER) as log:
        log.append([lambda _first: entries])
    return tmp_path / "log"


def test_a_decision_tells_who_asked_who_allowed_it_and_how_it_ended(log: Path, sealane: Sealane) -> None:
    told = sealane("audit", "show", "0", "--log", log).stdout
    for words in (
        "alice (okta#alice), authenticated by oidc, vouched for by https://issuer.example, from 192.0.2.7",
        "ops, staff",
        "web-1 (" + UUID,
        f"{SOURCE} → {DESTINATION}",
        "empty host-a",
        "CHG-7",
        "allowed",
        "operators-move (permit): operators move what is theirs",
        "ab" * 32,
        "TLSv1.3, X25519MLKEM768, TLS_AES_256_GCM_SHA384, lanes AES-256-GCM",
        "stood still for 240 ms",
        "resumed 2 times",
        "signed by its certificate",
        "completed: both hosts certify it",
        "sealane audit prove 0",
    ):
        assert words in told, words


@pytest.mark.parametrize(("index", "hashes"), [(0, "3 hashes"), (4, "1 hash")])
def test_with_a_key_it_is_proven_that_the_record_is_in_the_log(
    index: int, hashes: str, log: Path, sealane: Sealane
) -> None:
    told = " ".join(sealane("audit", "show", index, "--log", log, "--key", SIGNER.vkey).stdout.split())
    assert f"verified: signed by itself; led by {hashes} to the signed state of {SIGNER.origin} at 5 ent" in told


def test_what_is_not_in_the_log_is_not_proven(log: Path, sealane: Sealane) -> None:
    result = sealane(
        "audit", "show", "0", "--log", log, "--key", LogSigner(SIGNER.origin, Ed25519PrivateKey.generate()).vkey
    )
    assert "NOT PROVEN" in only_error_line(result)
    sealed = sealed_folder(log)
    with pytest.raises(Refused, match="something else there than what was shown"):
        proof_of_one(sealed, 3, {"kind": "heartbeat"}, [SIGNER.vkey])
    tail = log / "tail" / "0"
    tail.write_bytes(tail.read_bytes().replace(b"empty host-a", b"empty host-b"))
    result = sealane("audit", "show", "0", "--log", log, "--key", SIGNER.vkey)
    assert "NOT PROVEN" in only_error_line(result)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("completed", "completed: both hosts certify it"),
        ("failed", "the destination certifies that it runs there; the source has not certified the end"),
        ("handed-over", "the destination certifies that it runs there; the source has part of its memory"),
    ],
)
def test_what_both_hosts_certify_is_told_in_words(source: str, words: str) -> None:
    said = {"source": source, "destination": "running"}
    records = [{"kind": "migration.receipt", "outcome": said[role], "details": {"role": role}} for role in said]
    assert ended([NumberedRecord(index, each) for index, each in enumerate(records)]) == words


@pytest.mark.parametrize(
    ("kind", "details"),
    [
        ("migration.decision", {"action": "OpenPort", "asked": {"ports": ["backup"]}}),
        ("migration.elsewhere", {"named_port": "backup"}),
    ],
)
def test_a_named_port_is_told_as_one_and_nobody_says_that_its_vm_runs_elsewhere(
    kind: str, details: dict[str, Any]
) -> None:
    said = {"moves_guest": False, "role": "destination"}
    decided = NumberedRecord(1, {"kind": kind, "migration_id": "m", "vm": {"name": "web-1"}, "details": details})
    arrived = NumberedRecord(
        2, {"kind": "migration.receipt", "migration_id": "m", "outcome": "completed", "details": said}
    )
    told = dict(story_of(decided, [arrived]))
    assert told["named port"] == "backup: another program's stream; the VM stays where it is"
    (move,) = moves_of([decided], [arrived])
    assert (move.port, move.ended, told["outcome"]) == ("backup", *["destination certifies completed"] * 2)


def test_a_denial_tells_why_and_that_nobody_knows_the_host(log: Path, sealane: Sealane) -> None:
    told = sealane("audit", "show", "3", "--log", log).stdout
    assert "denied" in told
    assert "card data stays" in told
    assert "host-zz: nobody knows such a host" in told
    assert "unknown, which is not none" in told


@pytest.mark.parametrize("recovery", [True, False])
def test_a_receipt_tells_that_it_is_of_a_recovery(recovery: bool) -> None:
    details = {"role": "source", **({"recovery": True} if recovery else {})}
    told = story_of(NumberedRecord(5, {"kind": "migration.receipt", "outcome": "completed", "details": details}))
    assert ("went on with interrupted post-copy" in str(told)) is recovery


@pytest.mark.parametrize("lacks", [True, False])
def test_a_receipt_tells_that_memory_had_not_come(lacks: bool) -> None:
    details = {"role": "destination", **({"lacks_memory": True} if lacks else {})}
    one = NumberedRecord(5, {"kind": "migration.receipt", "outcome": "running", "details": details})
    assert ("part of its memory had not come" in str(story_of(one))) is lacks
    assert ("the source has part of its memory" in ended([one])) is lacks
    whole = NumberedRecord(6, {**one.record, "details": {"role": "destination", "recovery": True}})
    assert "the source has part of its memory" not in ended([one, whole])
    done = NumberedRecord(7, {"kind": "migration.receipt", "outcome": "completed", "details": {"role": "source"}})
    assert ("that memory had not come" in ended([one, done])) is lacks
    assert ended([one, whole, done]) == "completed: both hosts certify it"


@pytest.mark.parametrize("lacks", [True, False])
def test_a_receipt_tells_that_its_relay_was_restarted(lacks: bool) -> None:
    details = {"role": "source", **({"lacks_counts": True} if lacks else {})}
    told = story_of(NumberedRecord(5, {"kind": "migration.receipt", "outcome": "completed", "details": details}))
    assert ("its relay was restarted" in str(told)) is lacks


@pytest.mark.parametrize("details", [{}, {"host": SOURCE}])
def test_a_record_about_one_host_tells_of_no_other(details: dict[str, Any]) -> None:
    told = story_of(
        NumberedRecord(5, {"kind": "host.revoked", "source": SOURCE, "destination": None, "details": details})
    )
    assert [line.text for line in told if line.what == "host"] == [SOURCE]
    assert "nobody knows" not in str(told)


def test_a_record_of_another_kind_tells_its_details(log: Path, sealane: Sealane) -> None:
    document = last_object(sealane("audit", "show", "4", "--log", log, "--json"))
    assert {"what": "n", "text": "1"} in document["story"]
    assert document["record"]["kind"] == "heartbeat"
    assert '"sequence": 4' in sealane("audit", "show", "4", "--log", log, "--raw").stdout


def test_a_migration_is_told_from_its_request_to_its_last_receipt(log: Path, sealane: Sealane) -> None:
    document = last_object(sealane("audit", "migration", "m-1", "--log", log, "--json"))
    assert [one["index"] for one in document["records"]] == [0, 1, 2]
    whats = [line["what"] for line in document["story"]]
    assert whats[-2:] == ["record 1", "record 2"]
    assert "both hosts certify" in sealane("audit", "migration", "m-1", "--log", log).stdout
    assert "check the id" in only_error_line(sealane("audit", "migration", "m-9", "--log", log))


def test_who_moved_a_vm_tells_every_request_with_its_outcome(log: Path, sealane: Sealane) -> None:
    document = last_object(sealane("audit", "who-moved", "web-1", "--log", log, "--json"))
    first, second = document["moves"]
    assert (first["who"], first["source"], first["destination"], first["decided"]) == (
        "alice", "host-a", "host-b", "allowed",
    )  # fmt: skip
    assert (first["downtime_ms"], first["ended"]) == (240, "completed: both hosts certify it")
    assert (second["who"], second["destination"], second["decided"], second["ended"]) == (
        "mallory", "host-zz", "denied", "",
    )  # fmt: skip
    assert last_object(sealane("audit", "who-moved", UUID, "--log", log, "--json"))["moves"] == document["moves"]
    assert "2 requests" in sealane("audit", "who-moved", "web-1", "--log", log).stdout


def test_a_permit_that_was_taken_back_is_told_as_that(tmp_path: Path, sealane: Sealane) -> None:
    because = {"because": "cancelled before it began: no relay had the permit"}
    entries = [
        entry(0, "migration.decision", outcome="allowed", actor=ALICE, details=DECISION),
        entry(1, "migration.withdrawn", outcome="cancelled", details=because),
    ]
    with Log.open(tmp_path / "log", SIGNER) as log:
        log.append([lambda _first: entries])
    (move,) = last_object(sealane("audit", "who-moved", "web-1", "--log", tmp_path / "log", "--json"))["moves"]
    assert move["ended"] == "cancelled before it began: the permit was withdrawn"
    for words in ("show 0", "show 1", "migration m-1"):
        told = sealane("audit", *words.split(), "--log", tmp_path / "log").stdout
        assert move["ended"] in told, words
        assert "no receipt" not in told


@pytest.mark.parametrize("words", ["show 1", "migration m-1", "who-moved web-1"])
def test_what_others_wrote_stays_text(logged_in: CannedGateway, sealane: Sealane, words: str) -> None:
    evil: dict[str, Any] = {
        "kind": "migration.decision", "outcome": EVIL, "time": EVIL, "migration_id": EVIL, "reason": EVIL,
        "actor": {"id": EVIL, "name": EVIL, "issuer": EVIL, "groups": [EVIL]}, "vm": {"name": EVIL, "uuid": EVIL},
        "source": EVIL, "destination": EVIL,
        "details": {"decision": {"policies": [{"id": EVIL, "reason": EVIL}], "errors": [EVIL]}, EVIL: EVIL},
    }  # fmt: skip
    logged_in.answer("GET", "/v1/records", (200, {"records": [{"index": 1, "record": evil}], "next": None}))
    logged_in.answer("GET", "/v1/records/1", (200, {"index": 1, "record": evil, "entry": "x"}))
    result = sealane("audit", *words.split())
    assert result.exit_code == 0, result.output
    assert not set(result.stdout) & set("\x1b\x9b\x07\r")
    assert not any(line.startswith("record") for line in result.stdout.splitlines())


@given(st.lists(documents(), max_size=4))
def test_any_records_have_a_story(found: list[dict[str, Any]]) -> None:
    numbered = [NumberedRecord(index, one) for index, one in enumerate(found)]
    for one in numbered:
        assert story_of(one, numbered)
    life_of(numbered)
    assert len(moves_of(numbered, numbered)) == len(numbered)
