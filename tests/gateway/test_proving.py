"""A proof that an auditor takes out of a running gateway holds without it; taking it is recorded."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import trio

from audit.export import AskedQuery, export_entries, export_range
from audit.verify_bundle import verify_bundle
from gateway.cli.client import GatewayClient
from gateway.cli.errors import CommandError
from gateway.cli.proving import sealed_gateway, write_bundle
from gateway.cli.settings import ClientSettings
from tests.gateway.conftest import Running


def client(running: Running, username: str) -> GatewayClient:
    settings = ClientSettings(running.url, running.site.ca, Path("unused"), 20)
    return GatewayClient(settings, running.token(username))


async def test_a_proof_out_of_a_running_gateway_verifies_with_its_key_alone(running: Running, tmp_path: Path) -> None:
    for _ in range(3):
        await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b", "reason": "x"})

    def take() -> None:
        with client(running, "carol") as asked:
            sealed = sealed_gateway(asked)
            write_bundle(tmp_path / "some.proof", export_entries(sealed, [0, sealed.tree.size - 1]))
            query = AskedQuery("vm:web", datetime.now(UTC).isoformat())
            write_bundle(tmp_path / "all.proof", export_range(sealed, 0, sealed.tree.size, query=query))

    await trio.to_thread.run_sync(take)
    some = verify_bundle(tmp_path / "some.proof", [running.site.vkey])
    assert (some.problems, some.entries) == ([], 2)
    whole = verify_bundle(tmp_path / "all.proof", [running.site.vkey])
    assert (whole.problems, whole.range) == ([], (0, whole.size))
    assert whole.size >= 4
    assert any(
        "log" in str(read["details"]) or "tile" in str(read["details"]) for read in await running.records("audit.read")
    )


async def test_who_may_not_read_the_log_gets_no_proof(running: Running, tmp_path: Path) -> None:
    refused: list[CommandError] = []

    def take() -> None:
        with client(running, "alice") as asked:
            try:
                sealed = sealed_gateway(asked)
                write_bundle(tmp_path / "x.proof", export_entries(sealed, [0]))
            except CommandError as error:
                refused.append(error)

    await running.person("alice").post("/v1/decisions", json={"vm": "web", "destination": "b"})
    await trio.to_thread.run_sync(take)
    assert refused[0].code == "not_allowed"
    assert not (tmp_path / "x.proof").exists()
