"""`sealane migrate` as a person and as a program see it."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import follow
from tests.gateway.cli.conftest import (
    ALLOWED,
    DENIED,
    MIGRATION,
    CannedGateway,
    Sealane,
    last_object,
    only_error_line,
)

POLL = f"/v1/migrations/{MIGRATION}"
BODY = {
    "role": "source",
    "outcome": "completed",
    "vm_binding": "uuid",
    "tls": {"version": "TLSv1.3", "group": "X25519MLKEM768", "cipher": "TLS_AES_256_GCM_SHA384"},
    "lane_cipher": "AES-256-GCM",
    "channels": [{"channel": 0, "port": "memory", "sent_bytes": 1000, "received_bytes": 24}],
    "downtime_ms": 87,
}


def state(name: str, **progress: Any) -> tuple[int, dict[str, Any]]:
    return 200, {
        "migration_id": MIGRATION,
        "state": name,
        "progress": progress or None,
        "outcome": None,
        "receipts": [],
    }


def completed() -> tuple[int, dict[str, Any]]:
    receipt = {"role": "source", "record_index": 12, "body": json.dumps(BODY)}
    return 200, {"migration_id": MIGRATION, "state": "completed", "progress": None, "receipts": [receipt]}


@pytest.fixture
def gateway(logged_in: CannedGateway, monkeypatch: pytest.MonkeyPatch) -> CannedGateway:
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.001)
    answer = {"migration_id": MIGRATION, "record_index": 9, "decision": ALLOWED}
    logged_in.answer("POST", "/v1/migrations", (201, answer))
    running = state(
        "running", transferred_bytes=10, remaining_bytes=50, total_bytes=100, rate_bytes_per_second=7, **{"pass": 2}
    )
    logged_in.answer("GET", POLL, state("assigned"), running, state("handing_over"), completed())
    return logged_in


def test_a_moved_vm_is_told_with_decision_downtime_bytes_protection_and_record(
    gateway: CannedGateway, sealane: Sealane
) -> None:
    result = sealane("migrate", "web-1", "--to", "host-b", "--reason", "CHG-1042")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    for said in (
        "ALLOWED",
        "permit by operators-move: operators move what is theirs",
        "COMPLETED",
        "87 ms",
        "1.0 KiB",
        "TLSv1.3, X25519MLKEM768",
        "record      9",
        MIGRATION,
    ):
        assert said in result.stdout
    assert result.stdout.index(MIGRATION) < result.stdout.index("COMPLETED"), "who cancels it elsewhere needs it before"
    assert gateway.asked[0].body == {"vm": "web-1", "destination": "host-b", "reason": "CHG-1042"}


def test_as_json_it_is_one_object_on_the_last_line(gateway: CannedGateway, sealane: Sealane) -> None:
    result = sealane("migrate", "web-1", "--to", "host-b", "--json")
    document = last_object(result)
    assert result.stdout.count("\n") == 1
    assert (
        document.items()
        >= {
            "outcome": "completed",
            "record_index": 9,
            "migration_id": MIGRATION,
            "downtime_ms": 87,
            "bytes": 1024,
            "tls_version": "TLSv1.3",
            "key_exchange": "X25519MLKEM768",
            "vm_binding": "uuid",
        }.items()
    )
    assert document["decision"]["allowed"] is True


def test_a_denial_exits_1_and_shows_which_policy_and_why(gateway: CannedGateway, sealane: Sealane) -> None:
    denied = {"migration_id": MIGRATION, "record_index": 10, "decision": DENIED}
    gateway.answer("POST", "/v1/migrations", (403, denied))
    result = sealane("migrate", "web-1", "--to", "host-c")
    assert result.exit_code == 1
    assert "DENIED" in result.stdout
    assert "forbid by card-data-stays: card data stays in its zone" in result.stdout
    assert "record 10" in result.stdout
    assert last_object(sealane("migrate", "web-1", "--to", "host-c", "--json"))["outcome"] == "denied"
    assert {one.method for one in gateway.asked} == {"POST"}  # nothing was followed


@pytest.mark.parametrize(("decision", "code", "outcome"), [(ALLOWED, 0, "allowed"), (DENIED, 1, "denied")])
def test_a_check_asks_for_no_permit(
    gateway: CannedGateway, sealane: Sealane, decision: dict[str, Any], code: int, outcome: str
) -> None:
    gateway.answer("POST", "/v1/decisions", (200, {"decision": decision, "record_index": 11}))
    result = sealane("migrate", "web-1", "--to", "host-b", "--check")
    assert result.exit_code == code
    assert f"would be {outcome.upper()}" in result.stdout
    result = sealane("migrate", "web-1", "--to", "host-b", "--check", "--json")
    assert (result.exit_code, last_object(result)["outcome"]) == (code, outcome)
    assert {one.path for one in gateway.asked} == {"/v1/decisions"}


@pytest.mark.parametrize("final", ["failed", "cancelled"])
def test_a_migration_that_does_not_complete_exits_1(gateway: CannedGateway, sealane: Sealane, final: str) -> None:
    status, end = state(final)
    gateway.answer("GET", POLL, state("running"), (status, {**end, "message": "the source ran out of patience"}))
    result = sealane("migrate", "web-1", "--to", "host-b")
    assert result.exit_code == 1
    assert final.upper() in result.stdout
    assert "the source ran out of patience" in result.stdout


def test_ctrl_c_cancels_through_the_gateway_and_tells_the_outcome(gateway: CannedGateway, sealane: Sealane) -> None:
    cancel = f"{POLL}/cancel"
    gateway.answer("POST", cancel, (202, {}))
    gateway.answer("GET", POLL, state("running"), state("running"), state("cancelled"))
    take = gateway.take
    pressed = threading.main_thread().ident
    assert pressed is not None

    def press(method: str, path: str) -> tuple[int, Any]:
        if path == "/v1/migrations":
            # While the gateway is still deciding: the migration that then begins must not be lost.
            signal.pthread_kill(pressed, signal.SIGINT)
        return take(method, path)

    gateway.take = press  # type: ignore[method-assign]
    result = sealane("migrate", "web-1", "--to", "host-b", "--json")
    assert result.exit_code == 1
    assert last_object(result)["outcome"] == "cancelled"
    assert [one.path for one in gateway.asked if one.method == "POST"] == ["/v1/migrations", cancel]


def test_a_relay_that_is_away_exits_3(gateway: CannedGateway, sealane: Sealane) -> None:
    error = {
        "code": "relay_unreachable",
        "message": "the relay of host-a has not been heard of for 40 s",
        "who_must_act": "operator of the host",
        "next_step": "start it",
    }
    allowed_but = {"error": error, "record_index": 13, "migration_id": MIGRATION, "decision": ALLOWED}
    gateway.answer("POST", "/v1/migrations", (503, allowed_but))
    result = sealane("migrate", "web-1", "--to", "host-b", "--json")
    assert result.exit_code == 3
    what = "the relay of host-a has not been heard of for 40 s (record 13)"
    assert only_error_line(result) == f"sealane: {what}; the operator of the host must act; start it\n"
    assert last_object(result)["error"]["code"] == "relay_unreachable"


def test_without_a_token_nothing_is_asked(gateway: CannedGateway, sealane: Sealane, home: Path) -> None:
    (home / ".config/sealane/token.json").unlink()
    result = sealane("migrate", "web-1", "--to", "host-b")
    assert result.exit_code == 2
    assert "sealane login" in only_error_line(result)
    assert gateway.asked == []


@pytest.mark.parametrize("arguments", [[], ["web-1"], ["web-1", "--to"], ["web-1", "--to", "b", "--frobnicate"]])
def test_wrong_usage_exits_2(sealane: Sealane, arguments: list[str]) -> None:
    assert sealane("migrate", *arguments).exit_code == 2


def test_a_hostile_gateway_cannot_write_to_the_terminal(gateway: CannedGateway, sealane: Sealane) -> None:
    evil = "\x1b[2J[bold]\x9b31m\u202e\rx\nALLOWED  record 1"
    decision = {**DENIED, "denied_because": evil, "policies": [{"id": evil, "effect": evil, "reason": evil}]}
    decision |= {"errors": [evil], "bundle_digest": evil}
    gateway.answer("POST", "/v1/migrations", (403, {"migration_id": evil, "record_index": 1, "decision": decision}))
    said = [sealane("migrate", "x", "--to", "y").stdout, sealane("migrate", "x", "--to", "y", "--json").stdout]
    decision = {**decision, "allowed": True}
    gateway.answer(
        "POST", "/v1/migrations", (201, {"migration_id": MIGRATION, "record_index": 1, "decision": decision})
    )
    body = {"tls": {"version": evil, "group": evil, "cipher": 7}, "channels": [evil, {"sent_bytes": -5}], "role": evil}
    end = {"migration_id": evil, "state": "failed", "progress": {"message": evil}, "receipts": [{"body": body}]}
    gateway.answer("GET", POLL, (200, end))
    said.append(sealane("migrate", "x", "--to", "y").stdout)
    for text in said:
        assert not set(text) & set("\x1b\x9b\u202e\r")
        assert not any(line.startswith("ALLOWED  record 1\n") for line in text.splitlines(keepends=True)[1:])


def test_wishes_go_to_the_gateway_as_they_were_given_and_no_others(gateway: CannedGateway, sealane: Sealane) -> None:
    options = ["--post-copy-after-passes", "3", "--preempt", "--downtime-limit-ms", "50", "--with-disks"]
    assert sealane("migrate", "web-1", "--to", "host-b", *options).exit_code == 0
    assert gateway.asked[0].body == {
        "vm": "web-1",
        "destination": "host-b",
        "ports": ["disks", "memory"],
        "how": {"post_copy_after_passes": 3, "preempt": True, "downtime_limit_ms": 50},
    }


def test_a_migration_is_cancelled_by_its_id(logged_in: CannedGateway, sealane: Sealane) -> None:
    logged_in.answer("POST", f"{POLL}/cancel", (202, {"migration_id": MIGRATION}))
    result = sealane("migration", "cancel", MIGRATION, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"migration_id": MIGRATION, "cancel_requested": True}


def test_a_migration_is_shown_by_its_id(logged_in: CannedGateway, sealane: Sealane) -> None:
    logged_in.answer("GET", POLL, completed())
    assert sealane("migration", "show", MIGRATION).stdout == "completed\n"


def test_a_port_by_which_no_vm_moves_is_not_opened_to_wait_for_nobody(gateway: CannedGateway, sealane: Sealane) -> None:
    result = sealane("migrate", "web-1", "--to", "host-b", "--port", "backup")
    assert result.exit_code == 2
    assert "sealane relay open" in only_error_line(result)
    assert gateway.asked == []
