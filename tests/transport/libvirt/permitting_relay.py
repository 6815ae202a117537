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
from pathlib import Path

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from audit.checkpoint import LogSigner
from audit.log import Log
from certs.files import read_private_key
from tests.transport.site import ORIGIN, Site
from transport.relay.config import FrontSection, HypervisorSection
from transport.relay.gateway_link import Migrate
from transport.relay.host import open_host
from transport.relay.service import _log_to_stderr, serve_relay
from transport.relay.wish import NotAdmitted, Wish


def open_site(folder: Path, name: str) -> Site:
    """The site that the test laid out, with a log of this relay's own: the same key signs it."""
    gateway = folder / "certs" / "gateway"
    log_key = read_private_key(gateway / "log.key")
    permit_key = read_private_key(gateway / "permit.key")
    assert isinstance(log_key, ed25519.Ed25519PrivateKey)
    assert isinstance(permit_key, ec.EllipticCurvePrivateKey)
    return Site(folder, Log.open(folder / f"log-{name}-{uuid.uuid4().hex[:6]}", LogSigner(ORIGIN, log_key)), permit_key)


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

    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(stop)
            await serve_relay(open_host(config), lambda where: print(json.dumps({"listen": where}), flush=True), ask)


if __name__ == "__main__":
    _log_to_stderr()
    os.umask(0o077)
    _, at, who, where, own, more = sys.argv
    trio.run(main, Path(at), who, where, own, json.loads(more))
