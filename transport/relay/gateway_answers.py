"""What a gateway says to a relay: assignments, permits, refusals, all decoded strictly; and what else it may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from transport.errors import UNDECODABLE, TransportError
from transport.hypervisors.moving import How
from transport.hypervisors.preflight_facts import Machine
from transport.relay.evacuations import Evacuation


class _Assignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    pass


class Migrate(_Assignment, frozen=True, tag="migrate"):
    """Move a VM from this host."""

    migration_id: Annotated[str, Meta(min_length=1, max_length=64)]
    permit: Annotated[str, Meta(max_length=16 * 1024)]
    destination_address: Annotated[str, Meta(max_length=261)]
    deadline_seconds: Annotated[float, Meta(gt=0)]
    downtime_limit_ms: Annotated[int, Meta(ge=1, le=60_000)]
    how: How = How()
    other_permit: Annotated[str, Meta(max_length=16 * 1024)] | None = None  # of the destination's site


class TakePermit(_Assignment, frozen=True, tag="permit"):
    """Fetch the permit of a migration from this host, a `Migrate`, and begin; nothing is to be done without it."""

    migration_id: Annotated[str, Meta(min_length=1, max_length=64)]


class CancelMigration(_Assignment, frozen=True, tag="cancel"):
    migration_id: Annotated[str, Meta(min_length=1, max_length=64)]


class Inspect(_Assignment, frozen=True, tag="inspect"):
    """Say what this host has for a VM, and touch nothing. `wanted`: None at the source, the VM's facts there."""

    inspection_id: Annotated[str, Meta(min_length=1, max_length=64)]
    vm: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
    wanted: Machine | None


class TakeEvacuation(_Assignment, frozen=True, tag="evacuation"):
    """Fetch permits that were prepared for the VMs of this host, and keep them."""

    evacuation_id: Annotated[str, Meta(min_length=1, max_length=64)]


class WithdrawEvacuation(_Assignment, frozen=True, tag="withdraw_evacuation"):
    """Forget them."""

    evacuation_id: Annotated[str, Meta(min_length=1, max_length=64)]


class _Assignments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    assignments: Annotated[
        list[Migrate | TakePermit | CancelMigration | Inspect | TakeEvacuation | WithdrawEvacuation],
        Meta(max_length=256),
    ]
    trust_version: Annotated[str, Meta(max_length=64)] | None = None


Assignment = Migrate | TakePermit | CancelMigration | Inspect | TakeEvacuation | WithdrawEvacuation
decode_assignments = msgspec.json.Decoder(_Assignments).decode


class NotPermitted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="denied"):
    """`message`: what the caller is to read: which policy refused, and why."""

    message: Annotated[str, Meta(max_length=4096)]


decode_admission = msgspec.json.Decoder(Migrate | NotPermitted).decode
decode_permit = msgspec.json.Decoder(Migrate).decode
decode_evacuation = msgspec.json.Decoder(Evacuation).decode
T = TypeVar("T")


class GatewayAway(TransportError):
    """The gateway cannot be reached, or does not answer as it should: the operator must act; what waits is kept."""


class GatewayRefuses(TransportError):
    """The gateway will never take this message: asking again cannot help, an operator must look.

    `next_step`: what the gateway says to do, where that is not part of the message.
    """

    def __init__(self, message: str, status: int, next_step: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.next_step = next_step


def understood(decode: Callable[[bytes], T], answer: bytes) -> T:
    """GatewayAway for what is no answer of a gateway, or one of a version that is not ours."""
    try:
        return decode(answer)
    except UNDECODABLE as error:
        raise GatewayAway(f"the gateway's answer is not understood: {error}") from None


class _Refusal(msgspec.Struct, frozen=True):
    """An error of the gateway, as it answers everybody; other members mean nothing here."""

    class Error(msgspec.Struct, frozen=True):
        message: Annotated[str, Meta(max_length=1024)]
        next_step: Annotated[str, Meta(max_length=1024)]

    error: Error


def words_of_refusal(answer: bytes | bytearray) -> str:
    """ ": " and what the gateway says, for a log or terminal; "" where it is not of that form, as of a proxy."""
    said = said_in_refusal(answer)
    return "" if said is None else ": " + "; ".join(said)


def said_in_refusal(answer: bytes | bytearray) -> tuple[str, str] | None:
    """What is wrong and what to do, for a log or terminal; None where it is not of that form, as of a proxy."""
    try:
        error = msgspec.json.decode(answer, type=_Refusal).error
    except UNDECODABLE:
        return None
    message, next_step = (
        "".join(character if character.isprintable() else " " for character in text)
        for text in (error.message, error.next_step)
    )
    return message, next_step
