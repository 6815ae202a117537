"""A host is emptied with both gateways dead: real relays, QEMUs and guest, by permits that were logged beforehand."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from certs.files import read_private_key
from gateway.demo.machines import run_state, wait_passes
from gateway.demo.processes import Commands, end_process
from gateway.starter import AUDIENCE, LOCAL_ISSUER, Site
from policy.identity.local import LocalDirectory, issue_token
from tests.gateway.conftest import Running, running_gateway
from tests.gateway.real_site import serve_relays, start_guests
from tests.gateway.test_revocation_real import MEMORY_MIB, UUID, image, lay_out
from tests.gateway.test_watch import edit

__all__ = ["image"]  # the fixture
pytestmark = [pytest.mark.real, pytest.mark.whole]


@pytest.fixture
def site() -> Iterator[Site]:
    """Short: unix sockets live in it. Alice's group may evacuate here."""
    with tempfile.TemporaryDirectory(prefix="sl") as name:
        made = lay_out(Path(name) / "s", 400)
        edit(made.people, lambda text: text.replace('["operators"]', '["operators", "production-operators"]'))
        edit(made.gateway_config, lambda text: text + "\n[evacuation]\n")
        yield made


async def test_a_guest_leaves_by_a_permit_of_hours_ago_and_the_log_learns_of_it_later(site: Site, image: Path) -> None:
    commands = Commands(site.directory)
    socket = str(site.directory / "relay-a" / "control.sock")
    async with AsyncExitStack() as stack:
        await serve_relays(commands, stack, site)
        source, destination = await start_guests(site, stack, UUID, image, MEMORY_MIB)
        counted = await wait_passes(source, 1)

        code, answer = await commands.run("evacuation", "status", "--socket", socket)
        assert (code, answer) == (0, {"evacuations": []})
        code, refused = await commands.run("migrate", "counter", "--evacuation", "--socket", socket)
        assert code == 1
        assert "no evacuation was prepared" in refused["error"]["message"]

        # The gateway is a process of its own, so that it can be killed.
        gateway = commands.serve("gateway", "gateway", "serve", "--config", str(site.gateway_config))
        running = await stack.enter_async_context(gateway)
        token = site.directory / "token"
        token.write_text(token_of(site, "alice"))
        token.chmod(0o600)
        signed_in = ["--gateway", f"https://{running.listen}", "--ca", str(site.ca), "--token-file", str(token)]
        wish = ["a", "--hours", "2", "--reason", "CHG-9: both gateways are moved"]
        with trio.fail_after(60):
            while (await commands.run("evacuation", "prepare", *wish, *signed_in))[0]:
                await trio.sleep(0.5)  # until the relay has polled
        running.process.kill()
        await end_process(running.process)

        held = list((site.directory / "relay-a" / "evacuations").iterdir())
        assert [path.stat().st_mode & 0o777 for path in held] == [0o600]
        code, moved = await commands.run("migrate", "counter", "--evacuation", "--socket", socket)
        assert code == 0, moved
        assert moved["state"] == "completed"
        assert await run_state(destination) == "running"
        assert source.ended
        await wait_passes(destination, counted + 2, earlier=source.printed())
        again, words = await commands.run("migrate", "counter", "--evacuation", "--socket", socket)
        assert again == 1
        assert "was used" in words["error"]["message"]

        # The relays kept their receipts, and bring them when the gateway is back.
        async with running_gateway(site) as back:
            with trio.fail_after(60):
                while len(receipts := await back.records("migration.receipt")) < 2:
                    await trio.sleep(0.1)
            assert {each["outcome"] for each in receipts} == {"completed", "running"}
            (decided,) = await back.records("evacuation.decision")
            assert decided["details"]["action"] == "Evacuate"
            assert {each["migration_id"] for each in receipts} == {decided["migration_id"]}
            (prepared, *_) = [r for r in await back.records("evacuation.prepared") if r["outcome"] == "completed"]
            assert prepared["details"]["permits"] == 1
            hosts = {"since": "2020-01-01T00:00:00.000000Z"}
            compared = (await back.person("carol").post("/v1/reconcile/hosts", json=hosts)).json()
            assert compared["findings"] == []
            assert compared["counts"]["matched"] == 1
            with trio.fail_after(30):
                while (await _place(back))["host"] != "b":
                    await trio.sleep(0.1)
            assert await back.records("placement.unpermitted") == []
        code, moves = await commands.run("audit", "who-moved", "counter", "--log", str(site.log))
        assert code == 0
        (move,) = moves["moves"]
        assert move["ended"] == "completed: both hosts certify it", "an auditor is told of it as of any move"
        code, verified = await commands.run("audit", "verify", str(site.log), "--key", site.vkey)
        assert code == 0, verified


def token_of(site: Site, username: str) -> str:
    person = LocalDirectory.load(site.people).people[username]
    key = read_private_key(site.directory / "token.key")
    return issue_token(person, key, LOCAL_ISSUER, AUDIENCE, int(datetime.now(UTC).timestamp()), 900)  # type: ignore[arg-type]


async def _place(back: Running) -> dict[str, object]:
    answer = await back.person("carol").get("/v1/vms", params={"prefix": "counter", "limit": 1})
    return answer.json()["vms"][0]  # type: ignore[no-any-return]
