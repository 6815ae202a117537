"""Two real relays as a pair: `sealane relay serve` at the destination, `sealane relay open` at the source.

The bench stands in for the gateway: it makes the site's keys, and a permit with its log proof for each run. The relays
check all of it as always, and write their spools and receipts to the disk as always.
"""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.checkpoint import Checkpoint, LogSigner, sign_checkpoint
from audit.proof import leaf_hash, node_hash
from bench.harness import BenchError, wait_until
from bench.peers import VM, Carrier, Start, free_port, running
from certs import layout
from certs.files import read_private_key
from policy.jws import key_id_of
from policy.permit import Limits, PermitClaims, PermitProof, Requirements, permit_entry, seal_permit

TRUST_DOMAIN = "bench.test"
ORIGIN = "bench.test/log"
LIFETIME_SECONDS = 600
SEALANE = (str(Path(sys.executable).with_name("sealane")), "relay")


Link = Callable[[Path, int], AbstractContextManager[int]]


@contextmanager
def straight(folder: Path, port: int) -> Iterator[int]:  # noqa: ARG001 - a Link
    """Loopback itself."""
    yield port


def sealane(site: Path, link: Link = straight, seal_threads: int | None = None, **claims: object) -> Start:
    """A pair of relays. Makes the site's keys in `site`, once. `link`: the port to dial in place of the relay's own.

    `claims`: of the permit, where they are not the usual ones.
    """
    now = datetime.now(UTC)
    layout.init(site, TRUST_DOMAIN, ORIGIN, ["localhost"], ["127.0.0.1"], now)
    for host in ("source", "destination"):
        layout.issue_host(site, host, now)

    @contextmanager
    def start(folder: Path, leave: Path) -> Iterator[Carrier]:
        enter = folder / "enter.sock"
        permit = folder / "permit.jwt"
        permit.write_text(mint_permit(site, int(time.time()), VM, **claims))
        with destination_relay(site, folder, leave, seal_threads) as (port, pid), link(folder, port) as near:
            to = ("--to", f"127.0.0.1:{near}", "--socket", str(enter))
            config = source_config(site, folder, port, seal_threads)
            carry = [*SEALANE, "open", "--config", str(config), "--permit", str(permit), *to]
            with running(carry, folder / "source.log") as source:
                wait_until(lambda: _ready(folder / "source.log"), "the source relay's start")
                yield Carrier(enter, (source.pid, pid))
                _require_completed(source, folder / "source.log")

    return start


@contextmanager
def destination_relay(
    site: Path, folder: Path, leave: Path, seal_threads: int | None = None
) -> Iterator[tuple[int, int]]:
    """Its port and process id; `leave` is where the stream of VM goes."""
    port, config = free_port(), folder / "destination.toml"
    config.write_text(_configuration(site, "destination", port, folder, leave, seal_threads))
    with running([*SEALANE, "serve", "--config", str(config)], folder / "destination.log") as destination:
        wait_until(lambda: _ready(folder / "destination.log"), "the destination relay's start")
        yield port, destination.pid


def source_config(site: Path, folder: Path, port: int, seal_threads: int | None = None) -> Path:
    """The configuration file of a source. `port`: the destination's, which it never listens on."""
    config = folder / "source.toml"
    config.write_text(_configuration(site, "source", port, folder, folder / VM / "leave.sock", seal_threads))
    return config


def mint_permit(site: Path, now: int, vm: str = VM, **changes: object) -> str:
    """A permit as a gateway would issue it, with the proof from a log of two entries."""
    permit_key = cast(EllipticCurvePrivateKey, read_private_key(site / "gateway/permit.key"))
    signer = LogSigner(ORIGIN, cast(Ed25519PrivateKey, read_private_key(site / "gateway/log.key")))
    source, destination = (f"spiffe://{TRUST_DOMAIN}/host/{host}" for host in ("source", "destination"))
    claims = PermitClaims(
        iss="bench",
        aud=destination,
        jti=secrets.token_hex(16),
        iat=now,
        nbf=now,
        exp=now + LIFETIME_SECONDS,
        session_until=now + LIFETIME_SECONDS,
        recover_until=now + LIFETIME_SECONDS,
        migration_id=secrets.token_hex(16),
        vm=vm,
        source=source,
        destination=destination,
        ports=("memory",),
        limits=Limits(max_channels=8, bandwidth_bytes_per_second=0),
        requirements=Requirements(content_digest=False, stream_inspection=False, vm_binding=False),
        minimum_crl_number=1,
        bundle="0" * 64,
    )
    claims = msgspec.structs.replace(claims, **changes)
    decision = leaf_hash(b'{"decision":"made by the bench"}')
    entry = leaf_hash(permit_entry(claims, 0, decision))
    checkpoint = sign_checkpoint(Checkpoint(ORIGIN, 2, node_hash(decision, entry)), signer)
    decision_text = base64.b64encode(decision).decode("ascii")
    proof = PermitProof(0, decision_text, 1, checkpoint, (decision_text,))
    return seal_permit(claims, proof, permit_key, key_id_of(permit_key.public_key()))


def _configuration(site: Path, host: str, port: int, folder: Path, leave: Path, seal_threads: int | None = None) -> str:
    identity, gateway = site / "hosts" / host, site / "gateway"
    memory_socket = str(leave).replace(VM, "{uuid}")
    limits = "" if seal_threads is None else f"[limits]\nseal_threads = {seal_threads}\n"
    # Nobody answers at the gateway's address: receipts stay in the spool, as when a gateway is down.
    return (
        f'[relay]\nlisten = "127.0.0.1:{port}"\nstate_dir = "{folder / f"{host}-state"}"\n'
        f'[identity]\ncertificate = "{identity / "host.pem"}"\nprivate_key = "{identity / "host.key"}"\n'
        f'trust_bundle = "{site / "ca.pem"}"\ncrls = ["{site / "crl.pem"}"]\n'
        f'[gateway]\nurl = "https://127.0.0.1:{free_port()}"\ntrust_bundle = "{site / "ca.pem"}"\n'
        f'permit_keys = ["{gateway / "permit.pub"}"]\nlog_keys = ["{gateway / "log.vkey"}"]\n'
        f'[network]\nseals = ["sealane", "tls"]\n'
        f'[hypervisor]\nkind = "sockets"\nmemory_socket = "{memory_socket}"\n'
        f"{limits}"
    )


def _ready(log: Path) -> bool:
    return '"ready": true' in log.read_text()


def _require_completed(source: subprocess.Popen[bytes], log: Path) -> None:
    """A stream that arrived and a session that failed are not a measurement."""
    try:
        code = source.wait(30)
    except subprocess.TimeoutExpired:
        raise BenchError("the source relay did not end after its stream had") from None
    last = log.read_text().splitlines()[-1]
    if code != 0 or json.loads(last).get("outcome") != "completed":
        raise BenchError(f"the session did not complete: {last}")
