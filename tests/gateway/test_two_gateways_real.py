"""Two gateways in one site, each a process with a log and keys of its own; one is killed under load.

Nothing fails but what was in flight, and that is asked again: relays and clients go on with the other one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from certs import layout
from gateway.demo.machines import run_state, wait_passes
from gateway.demo.processes import Commands, end_process
from gateway.starter import Site
from tests.gateway.conftest import free_address
from tests.gateway.real_site import serve, serve_relays, start_guests
from tests.gateway.test_evacuation_real import token_of
from tests.gateway.test_revocation_real import MEMORY_MIB, UUID, image, lay_out
from tests.gateway.test_watch import edit

__all__ = ["image"]  # the fixture
pytestmark = [pytest.mark.real, pytest.mark.whole]


@pytest.fixture
def site() -> Iterator[Site]:
    """Short: unix sockets live in it."""
    with tempfile.TemporaryDirectory(prefix="sl") as name:
        yield lay_out(Path(name) / "s", 400)


def second_gateway(site: Site) -> tuple[Path, str, str]:
    """Its configuration, beside the first one's, and where both listen. Other keys, another log, the same facts."""
    now = datetime.now(UTC)
    listen = free_address("127.0.0.1")
    other = site.directory / "other-keys"
    layout.init(other, site.trust_domain, "log.second/1", ["localhost"], ["127.0.0.1"], now)
    keys = site.certs / "gateway2"
    keys.mkdir()
    for name in ("permit.key", "permit.pub", "log.key", "log.vkey"):
        shutil.copy2(other / "gateway" / name, keys / name)
    shutil.rmtree(other)
    text = site.gateway_config.read_text()
    first = next(line.partition('"')[2].rstrip('"') for line in text.splitlines() if line.startswith("listen"))
    second = text.replace(f'"{first}"', f'"{listen}"').replace('name = "gateway"', 'name = "gateway2"')
    second = second.replace('"state"', '"state2"').replace('directory = "log"', 'directory = "log2"')
    for name in ("log.key", "permit.key"):
        second = second.replace(f"certs/gateway/{name}", f"certs/gateway2/{name}")
    second = second.replace(f'"{site.log_origin}"', '"log.second/1"')
    config = site.directory / "gateway2.toml"
    config.write_text(second + peer("gateway", "gateway"))
    edit(site.gateway_config, lambda text: text + peer("gateway2", "gateway2"))
    for host in ("a", "b"):
        edit(
            site.relay_config(host),
            lambda text: (
                text.replace('["certs/gateway/permit.pub"]', pinned("permit.pub"))
                .replace('["certs/gateway/log.vkey"]', pinned("log.vkey"))
                .replace("[gateway]\n", f'[gateway]\nothers = ["https://{listen}"]\n')
            ),
        )
    return config, first, listen


def peer(name: str, folder: str) -> str:
    keys = f'permit_keys = ["certs/{folder}/permit.pub"]\nlog_keys = ["certs/{folder}/log.vkey"]\n'
    return f'\n[[peers]]\nname = "{name}"\n{keys}'


def pinned(name: str) -> str:
    return json.dumps([f"certs/gateway/{name}", f"certs/gateway2/{name}"])


async def records(log: Path, commands: Commands, kind: str) -> list[dict[str, object]]:
    code, found = await commands.run("audit", "query", "--log", str(log), "--kind", kind)
    assert code == 0, found
    return [each["record"] for each in found["records"]]


async def test_one_gateway_is_killed_under_load_and_the_other_goes_on(site: Site, image: Path) -> None:
    commands = Commands(site.directory)
    second_config, first, second = second_gateway(site)
    client = site.directory / ".config" / "sealane"
    client.mkdir(parents=True)
    urls = [f"https://{first}", f"https://{second}"]
    (client / "client.toml").write_text(
        f'gateway = "{urls[0]}"\nothers = ["{urls[1]}"]\nca = "{site.ca}"\ntoken_file = "{site.directory}/token"\n'
    )
    token = site.directory / "token"
    token.write_text(token_of(site, "alice"))
    token.chmod(0o600)
    async with AsyncExitStack() as stack:
        doomed = await serve(commands, stack, "gateway1", site.gateway_config)
        await serve(commands, stack, "gateway2", second_config)
        await serve_relays(commands, stack, site)
        source, destination = await start_guests(site, stack, UUID, image, MEMORY_MIB)
        counted = await wait_passes(source, 1)
        check = ("migrate", "counter", "--to", "b", "--check", "--gateway")
        with trio.fail_after(90):  # until each gateway has heard of the guest from its relay
            for url in urls:
                while '"source": "report"' not in json.dumps(await commands.run(*check, url)):
                    await trio.sleep(0.2)

        outcomes: list[tuple[int, str]] = []

        async def load() -> None:
            """Somebody who asks all the time."""
            while True:
                code, answer = await commands.run("whoami")
                outcomes.append((code, json.dumps(answer)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            nursery.start_soon(load)
            with trio.fail_after(60):
                while len(outcomes) < 4:
                    await trio.sleep(0.05)
            doomed.process.kill()
            await end_process(doomed.process)
            killed = trio.current_time()
            before = len(outcomes)
            code, moved = await commands.run("migrate", "counter", "--to", "b")
            took = trio.current_time() - killed
            with trio.fail_after(60):
                while len(outcomes) < before + 4:
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        assert code == 0, moved
        print(f"moved {took:.1f} s after one gateway was killed, its command's start included")
        assert all(code == 0 for code, _ in outcomes), outcomes
        assert await run_state(destination) == "running"
        await wait_passes(destination, counted + 2, earlier=source.printed())

        # The first one comes back: it learns from the relays that the other permitted the move, and raises no alarm.
        await serve(commands, stack, "gateway1-again", site.gateway_config)
        with trio.fail_after(60):
            while len(await records(site.log, commands, "migration.receipt")) < 2:
                await trio.sleep(0.3)
        (told,) = await records(site.log, commands, "migration.elsewhere")
        assert told["migration_id"] == moved["migration_id"]
        assert told["details"]["gateway"] == "gateway2"  # type: ignore[index]
        assert await records(site.log, commands, "placement.unpermitted") == []
        (decided,) = await records(site.directory / "log2", commands, "migration.decision")
        assert decided["migration_id"] == moved["migration_id"]
        assert len(await records(site.directory / "log2", commands, "migration.receipt")) == 2
        for log, keys in ((site.log, "gateway"), (site.directory / "log2", "gateway2")):
            key = (site.certs / keys / "log.vkey").read_text().strip()
            code, verified = await commands.run("audit", "verify", str(log), "--key", key)
            assert code == 0, verified
