"""A relay process on a hypervisor host of the tests, which is its own gateway: every wish gets a permit, or the words
in SITE/deny.txt.

    python -m tests.transport.libvirt.permitting_relay SITE NAME DESTINATION-ADDRESS LISTEN CONFIG(JSON)
"""

from __future__ import annotations

import json
import os
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from audit.checkpoint import LogSigner
from audit.log import Log
from certs.files import read_private_key
from tests.transport.site import ORIGIN, Site
from transport.libvirt_rpc.client import LibvirtClient
from transport.libvirt_rpc.framing import Packet
from transport.relay import caller
from transport.relay.config_sections import FrontSection, HypervisorSection
from transport.relay.gateway_answers import Migrate
from transport.relay.gateway_link import GatewayLink
from transport.relay.host import RelayHost, open_host
from transport.relay.process import log_to_stderr
from transport.relay.service import serve_relay
from transport.relay.spool import SessionJournal
from transport.relay.wish import NotAdmitted, Wish


def open_site(folder: Path, name: str) -> Site:
    """The site that the test laid out, with a log of this relay's own: the same key signs it."""
    gateway = folder / "certs" / "gateway"
    log_key = read_private_key(gateway / "log.key")
    permit_key = read_private_key(gateway / "permit.key")
    assert isinstance(log_key, ed25519.Ed25519PrivateKey)
    assert isinstance(permit_key, ec.EllipticCurvePrivateKey)
    return Site(folder, Log.open(folder / f"log-{name}-{uuid.uuid4().hex[:6]}", LogSigner(ORIGIN, log_key)), permit_key)


def pause_at(moment: str, folder: Path, name: str) -> None:
    """Make this relay wait at `moment`: `before:` or `after:` a call of libvirt's RPC to the destination, or a durable
    state; `told:` after the caller has been sent the reply to a call.

    It says so by FOLDER/reached-NAME, and goes on when FOLDER/go-NAME is there.
    """

    async def pass_by(here: str) -> None:
        if here == moment:
            (folder / f"reached-{name}").touch()
            while not (folder / f"go-{name}").exists():
                await trio.sleep(0.01)

    def around(kind: type[Any], method: str) -> None:
        real = getattr(kind, method)

        async def paused(self: Any, what: Any, *more: Any, **named: Any) -> Any:
            await pass_by(f"before:{what}")
            result = await real(self, what, *more, **named)
            await pass_by(f"after:{what}")
            return result

        setattr(kind, method, paused)

    around(caller._Remote, "ask")  # the source's side of a call
    around(LibvirtClient, "ask")  # the destination's
    enter, pass_on = RelayHost.enter, caller.Conversation._pass_on

    async def entered(self: RelayHost, journal: SessionJournal, state: str, **facts: object) -> None:
        await pass_by(f"before:{state}")
        await enter(self, journal, state, **facts)
        await pass_by(f"after:{state}")

    async def passed_on(self: caller.Conversation, call: Packet, reply: Packet) -> None:
        await pass_on(self, call, reply)
        await pass_by(f"told:{call.procedure}")

    RelayHost.enter = entered  # type: ignore[method-assign]
    caller.Conversation._pass_on = passed_on  # type: ignore[method-assign]


async def main(folder: Path, name: str, destination: str, listen: str, sections: dict[str, object]) -> None:
    site = open_site(folder, name)
    config = site.relay_config(name)
    limits = msgspec.structs.replace(config.limits, **msgspec.convert(sections.get("limits", {}), dict[str, float]))
    config = msgspec.structs.replace(
        config,
        relay=msgspec.structs.replace(config.relay, listen=listen),
        hypervisor=msgspec.convert(sections["hypervisor"], HypervisorSection),
        front=msgspec.convert(sections["front"], FrontSection),
        limits=limits,
    )

    async def ask(wish: Wish) -> Migrate:
        deny = folder / "deny.txt"
        if deny.exists():
            raise NotAdmitted(deny.read_text().strip())
        permit = site.permit(
            vm=wish.vm, source=site.spiffe(name), destination=site.spiffe(wish.destination),
            aud=site.spiffe(wish.destination), ports=wish.ports,
        )  # fmt: skip
        return Migrate(uuid.uuid4().hex, permit, destination, 600, 300)

    async def poll_orders(_link: GatewayLink, take: Callable[[Migrate], Awaitable[None]], *_more: object) -> None:
        """As if the gateway had ordered what SITE/order-NAME.json says."""
        path = folder / f"order-{name}.json"
        while True:
            if path.exists():
                order = json.loads(path.read_text())
                path.unlink()
                await take(await ask(Wish(order["vm"], "", order["destination"], ("libvirt", "memory"), 0)))
            await trio.sleep(0.05)

    GatewayLink.poll_forever = poll_orders  # type: ignore[method-assign,assignment]
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(stop)
            await serve_relay(open_host(config), lambda where: print(json.dumps({"listen": where}), flush=True), ask)


if __name__ == "__main__":
    log_to_stderr()
    os.umask(0o077)
    _, at, who, where, own, more = sys.argv
    pause_at(os.environ.get("PAUSE_AT", ""), Path(at), who)
    trio.run(main, Path(at), who, where, own, json.loads(more))
