"""What an auditor reads out of the demo's log: only from its folder, with the gateway stopped.

The log is verified first by `sealane audit verify`, which trusts the pinned key alone; what is read afterwards are
plain JSON records of that folder.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import trio

from gateway.demo.errors import Unexpected
from gateway.demo.processes import Commands

_RECEIPT = "migration.receipt"
_ROLES = {"source", "destination"}
_RECEIPT_SECONDS = 30.0


class _Tls(msgspec.Struct, frozen=True):
    version: str
    group: str
    cipher: str


class _Channel(msgspec.Struct, frozen=True):
    sent_bytes: int
    received_bytes: int


class ReceiptBody(msgspec.Struct, frozen=True):
    """What the demo reads of a receipt; the gateway checked the rest, and the signature."""

    role: str
    outcome: str
    tls: _Tls
    lane_cipher: str
    channels: tuple[_Channel, ...]
    downtime_ms: int | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the log says of one migration. `bytes_carried` counts both directions, as both hosts certified them."""

    bytes_carried: int
    downtime_ms: int
    tls_version: str
    key_exchange: str
    tls_cipher: str
    lane_cipher: str


async def verify_log(commands: Commands, log: Path, key: Path) -> tuple[bool, int, str]:
    """Whether the independent verifier accepts the folder, its number of entries, and the first problem."""
    code, verdict = await commands.run("audit", "verify", str(log), "--key", str(key))
    first = verdict["problems"][0]["what"] if verdict.get("problems") else ""
    return code == 0 and verdict.get("outcome") == "verified", int(verdict.get("size", 0)), first


async def read_records(commands: Commands, log: Path, migration_id: str) -> list[dict[str, Any]]:
    """All records of one migration, oldest first."""
    code, found = await commands.run("audit", "query", "--log", str(log), "--migration", migration_id)
    if code != 0:
        raise Unexpected("read the log", str(found))
    return [numbered["record"] for numbered in found["records"]]


async def wait_receipts(commands: Commands, log: Path, migration_id: str) -> None:
    """Wait until both hosts' receipts are in the log: each relay delivers its own when it can.

    At the deadline it returns all the same: `read_evidence` says then what is missing.
    """
    with trio.move_on_after(_RECEIPT_SECONDS):
        while sum(record["kind"] == _RECEIPT for record in await read_records(commands, log, migration_id)) < len(
            _ROLES
        ):
            await trio.sleep(0.1)


def is_denial_recorded(records: Sequence[dict[str, Any]], person: str) -> bool:
    """Whether these records say that this very person was denied, and nothing of a permit or a receipt."""
    decisions = [record for record in records if record["kind"] == "migration.decision"]
    return (
        len(decisions) == len(records) == 1
        and decisions[0]["outcome"] == "denied"
        and (decisions[0].get("actor") or {}).get("name") == person
    )


def read_evidence(records: Sequence[dict[str, Any]]) -> Evidence:
    """The facts of a migration that was completed. Raises Unexpected where the two hosts' receipts disagree."""
    receipts = {
        body.role: body
        for record in records
        if record["kind"] == _RECEIPT
        for body in [msgspec.json.decode(record["details"]["body"], type=ReceiptBody)]
    }
    if set(receipts) != _ROLES:
        raise Unexpected("read the log", f"receipts of {sorted(receipts) or 'no host'} instead of both hosts")
    source, destination = receipts["source"], receipts["destination"]
    there, back = (_counts(source, "sent_bytes"), _counts(source, "received_bytes"))
    if (there, back) != (_counts(destination, "received_bytes"), _counts(destination, "sent_bytes")):
        raise Unexpected("compare the receipts", "the hosts certified different numbers of bytes")
    protections = (source.tls, source.lane_cipher), (destination.tls, destination.lane_cipher)
    if protections[0] != protections[1]:
        raise Unexpected("compare the receipts", "{} at the source, {} at the destination".format(*protections))
    if source.downtime_ms is None:
        raise Unexpected("read the log", "the source certified no downtime")
    return Evidence(
        bytes_carried=there + back,
        downtime_ms=source.downtime_ms,
        tls_version=source.tls.version,
        key_exchange=source.tls.group,
        tls_cipher=source.tls.cipher,
        lane_cipher=source.lane_cipher,
    )


def flip_a_byte(log: Path, copy: Path, wanted: bytes) -> Path:
    """Copy a log and flip the lowest bit of the first byte of `wanted` where it stands first; returns the file.

    Raises Unexpected if no file of the log holds it.
    """
    shutil.copytree(log, copy)
    for file in sorted(path for path in copy.rglob("*") if path.is_file()):
        content = bytearray(file.read_bytes())
        at = content.find(wanted)
        if at >= 0:
            content[at] ^= 1
            file.chmod(0o600)
            file.write_bytes(content)
            return file.relative_to(copy)
    raise Unexpected("flip a byte", f"{wanted!r} stands in no file of the log")


def _counts(receipt: ReceiptBody, what: str) -> int:
    return sum(getattr(channel, what) for channel in receipt.channels)
