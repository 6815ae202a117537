"""`make upgrade`: a whole site is upgraded from an earlier commit, one process after the other, while a guest moves.

Gateway, relays and commands are processes of their own, each with the code of its commit; a guest moves between two
hosts after each of them was upgraded. Once with the gateway first, once with the relays first. In between, a third host
is revoked: relays of either version must take the CRL.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio
from cryptography import x509

from certs.files import read_crl
from gateway.demo.guest import GuestLayout, build_boot_image, count_passes
from gateway.demo.machines import Qemu, run_state, start_qemu, stop_qemu, wait_passes
from gateway.demo.processes import Commands, Service, end_process
from gateway.starter import HostPlan, Site, VmPlan
from tests.gateway.conftest import free_address
from tests.gateway.rolling_site import rolling_site
from tests.gateway.test_enrolment import OFFICER
from tests.gateway.test_evacuation_real import token_of
from tests.gateway.test_watch import edit
from tests.transport.neighbours import HERE, unpack

# The last one before rollovers, other sites and evacuations: it says no version, and knows none.
FIRST_VERSION: Final = "9127b048f9c38a7c4dd3b3dc2d69f688e01cba55"
MEMORY_MIB: Final = 64
SCHEMA: Final = "policy/examples/bank/schema.cedarschema"
UUID: Final = "5ea1a4e0-0000-4000-8000-0000000000ac"
SECONDS: Final = 120.0
ORDERS: Final = {"gateway first": ("gateway", "relay-b", "relay-a"), "relays first": ("relay-a", "relay-b", "gateway")}


@dataclass(frozen=True, slots=True)
class CommandsOf(Commands):
    """`sealane` of the commit at `code`, with the libraries of this environment."""

    code: Path = HERE

    def line(self, arguments: Sequence[str]) -> list[str]:
        program = f"import sys; sys.path.insert(0, {str(self.code)!r}); from gateway.cli.main import run; run()"
        return [sys.executable, "-c", program, *arguments]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.folder), "NO_COLOR": "1", "PYTHONPATH": str(self.code)}


@dataclass
class Upgraded:
    """A site in the midst of its upgrade. `code`: of each process, by name; `at`: where the guest is."""

    site: Site
    folder: Path
    image: Path
    earlier: Path
    stack: AsyncExitStack
    code: dict[str, Path] = field(default_factory=dict)
    running: dict[str, Service] = field(default_factory=dict)
    at: str = "a"
    moves: int = 0
    printed: bytes = b""
    guest: Qemu | None = None

    def config(self, name: str) -> Path:
        return self.site.gateway_config if name == "gateway" else self.folder / name / "relay.toml"

    async def start(self, name: str, code: Path) -> None:
        """Instead of the process of that name, if one runs."""
        if name in self.running:
            await end_process(self.running[name].process)
        commands = CommandsOf(self.folder, code)
        kind = "gateway" if name == "gateway" else "relay"
        label = f"{name}-{'new' if code == HERE else 'old'}"
        served = commands.serve(label, kind, "serve", "--config", str(self.config(name)))
        self.running[name] = await self.stack.enter_async_context(served)
        self.code[name] = code

    async def ask(self, who: str, *arguments: str) -> tuple[int, dict[str, Any]]:
        """As a person, with the command of the gateway's commit."""
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(token_of(self.site, who))
        url = f"https://{self.running['gateway'].listen}"
        where = ("--gateway", url, "--ca", str(self.site.ca), "--token-file", str(token))
        return await CommandsOf(self.folder, self.code["gateway"]).run(*arguments, *where)

    async def enrol(self, host: str) -> None:
        """By the relay's commit, whatever the gateway's."""
        folder = self.folder / f"relay-{host}"
        folder.mkdir()
        token = folder / "token"
        code, said = await self.ask(OFFICER, "certs", "token", host, "--out", str(token))
        assert code == 0, said
        url = f"https://{self.running['gateway'].listen}"
        config, state = folder / "relay.toml", folder / "state"
        place = ("--config", str(config), "--state-dir", str(state), "--hypervisor", "qmp")
        commands = CommandsOf(self.folder, self.earlier)
        code, said = await commands.run("relay", "enrol", url, "--token-file", str(token), *place)
        assert code == 0, said
        socket = str(self.folder / f"vm-{host}" / "{uuid}" / "qmp.sock")
        lines = [line for line in config.read_text().splitlines() if not line.startswith("qmp_socket")]
        text = "\n".join(lines).replace('kind = "qmp"', f'kind = "qmp"\nqmp_socket = "{socket}"')
        config.write_text(text + "\n")

    async def move(self) -> None:
        """To the other host; AssertionError unless it arrives and goes on counting."""
        other = "b" if self.at == "a" else "a"
        self.moves += 1
        assert self.guest is not None
        destination = await start_qemu(self._place(other), UUID, memory_mib=MEMORY_MIB, incoming=True)
        self.stack.push_async_callback(stop_qemu, destination)
        with trio.fail_after(SECONDS):
            while True:  # a gateway that has just started has not heard of its relays
                code, said = await self.ask("alice", "migrate", "counter", "--to", other, "--reason", "CHG-1")
                if code == 0:
                    break
                words = said.get("error", {}).get("code", "")
                assert words in {"relay_unreachable", "unreachable"}, said
                await trio.sleep(0.5)
        assert said["outcome"] == "completed", said
        with trio.fail_after(30):
            while not self.guest.ended:
                await trio.sleep(0.05)
        self.printed += self.guest.printed()
        await stop_qemu(self.guest)
        counted = count_passes(self.printed)
        self.guest, self.at = destination, other
        await wait_passes(destination, counted + 1, earlier=self.printed)
        assert await run_state(destination) == "running"

    def _place(self, host: str) -> Path:
        """QEMU's folder; the relay's configuration leads to it by a link, for each QEMU has a folder of its own."""
        link, place = self.folder / f"vm-{host}" / UUID, self.folder / f"q{self.moves}"
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        place.mkdir()
        link.symlink_to(place)
        return place

    async def revoke_and_wait(self, host: str) -> None:
        """Every relay has the CRL, whatever its version."""
        before = {name: self._crl_number(name) for name in ("relay-a", "relay-b")}
        code, said = await self.ask(OFFICER, "certs", "revoke", host, "--reason", "INC-1")
        assert code == 0, said
        with trio.fail_after(SECONDS):
            while any(self._crl_number(name) <= number for name, number in before.items()):
                await trio.sleep(0.1)

    def _crl_number(self, name: str) -> int:
        folder = self.config(name).parent / "state" / "identity" / "crls"
        numbers = [crl_number_in(path) for path in folder.glob("*.pem") if not path.name.startswith(".")]
        return sum(numbers)  # of the root's and of the issuing CA's: neither ever falls

    async def evacuation(self, host: str) -> dict[str, Any]:
        """What was prepared, or the error."""
        wish = ("evacuation", "prepare", host, "--hours", "1", "--reason", "CHG-2")
        with trio.fail_after(SECONDS):
            while True:
                code, said = await self.ask("alice", *wish)
                if code == 0 or said["error"]["code"] not in {"relay_unreachable", "unreachable"}:
                    return said
                await trio.sleep(0.5)


def lay_bundle(code: Path, site: Site) -> None:
    """The example bundle of that commit: an earlier one knows fewer actions, and its gateway refuses to start."""
    shutil.rmtree(site.bundle)
    shutil.copytree(code / "policy" / "examples" / "bank", site.bundle)


def crl_number_in(path: Path) -> int:
    return read_crl(path).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


@asynccontextmanager
async def site_of(earlier: Path, folder: Path) -> AsyncIterator[Upgraded]:
    """All of it of the earlier commit, enrolled by it, with a guest on the first host."""
    whole = GuestLayout.for_memory(MEMORY_MIB, 1)
    (folder / "image").mkdir()
    image = build_boot_image(GuestLayout(whole.start, whole.hot, whole.end, ticks=100), folder / "image")
    hosts = [HostPlan(name, free_address(f"127.0.0.{n}")) for n, name in enumerate(("a", "b", "c"), 2)]
    site = rolling_site(folder / "s", hosts, [VmPlan("counter", UUID, "a")], free_address("127.0.0.1"))
    lay_bundle(earlier, site)
    edit(site.people, lambda text: text.replace('["operators"]', '["operators", "production-operators"]'))
    async with AsyncExitStack() as stack:
        found = Upgraded(site, folder, image, earlier, stack)
        await found.start("gateway", earlier)
        for host in ("a", "b", "c"):
            await found.enrol(host)
        for name in ("relay-a", "relay-b"):
            await found.start(name, earlier)
        found.guest = await start_qemu(found._place("a"), UUID, memory_mib=MEMORY_MIB, image=image)
        stack.push_async_callback(stop_qemu, found.guest)
        await wait_passes(found.guest, 1)
        yield found


async def upgrade(earlier: Path, folder: Path, order: Sequence[str]) -> None:
    """The story. The evacuation is new in this commit's version: refused in words until its host's relay knows it."""
    async with site_of(earlier, folder) as found:
        await found.move()
        print("  all of the earlier commit: moved", flush=True)
        for number, name in enumerate(order):
            if name == "gateway":  # as docs/upgrading.md says: else it does not start
                shutil.copy(HERE / SCHEMA, found.site.bundle)
            await found.start(name, HERE)
            if number == 0:
                await found.revoke_and_wait("c")
                print(f"  {name} upgraded: a host was revoked, and both relays have the CRL", flush=True)
            await found.move()
            print(f"  {name} upgraded: moved", flush=True)
            if name == "gateway":  # with policies of before until now; these know evacuations
                lay_bundle(HERE, found.site)
                edit(found.site.gateway_config, lambda text: text + "\n[evacuation]\n")
                await found.start(name, HERE)
            if found.code["gateway"] == HERE:
                said = await found.evacuation(found.at)
                knows = found.code[f"relay-{found.at}"] == HERE
                words = said["error"]["message"] if "error" in said else "prepared"
                assert words == "prepared" if knows else "knows nothing of evacuations" in words, said
                print(f"    evacuation of {found.at}: {words}", flush=True)
        assert found.moves == 1 + len(order)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make upgrade", description=__doc__)
    parser.add_argument("--revision", action="append", help="an earlier commit; repeat it")
    failed = 0
    for revision in parser.parse_args().revision or [FIRST_VERSION]:
        with tempfile.TemporaryDirectory(prefix="sl") as name:
            earlier = unpack(revision, Path(name) / "code")
            for what, order in ORDERS.items():
                print(f"{revision[:10]} → this commit, {what}", flush=True)
                folder = Path(name) / what[:1]
                folder.mkdir()
                try:
                    trio.run(upgrade, earlier, folder, order)
                except Exception as error:  # noqa: BLE001 - the line shows it, whatever it is
                    failed += 1
                    print(f"  FAILED: {error!r} {getattr(error, 'tail', '')}"[-3000:], flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
