"""Makes big logs to measure with: years of a site's life, signed entry by entry, in the log's own format.

    python -m bench.audit_log_maker DIR [--entries 5000000] [--workers 2] [--alone]

    DIR/log         a log that `sealane audit verify` accepts        DIR/log.vkey    the key to verify it with

Run again it goes on from where it was, so it may be stopped at any time, and a longer log starts with the same entries
as a shorter one: each follows from its index alone. The key is made up and public: such a log proves nothing. Entries
are written by the real `Log`, without the fsyncs; workers encode and sign. TOGETHER of them are signed together, as
where many wait for the log at once; with `--alone` each record by itself, as where nobody else does.

The life of a site comes in episodes of EPISODE entries: an allowed decision, its permit, the receipts of both hosts,
somebody's denied decision, a reading of the log, a check, a heartbeat. Receipts are unsigned: hosts have no keys here.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.checkpoint import LogSigner
from audit.disk import Disk
from audit.group import After, Draft, Unsigned, sign_drafts
from audit.log import Log
from audit.record import PERMIT_KIND, Actor, Record, Vm, format_time

ORIGIN: Final = "bench.example/audit"
ENTRIES: Final = 5_000_000
EPISODE: Final = 8
TOGETHER: Final = 64  # entries of one commit of a gateway under load: eight episodes
CHUNK: Final = 8_192  # entries of one commit and of one task of a worker: whole episodes, whole bundles
START: Final = datetime(2025, 12, 10, tzinfo=UTC)
SPACING: Final = timedelta(seconds=6)  # five million entries are 347 days
VMS, HOSTS, PEOPLE, POLICIES = 5_000, 200, 300, 24
REASONS: Final = ("", "CHG-{0}: empty the host before its firmware update", "CHG-{0}: balance memory", "disk alarm {0}")


class UnsafeDisk(Disk):
    """No fsync: whoever loses the machine makes the log anew."""

    def sync_data(self, descriptor: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


def bench_signer() -> LogSigner:
    """The made-up key of every log that is made here."""
    seed = hashlib.sha256(b"sealane bench: not a secret").digest()
    return LogSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(seed))


def make_log(
    folder: Path,
    entries: int = ENTRIES,
    *,
    alone: bool = False,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Make or continue `folder`/log up to `entries` (rounded up to whole chunks); returns the log's folder.

    A log that is longer already is left as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    signer = bench_signer()
    (folder / "log.vkey").write_text(f"{signer.vkey}\n", encoding="ascii")
    with Log.open(folder / "log", signer, disk=UnsafeDisk()) as log:
        todo = range(log.size // CHUNK, -(-entries // CHUNK))
        # Not forked: a worker must not hold the log's lock.
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for chunk in pool.imap(partial(_chunk, together=1 if alone else TOGETHER), todo):
                log.append([lambda _first, chunk=chunk: chunk])  # type: ignore[misc]
                if progress is not None:
                    progress(log.size)
    return folder / "log"


def telling(entries: int, what: str = "making the log") -> Callable[[int], None]:
    """A progress that says on stderr, every 20 s, how far it is: it lasts minutes."""
    began = told = time.monotonic()

    def tell(size: int) -> None:
        nonlocal told
        if (now := time.monotonic()) - told >= 20:
            told = now
            print(f"  {what}: {size} of {entries} entries, {now - began:.0f} s", file=sys.stderr, flush=True)

    return tell


def _chunk(number: int, together: int) -> list[bytes]:
    first = number * CHUNK
    episodes = range(first // EPISODE, (first + CHUNK) // EPISODE)
    drafts = [draft for episode in episodes for draft in _episode(episode)]
    entries: list[bytes] = []
    while len(entries) < len(drafts):
        start = len(entries)
        end = start + together
        while end < len(drafts) and isinstance(drafts[end], After):
            end += 1
        salts = random.Random(first + start)
        entries += sign_drafts(drafts[start:end], _signer(), salts.randbytes)
    return entries


@cache
def _signer() -> LogSigner:
    return bench_signer()


def _episode(number: int) -> Iterator[Draft]:
    """The entries of episode `number`, in order."""
    first = number * EPISODE
    luck = hashlib.sha256(number.to_bytes(8)).digest()
    story = Story(first, luck)

    def record(offset: int, kind: str, **fields: Any) -> Draft:
        index = first + offset
        return Unsigned.of(
            Record(
                version=2,
                clock_error_us=2_000 + index % 997,
                kind=kind,
                origin=ORIGIN,
                sequence=index,
                boot_id=hashlib.sha256(ORIGIN.encode()).hexdigest()[:32],
                time=_time(index),
                monotonic_ns=index * SPACING // timedelta(microseconds=1) * 1000,
                **fields,
            )
        )

    yield record(
        0,
        "migration.decision",
        outcome="allowed",
        actor=story.actor,
        reason=story.reason,
        **story.parties,
        details=story.decision(allowed=True),
    )
    yield After(story.permit)
    for offset, role, outcome in ((2, "source", "handed-over"), (3, "destination", "running")):
        actor = Actor(story.hosts[offset - 2], story.hosts[offset - 2].rpartition("/")[2], "client-certificate")
        yield record(
            offset,
            "migration.receipt",
            outcome=outcome,
            actor=actor,
            **story.parties,
            details=story.receipt(role, outcome),
        )
    yield record(
        4,
        "migration.decision",
        outcome="denied",
        actor=_person(luck[9] + 256 * luck[10]),
        **story.refused,
        details=story.decision(allowed=False),
    )
    yield record(
        5,
        "audit.read",
        outcome="allowed",
        actor=_person(luck[11]),
        details={"client_address": story.address, "read": {"records": {"vm": _vm(luck[12]).name, "limit": 50}}},
    )
    yield record(
        6,
        "decision.check",
        outcome="allowed",
        actor=story.actor,
        **(story.parties | {"migration_id": None}),
        details=story.decision(allowed=True),
    )
    yield record(7, "heartbeat")


class Story:
    """What the entries of one episode have in common: all of it from 32 bytes of luck."""

    def __init__(self, first: int, luck: bytes) -> None:
        self.first, self.luck = first, luck
        source, step = int.from_bytes(luck[:2]) % HOSTS, 1 + luck[2] % (HOSTS - 1)
        self.hosts = _host(source), _host((source + step) % HOSTS)
        self.vm = _vm(int.from_bytes(luck[3:5]))
        self.actor = _person(int.from_bytes(luck[5:7]))
        self.migration_id = luck[:16].hex()
        self.address = f"192.0.2.{luck[7]}"
        self.reason = REASONS[luck[8] % len(REASONS)].format(first) or None
        self.parties: dict[str, Any] = {
            "migration_id": self.migration_id,
            "vm": self.vm,
            "source": self.hosts[0],
            "destination": self.hosts[1],
        }
        self.refused = self.parties | {"migration_id": luck[16:].hex(), "vm": _vm(luck[13] * 7)}

    def decision(self, *, allowed: bool) -> dict[str, Any]:
        policy = f"policy-{self.luck[14] % POLICIES}"
        effect, because = ("permit", None) if allowed else ("forbid", "The change window is closed.")
        return {
            "action": "MigrateVm",
            "asked": {"vm": self.vm.name, "destination": self.hosts[1].rpartition("/")[2], "ports": ["memory"]},
            "client_address": self.address,
            "decision": {
                "allowed": allowed,
                "bundle_digest": hashlib.sha256(bytes([self.luck[15] % 3])).hexdigest(),
                "denied_because": because,
                "errors": [],
                "policies": [{"id": policy, "effect": effect, "reason": because or "Operators move test machines."}],
            },
            "not_admitted": None,
        }

    def permit(self, decision_leaf_hash: bytes) -> bytes:
        issued = int((START + self.first * SPACING).timestamp())
        claims = {
            "iss": "gateway",
            "aud": self.hosts[1],
            "jti": self.luck[8:24].hex(),
            "iat": issued,
            "nbf": issued,
            "exp": issued + 60,
            "session_until": issued + 3600,
            "recover_until": issued + 7200,
            "migration_id": self.migration_id,
            "vm": self.vm.uuid,
            "source": self.hosts[0],
            "destination": self.hosts[1],
            "ports": ["memory"],
            "limits": {"max_channels": 64, "bandwidth_bytes_per_second": 0},
            "requirements": {"content_digest": False, "stream_inspection": False, "vm_binding": True},
            "minimum_crl_number": 1,
            "bundle": hashlib.sha256(bytes([self.luck[15] % 3])).hexdigest(),
            "seal": "sealane",
        }
        link = {"index": self.first, "leaf_hash": base64.b64encode(decision_leaf_hash).decode()}
        return msgspec.json.encode({"kind": PERMIT_KIND, "decision": link, "claims": claims}, order="sorted")

    def receipt(self, role: str, outcome: str) -> dict[str, Any]:
        sent = 2**28 + int.from_bytes(self.luck[16:20])
        counts = {"sent_bytes": sent, "received_bytes": 4096}
        body = {
            "version": 1,
            "role": role,
            "jti": self.luck[8:24].hex(),
            "migration_id": self.migration_id,
            "source": self.hosts[0],
            "destination": self.hosts[1],
            "vm": self.vm.uuid,
            "outcome": outcome,
            "started": _time(self.first + 1),
            "ended": _time(self.first + 2),
            "channels": [{"channel": 0, "port": "memory", **counts}],
        }
        text = msgspec.json.encode(body, order="sorted")
        return {
            "role": role,
            "jti": body["jti"],
            "body": text.decode(),
            "body_sha256": hashlib.sha256(text).hexdigest(),
            "signature": "",
            "chain": [],
            "vm_binding": "uuid",
            "tls": {"version": "TLSv1.3", "group": "X25519MLKEM768", "cipher": "TLS_AES_256_GCM_SHA384"},
            "downtime_ms": 20 + self.luck[20],
            **counts,
        }


def _time(index: int) -> str:
    return format_time(START + index * SPACING)


@cache
def _host(number: int) -> str:
    return f"spiffe://bank.example/host/host-{number:03}"


@cache
def _vm(number: int) -> Vm:
    return Vm(str(UUID(int=0x5EA << 112 | 4 << 76 | 2 << 62 | number % VMS)), f"vm-{number % VMS:04}")


@cache
def _person(number: int) -> Actor:
    who = number % PEOPLE
    groups = ("operators", f"team-{who % 17}") if who % 5 else ("auditors",)
    return Actor(f"issuer#person-{who:03}", f"person-{who:03}", "oidc", "https://issuer.bank.example", groups)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.audit_log_maker", description="Make or continue a big log.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--entries", type=int, default=ENTRIES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help="each record signed by itself")
    options = parser.parse_args(arguments)
    started = time.monotonic()

    def tell(size: int) -> None:
        print(f"\r{size} entries, {time.monotonic() - started:.0f} s", end="", file=sys.stderr, flush=True)

    log = make_log(options.folder, options.entries, alone=options.alone, workers=options.workers, progress=tell)
    print(f"\n{log}", file=sys.stderr)


if __name__ == "__main__":
    main()
