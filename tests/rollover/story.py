"""Rollovers while a real guest moves back and forth: each step is taken while a migration is on its way.

The guest counts aloud; a migration that fails, or a number that is missing, ends the story. Steps are the commands of
the documentation, each in a process of its own; gateway and relays are tasks of this one.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import trio

from certs.enrolment import EnrolmentToken
from gateway.demo.guest import GuestLayout, build_boot_image, count_passes
from gateway.demo.machines import Qemu, run_state, start_qemu, stop_qemu, wait_passes
from gateway.demo.processes import Commands
from gateway.starter import HostPlan, Site, VmPlan
from tests.gateway.conftest import Running, free_address, running_gateway
from tests.gateway.rolling_site import relay, rolling_site
from tests.gateway.test_enrolment import OFFICER, token_of
from transport.relay.enrolling import Plan, enrol
from transport.relay.host import RelayHost

MEMORY_MIB = 64
UUID = "5ea1a4e0-0000-4000-8000-0000000000ab"
SECONDS = 90.0
BYTES_PER_SECOND = 16_000_000  # a migration lasts some seconds: long enough to be met on its way
Say = Callable[[str], None]


class StoryFailed(Exception):
    """What should not have happened."""


@dataclass
class Fleet:
    """The site as it runs now. `running` is replaced when the gateway is started again."""

    site: Site
    folder: Path
    hosts: list[RelayHost]
    image: Path
    say: Say
    running: Running | None = None
    at: str = "a"
    guest: Qemu | None = None
    printed: bytes = b""
    moves: list[float] = field(default_factory=list)
    passes: int = 0
    was_under_way: bool = False  # the migration of the last step, when that was done
    waits_for_renewal: bool = False  # a switch of the CA is done once both hosts have renewed
    _clients: dict[str, tuple[str, Path, httpx.AsyncClient]] = field(default_factory=dict)

    async def start_guest(self, stack: AsyncExitStack) -> None:
        self.guest = await start_qemu(self._place("a", 0), UUID, memory_mib=MEMORY_MIB, image=self.image)
        stack.push_async_callback(self._stop_guest)
        await wait_passes(self.guest, 1)

    def asking(self, who: str) -> httpx.AsyncClient:
        """One connection for each, by the CA that is trusted now."""
        assert self.running is not None
        kept = self._clients.get(who)
        if kept is None or kept[:2] != (self.running.url, self.running.ca):
            kept = self._clients[who] = (self.running.url, self.running.ca, self.running.person(who))
        return kept[2]

    def started(self, running: Running) -> None:
        """The gateway, for the first time or again."""
        self.running = running
        self._clients.clear()

    async def move(self, during: Callable[[], Any] | None = None, slowly: bool = False) -> None:
        """Move the guest to the other host; `during` is awaited once memory is under way. Raises StoryFailed.

        `slowly`: for what takes a while and must find the migration still on its way.
        """
        other, number = ("b" if self.at == "a" else "a"), len(self.moves) + 1
        assert self.guest is not None
        destination = await start_qemu(self._place(other, number), UUID, memory_mib=MEMORY_MIB, incoming=True)
        try:
            began = trio.current_time()
            migration = await self._ask(other, slowly)
            if during is not None:
                await self._under_way(migration)
                await during()
                self.was_under_way = (await self._shown(migration))["state"] == "running"
            shown = await self._until_over(migration)
            if shown["state"] != "completed":
                raise StoryFailed(f"migration {number} to {other} {shown['state']}: {shown.get('message')}")
            self.printed += self.guest.printed()
            await stop_qemu(self.guest)
            self.guest, self.at = destination, other
            counted = count_passes(self.printed)
            self.passes = await wait_passes(destination, counted + 1, earlier=self.printed)
            if await run_state(destination) != "running":
                raise StoryFailed(f"after migration {number} the guest does not run on {other}")
            self.moves.append(trio.current_time() - began)
        except BaseException:
            if self.guest is not destination:
                await stop_qemu(destination)
            raise

    def _place(self, host: str, number: int) -> Path:
        """QEMU's folder; the relay's configuration leads to it by a link, for each QEMU has a folder of its own."""
        link = self.folder / f"vm-{host}" / UUID
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        place = self.folder / f"q{number}"
        place.mkdir()
        link.symlink_to(place)
        return place

    async def _stop_guest(self) -> None:
        if self.guest is not None:
            await stop_qemu(self.guest)

    async def _ask(self, destination: str, slowly: bool) -> str:
        """Until a gateway answers: it may be on its way up."""
        with trio.fail_after(SECONDS):
            while True:
                assert self.running is not None
                try:
                    body: dict[str, Any] = {"vm": "counter", "destination": destination}
                    if slowly:
                        body["how"] = {"bandwidth_bytes_per_second": BYTES_PER_SECOND // 6}
                    answer = await self.asking("alice").post("/v1/migrations", json=body)
                except httpx.HTTPError:
                    await trio.sleep(0.1)
                    continue
                if answer.status_code == 201:
                    return str(answer.json()["migration_id"])
                if answer.status_code not in {409, 503}:
                    raise StoryFailed(f"no permit: {answer.text}")
                await trio.sleep(0.2)

    async def _shown(self, migration: str) -> dict[str, Any]:
        assert self.running is not None
        answer = await self.asking("alice").get(f"/v1/migrations/{migration}")
        return answer.json() if answer.status_code == 200 else {"state": "unknown", "progress": None}

    async def _under_way(self, migration: str) -> None:
        with trio.fail_after(SECONDS):
            while not ((await self._shown(migration))["progress"] or {}).get("transferred_bytes", 0) > 1_000_000:
                await trio.sleep(0.05)

    async def _until_over(self, migration: str) -> dict[str, Any]:
        with trio.fail_after(SECONDS):
            while True:
                try:
                    shown = await self._shown(migration)
                except httpx.HTTPError:
                    shown = {"state": "unknown"}
                if shown["state"] in {"completed", "failed", "cancelled", "denied"}:
                    return shown
                await trio.sleep(0.1)

    # What the operator types

    async def command(self, *arguments: str, expect: int = 0) -> dict[str, Any]:
        """One `sealane …` as the officer. Raises StoryFailed for another exit code."""
        self.say(f"$ sealane {' '.join(arguments)}")
        where: list[str] = []
        if arguments[:2] == ("certs", "rollover") and arguments[2] != "init-root":
            assert self.running is not None
            token = self.folder / "officer.token"
            token.touch(mode=0o600)
            token.write_text(self.running.token(OFFICER) + "\n")
            ca = str(self.running.ca)
            where = ["--gateway", self.running.url, "--ca", ca, "--token-file", str(token)]
        code, answer = await Commands(self.folder).run(*arguments, *where)
        if code != expect:
            raise StoryFailed(f"exit code {code}: {answer}")
        return answer

    async def step(self, step: str, what: str) -> dict[str, Any]:
        """Once every host is ready for it, while a migration is on its way."""
        if step != "begin":
            await self.until_ready(what)
        said: list[dict[str, Any]] = []

        async def take() -> None:
            said.append(await self.command("certs", "rollover", step, what, "--reason", "CHG-118"))
            if renewing:
                with trio.fail_after(SECONDS):
                    while any(host.credentials.chain[0] in leaves for host in self.hosts):
                        await trio.sleep(0.05)

        renewing = self.waits_for_renewal and (step, what) == ("switch", "issuing")
        leaves = [host.credentials.chain[0] for host in self.hosts]
        if step == "retire":
            said.append(await self.command("certs", "rollover", step, what, "--reason", "CHG-118"))
            await self.move()
        else:
            await self.move(take, slowly=renewing)
            if renewing and not self.was_under_way:
                raise StoryFailed("the migration was over before both hosts had renewed")
        self.say(f"  {what}: {said[0]['stage']}; {said[0]['next_step']}")
        count = len(self.moves)
        self.say(f"  {count} migration{'s' * (count > 1)}, the guest has counted to {self.passes}")
        return said[0]

    async def until_ready(self, what: str) -> None:
        with trio.fail_after(SECONDS):
            while True:
                state = next(each for each in await self._states() if each["what"] == what)
                progress = state["progress"]
                if progress is not None and not progress["lacking"] and not progress["waits"]:
                    self.say(f"  {progress['ready']} of {progress['hosts']} hosts are ready")
                    return
                await trio.sleep(0.2)

    async def _states(self) -> list[dict[str, Any]]:
        assert self.running is not None
        answer = await self.asking(OFFICER).get("/v1/rollovers")
        return list(answer.json()["rollovers"])


@contextmanager
def short_folder() -> Iterator[Path]:
    """Unix sockets live in it."""
    with tempfile.TemporaryDirectory(prefix="sl") as name:
        yield Path(name)


@asynccontextmanager
async def fleet(folder: Path, say: Say) -> AsyncIterator[Fleet]:
    """Two hosts that enrolled, and a guest on the first. The gateway is started by `gateway`."""
    whole = GuestLayout.for_memory(MEMORY_MIB, 1)
    (folder / "image").mkdir()
    image = build_boot_image(GuestLayout(whole.start, whole.hot, whole.end, ticks=100), folder / "image")
    plans = [HostPlan(name, free_address(address)) for name, address in (("a", "127.0.0.2"), ("b", "127.0.0.3"))]
    site = rolling_site(folder / "s", plans, [VmPlan("counter", UUID, "a")], free_address("127.0.0.1"))
    text = site.gateway_config.read_text()
    limit = f"session_seconds = 3600\nbandwidth_bytes_per_second = {BYTES_PER_SECOND}"
    site.gateway_config.write_text(text.replace("session_seconds = 3600", limit))
    async with AsyncExitStack() as stack:
        async with running_gateway(site) as running:
            configs = [await _enrolled(running, name, folder) for name in ("a", "b")]
        hosts = [await stack.enter_async_context(relay(config, any_port=False)) for config in configs]
        found = Fleet(site, folder, hosts, image, say)
        await found.start_guest(stack)
        yield found


@asynccontextmanager
async def gateway(found: Fleet, ca: Path | None = None) -> AsyncIterator[None]:
    async with running_gateway(found.site) as running:
        if ca is not None:
            running.trusts(ca)
        found.started(running)
        yield


async def _enrolled(running: Running, name: str, folder: Path) -> Path:
    token = EnrolmentToken.parse(await token_of(running, name))
    place = folder / f"h{name}"
    place.mkdir()
    qmp = str(folder / f"vm-{name}" / "{uuid}" / "qmp.sock")
    plan = Plan(running.url, place / "relay.toml", place / "state", "qmp", qmp)
    await trio.to_thread.run_sync(enrol, plan, token, datetime.now(UTC))
    return place / "relay.toml"


async def roll_issuing(found: Fleet) -> None:
    issuing = found.site.directory / "issuing"
    await found.command("certs", "init-issuing", str(found.site.certs), f"{issuing}.next")
    for step in ("begin", "switch", "retire"):
        await found.step(step, "issuing")


async def roll_permit_key(found: Fleet) -> None:
    for step in ("begin", "switch", "retire"):
        await found.step(step, "permit-key")


async def roll_root(found: Fleet) -> Path:
    """The CA by which people know the gateway from then on."""
    issuing, root = found.site.directory / "issuing", found.folder / "root-2"
    tls = found.site.certs / "gateway" / "tls.pem"
    await found.command("certs", "rollover", "init-root", str(found.site.certs), str(root), "--gateway-tls", str(tls))
    await found.command("certs", "init-issuing", str(root), f"{issuing}.next")
    assert found.running is not None
    both = found.folder / "both.pem"
    both.write_text((found.site.certs / "ca.pem").read_text() + (root / "ca.pem").read_text())
    found.running.trusts(both)
    for step in ("begin", "switch", "retire"):
        await found.step(step, "root")
    return both


async def whole_story(found: Fleet) -> None:
    """Every kind, one after the other; the log's key needs the gateway to be started again, twice."""
    async with gateway(found):
        found.say("\n# The CA that certifies hosts")
        await roll_issuing(found)
        found.say("\n# The key of permits")
        await roll_permit_key(found)
        found.say("\n# The root")
        ca = await roll_root(found)
        found.say("\n# The key of the log")
        for step in ("begin", "switch"):
            await found.step(step, "log-key")
        found.say("$ systemctl restart sealane-gateway")
    async with gateway(found, ca):
        await found.step("retire", "log-key")
        found.say("$ systemctl restart sealane-gateway")
    async with gateway(found, ca):
        await found.move()


def run_whole() -> int:
    """`make rollover`: print the transcript."""

    async def main() -> None:
        with short_folder() as folder:
            async with fleet(folder, lambda line: print(line.replace(str(folder), "…"), flush=True)) as found:
                await whole_story(found)
                longest, count = max(found.moves), len(found.moves)
                print(f"\n{count} migrations, none failed; the longest took {longest:.1f} s.")
                print(f"The guest counted to {found.passes} without a gap.")

    trio.run(main)
    return 0


__all__ = ["Fleet", "StoryFailed", "fleet", "gateway", "roll_issuing", "roll_permit_key", "run_whole"]
