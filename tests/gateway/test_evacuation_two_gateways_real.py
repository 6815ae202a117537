"""A host is emptied while both gateways of its site are down: each prepares, both are killed, the guest leaves.

Afterwards both logs tell the whole story: the one that permitted it its decision and both receipts, the other one whose
permit that was, and the same receipts.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from gateway.demo.machines import run_state, wait_passes
from gateway.demo.processes import Commands, end_process
from gateway.starter import Site
from tests.gateway.real_site import serve, serve_relays, start_guests
from tests.gateway.test_evacuation_real import site, token_of
from tests.gateway.test_revocation_real import MEMORY_MIB, UUID, image
from tests.gateway.test_two_gateways_real import records, second_gateway

__all__ = ["image", "site"]  # the fixtures
pytestmark = [pytest.mark.real, pytest.mark.whole]


async def test_with_both_gateways_killed_a_guest_leaves_and_both_logs_tell_it_later(site: Site, image: Path) -> None:
    commands = Commands(site.directory)
    second_config, first, second = second_gateway(site)
    configs = {"gateway1": site.gateway_config, "gateway2": second_config}
    socket = str(site.directory / "relay-a" / "control.sock")
    token = site.directory / "token"
    token.write_text(token_of(site, "alice"))
    token.chmod(0o600)
    signed_in = ["--ca", str(site.ca), "--token-file", str(token)]
    wish = ["a", "--hours", "2", "--reason", "CHG-9: both gateways are moved", *signed_in]
    async with AsyncExitStack() as stack:
        gateways = [await serve(commands, stack, name, config) for name, config in configs.items()]
        await serve_relays(commands, stack, site)
        source, destination = await start_guests(site, stack, UUID, image, MEMORY_MIB)
        counted = await wait_passes(source, 1)
        prepared = []
        with trio.fail_after(120):  # each by itself, once it has heard of the relay
            for listen in (first, second):
                while (said := await commands.run("evacuation", "prepare", *wish, "--gateway", f"https://{listen}"))[0]:
                    assert said[1]["error"]["code"] in {"relay_unreachable", "not_known", "not_allowed"}, said
                    await trio.sleep(0.5)
                prepared.append(said[1])
        for gateway in gateways:
            gateway.process.kill()
            await end_process(gateway.process)

        code, moved = await commands.run("migrate", "counter", "--evacuation", "--socket", socket)
        assert code == 0, moved
        assert moved["state"] == "completed"
        assert await run_state(destination) == "running"
        assert source.ended
        await wait_passes(destination, counted + 2, earlier=source.printed())
        again, words = await commands.run("migrate", "counter", "--evacuation", "--socket", socket)
        assert again == 1, "what the other gateway prepared for it is no second move"
        assert "was used" in words["error"]["message"], words

        logs = {"gateway1": site.log, "gateway2": site.directory / "log2"}
        for name, config in configs.items():
            await serve(commands, stack, f"{name}-again", config)
        found: dict[str, list[dict[str, object]]] = {}
        with trio.fail_after(120):
            for name, log in logs.items():
                while len(found.setdefault(name, [])) < 2:
                    await trio.sleep(0.3)
                    found[name] = await records(log, commands, "migration.receipt")
        (migration,) = {each["migration_id"] for each in found["gateway1"] + found["gateway2"]}
        told = {name: await records(log, commands, "migration.elsewhere") for name, log in logs.items()}
        decided = {name: await records(log, commands, "evacuation.decision") for name, log in logs.items()}
        permitting = next(name for name in logs if migration in [each["migration_id"] for each in decided[name]])
        (other,) = set(logs) - {permitting}
        assert told[permitting] == []
        (shown,) = told[other]
        assert shown["migration_id"] == migration
        assert {each["outcome"] for each in found[other]} == {"completed", "running"}
        for name, log in logs.items():
            assert len(decided[name]) == 1, "each had decided on an evacuation of its own"
            assert await records(log, commands, "placement.unpermitted") == []
            code, moves = await commands.run("audit", "who-moved", "counter", "--log", str(log))
            assert code == 0, moves
            (move,) = moves["moves"]
            assert move["ended"] == "completed: both hosts certify it"
        for log, keys in ((logs["gateway1"], "gateway"), (logs["gateway2"], "gateway2")):
            key = (site.certs / keys / "log.vkey").read_text().strip()
            code, verified = await commands.run("audit", "verify", str(log), "--key", key)
            assert code == 0, verified
