"""The command, as processes of their own, against the real gateway; the test plays the relays."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from policy.permit import VerifiedPermit
from tests.gateway.cli.conftest import Sealane, last_object
from tests.gateway.conftest import Running

pytestmark = pytest.mark.whole

PROGRAM = "from gateway.cli.main import run; run()"


@dataclass
class Ended:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@dataclass
class Person:
    """Somebody at a shell: a home of their own, with a client.toml for this gateway."""

    running: Running
    name: str
    home: Path
    started: list[trio.Process] = field(default_factory=list)

    async def sealane(self, *arguments: object, expected: int = 0) -> Ended:
        """Run the command; its exit code must be the expected one."""
        command = [sys.executable, "-c", PROGRAM, *(str(one) for one in arguments)]
        async with trio.open_nursery() as nursery:
            out: list[bytes] = []
            errors: list[bytes] = []
            process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"HOME": str(self.home), "COLUMNS": "160"},
            )
            self.started.append(process)
            with trio.fail_after(60):
                nursery.start_soon(_drain, process.stdout, out)
                nursery.start_soon(_drain, process.stderr, errors)
                await process.wait()
        ended = Ended(process.returncode or 0, b"".join(out).decode(), b"".join(errors).decode())
        assert ended.code == expected, ended
        return ended

    async def login(self) -> None:
        password = self.running.site.directory / "passwords" / self.name
        ended = await self.sealane("login", "--user", self.name, "--password-file", password, "--json")
        assert ended.document["user"] == self.name

    def take_token(self) -> None:
        """As from an issuer of the site's own: a bare token, without the wait for a password."""
        file = self.home / ".config" / "sealane" / "token.json"
        file.touch(0o600)
        file.write_text(self.running.token(self.name) + "\n")


async def _drain(stream: trio.abc.ReceiveStream | None, into: list[bytes]) -> None:
    assert stream is not None
    async with stream:
        async for part in stream:
            into.append(bytes(part))


@pytest.fixture
def person(running: Running, tmp_path: Path) -> Callable[[str], Person]:
    def make(name: str) -> Person:
        home = tmp_path / f"home-{name}"
        folder = home / ".config" / "sealane"
        folder.mkdir(parents=True)
        (folder / "client.toml").write_text(f'gateway = "{running.url}"\nca = "{running.site.ca}"\n')
        return Person(running, name, home)

    return make


async def test_people_ask_and_an_auditor_finds_and_proves_it(
    running: Running, person: Callable[[str], Person], sealane: Sealane
) -> None:
    alice, bob, carol = person("alice"), person("bob"), person("carol")
    await alice.login()
    bob.take_token()
    carol.take_token()
    await running.poll("a")

    # It may move; that it cannot is because nobody answers for the relays here.
    allowed = await alice.sealane("migrate", "web", "--to", "b", "--check", "--reason", "CHG-1042", expected=1)
    assert "would be ALLOWED" in allowed.stdout
    assert "operators-move" in allowed.stdout
    denied = await bob.sealane("migrate", "web", "--to", "b", "--json", expected=1)
    assert denied.document["outcome"] == "denied"
    assert denied.document["decision"]["allowed"] is False
    refused = await bob.sealane("audit", "query", expected=1)
    assert refused.stderr.count("\n") == 1

    index = denied.document["record_index"]
    found = await carol.sealane("audit", "query", "--actor", "Bob Guest", "--kind", "migration.decision", "--json")
    assert [one["index"] for one in found.document["records"]] == [index]
    shown = await carol.sealane("audit", "show", index, "--json")
    assert shown.document["record"]["outcome"] == "denied"
    tail = await carol.sealane("audit", "tail", "-n", "200", "--json")
    assert tail.document["records"][-1]["record"]["kind"] == "audit.read"

    # The same log from its folder, by somebody who has neither gateway nor token.
    log, vkey = running.site.log, running.site.certs / "gateway" / "log.vkey"
    terms = ["--actor", "Bob Guest", "--kind", "migration.decision"]
    assert last_object(sealane("audit", "query", "--log", log, *terms, "--json")) == found.document
    assert last_object(sealane("audit", "show", index, "--log", log, "--json")) == shown.document
    verdict = last_object(sealane("audit", "verify", log, "--key", vkey, "--json"))
    assert (verdict["outcome"], verdict["problems"]) == ("verified", [])
    assert verdict["size"] > index


async def take_order(running: Running) -> tuple[str, VerifiedPermit]:
    """As the relay of host a: wait for an order to migrate."""
    (order,) = await running.poll("a", wait_seconds=30)
    assert order["kind"] == "migrate"
    return order["migration_id"], running.open_permit(order["permit"])


async def send(running: Running, host: str, path: str, document: dict[str, Any]) -> None:
    """As a relay: report."""
    answer = await running.client(host).post(path, json=document)
    assert answer.status_code in {200, 204}, answer.text


async def test_a_migration_is_followed_to_its_receipts(running: Running, person: Callable[[str], Person]) -> None:
    alice = person("alice")
    alice.take_token()
    await running.poll("a")

    async def play_relays() -> None:
        migration_id, permit = await take_order(running)
        numbers = {
            "transferred_bytes": 5,
            "remaining_bytes": 5,
            "total_bytes": 10,
            "rate_bytes_per_second": 1,
            "pass": 2,
        }
        await send(running, "a", "/v1/relay/progress", {"migration_id": migration_id, "state": "running", **numbers})
        await send(running, "b", "/v1/receipts", running.receipt("b", permit, "destination", "running"))
        await send(running, "a", "/v1/receipts", running.receipt("a", permit, "source", "completed"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play_relays)
        moved = await alice.sealane("migrate", "web", "--to", "b", "--json")
    assert (
        moved.document.items()
        >= {
            "outcome": "completed",
            "bytes": 1010,
            "downtime_ms": 12,
            "tls_version": "TLSv1.3",
            "key_exchange": "X25519MLKEM768",
        }.items()
    )


async def test_ctrl_c_cancels_at_the_relay(running: Running, person: Callable[[str], Person]) -> None:
    alice = person("alice")
    alice.take_token()
    await running.poll("a")

    async def play_relay() -> None:
        migration_id, permit = await take_order(running)
        alice.started[-1].send_signal(signal.SIGINT)
        (order,) = await running.poll("a", wait_seconds=30)
        assert order == {"kind": "cancel", "migration_id": migration_id}
        receipt = running.receipt("a", permit, "source", "cancelled", downtime_ms=None)
        await send(running, "a", "/v1/receipts", receipt)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play_relay)
        ended = await alice.sealane("migrate", "web", "--to", "b", "--json", expected=1)
    assert ended.document["outcome"] == "cancelled"
    assert "Asked the gateway to cancel" in ended.stderr
