"""The bodies of requests. Strict: an unknown member, a wrong type or too long a text is a 400 that names it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from gateway.api.validation_words import HOST_NAME, MIGRATION_ID, PORT_NAME
from policy.errors import FactRefused
from policy.facts import check_text
from transport.wire.messages import MAX_RECEIPT_CHARS

Name = Annotated[str, Field(min_length=1, max_length=255)]


def _plain(text: str) -> str:
    """One line, which reads alike in every terminal and log."""
    try:
        check_text("reason", text)
    except FactRefused as error:
        raise PydanticCustomError("not_plain", "{problem}", {"problem": error.detail}) from error
    return text


# Blanks give no reason: where one is demanded they are none.
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1024), AfterValidator(_plain)]
ShortReason = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), AfterValidator(_plain)
]
MigrationId = Annotated[str, Field(pattern=MIGRATION_ID)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Port = Literal["memory", "disks", "libvirt"]


AnyPort = Annotated[str, Field(pattern=PORT_NAME, max_length=32)]
MAX_NOT_KNOWN = 16  # members that are each told of


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _of_few_members(cls, value: Any) -> Any:
        """Each that is not known is an error to pydantic: of a stranger's 64 KiB they took 60 ms of the loop."""
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + MAX_NOT_KNOWN:
            raise PydanticCustomError("too_many_members", "has many members that this request does not know")
        return value


class SignIn(Body):
    """A person of the local directory, or with `sealed` one of the sealed file."""

    username: Name
    password: Annotated[str, Field(min_length=1, max_length=1024, repr=False)]
    sealed: bool = False


HostName = Annotated[str, Field(pattern=HOST_NAME)]
SigningRequest = Annotated[str, Field(min_length=1, max_length=8 * 1024)]


class TokenWish(Body):
    """`minutes`: how long it may wait to be used; by default, and at most, what the gateway's [enrolment] says."""

    host: HostName
    minutes: Annotated[int, Field(ge=1, le=10_080)] | None = None


class Enrolment(Body):
    """`request`: a PKCS#10 request in PEM, of which only the key counts."""

    token: Annotated[str, Field(min_length=1, max_length=256, repr=False)]
    request: SigningRequest


class Renewal(Body):
    request: SigningRequest


class HostRevocation(Body):
    reason: Reason


class RolloverStep(Body):
    """`force`: although hosts are not ready; the record says which."""

    reason: Reason
    force: bool = False


class KnownTrust(Body):
    known_version: Annotated[str, Field(max_length=64)] | None = None


class HowToMove(Body):
    """What is left out is as the gateway's [moving] says. Meanings and units: `transport.hypervisors.moving.How`."""

    downtime_limit_ms: Annotated[int, Field(ge=1, le=60_000)] | None = None
    converge_within_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None
    at_deadline: Literal["cancel", "post-copy", "pause"] | None = None
    auto_converge: bool | None = None
    xbzrle: bool | None = None
    multifd_channels: Annotated[int, Field(ge=0, le=64)] | None = None
    multifd_compression: Literal["none", "zlib", "zstd"] | None = None
    post_copy_after_passes: Annotated[int, Field(ge=1, le=1_000)] | None = None
    post_copy_after_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None
    preempt: bool | None = None
    post_copy_bytes_per_second: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    bandwidth_bytes_per_second: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None


class Move(Body):
    """Move `vm` (name or UUID) to `destination` (name or SPIFFE id). `ports` defaults to memory.

    One name of the relays' [ports] in its place opens that port of another program, and moves nothing.

    `break_glass`: the id of an approved breaking of glass, under which it is asked for.
    """

    vm: Name
    destination: Name
    reason: Reason | None = None
    ports: Annotated[list[AnyPort], Field(min_length=1, max_length=3)] | None = None
    break_glass: MigrationId | None = None
    how: HowToMove | None = None


class CheckMove(Move):
    """`preflight`: also ask both hosts whether the VM can move, if it may. `explain`: tell of every policy."""

    preflight: bool = False
    explain: bool = False


class InspectionAnswer(Body):
    """What the relay found; its shape is `transport.hypervisors.preflight_facts.Inspection`."""

    inspection_id: MigrationId
    found: dict[str, Any]


class AskToBreakGlass(Body):
    """To move `vm` to `destination` within `minutes` from the approval."""

    vm: Name
    destination: Name
    ticket: Annotated[str, Field(min_length=1, max_length=64)]
    minutes: Annotated[int, Field(ge=1, le=1440)]
    reason: ShortReason
    ports: Annotated[list[Port], Field(min_length=1, max_length=3)] | None = None


class StepOfBreakGlass(Body):
    """A step that needs no more than its reason."""

    reason: ShortReason | None = None


class Poll(Body):
    """How long the answer may take when there is nothing to do, and which keys and CAs the relay believes."""

    wait_seconds: Annotated[int, Field(ge=0, le=300)]
    holds: Annotated[list[Annotated[str, Field(pattern=r"^[a-z]{1,8}:[0-9a-f]{0,64}$")]], Field(max_length=128)] = []


class ToldMigration(Body):
    """Of an assignment `permit`."""

    migration_id: Annotated[str, Field(min_length=1, max_length=64)]


class KnownHosts(Body):
    """The version of the address book that the relay has; empty for none."""

    known_version: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


Uuid = Annotated[str, Field(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")]
Milliseconds = Annotated[int, Field(ge=0, le=2**53)]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Line = Annotated[str, Field(max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")]


class GuestReport(Body):
    """A guest of the host. Ages in milliseconds before the report was made."""

    uuid: Uuid
    name: Line
    presence: Literal["active", "arriving", "leaving"]
    run_state: Word
    is_sure: bool
    arrival: Literal["found", "started", "migrated", "restored"]
    since_ms_ago: Milliseconds
    seen_ms_ago: Milliseconds
    devices: Annotated[list[Line], Field(max_length=32)]


class PlacementReport(Body):
    """What runs on the host: a snapshot in parts, then changes. `report_seconds`: how often the relay will report."""

    epoch: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    sequence: Annotated[int, Field(ge=1, le=2**53)]
    full: bool
    more: bool
    report_seconds: Annotated[float, Field(gt=0, le=300)]
    confirmed_ms_ago: Milliseconds
    guests: Annotated[list[GuestReport], Field(max_length=100)]
    gone: Annotated[list[Uuid], Field(max_length=100)]


class LibvirtWish(Body):
    """What a client of libvirt on the relay's host wants; `token` of the person, if one was handed in."""

    vm: Uuid
    destination: Name
    ports: Annotated[list[Port], Field(min_length=1, max_length=3)]
    token: Annotated[str, Field(min_length=1, max_length=16 * 1024)] | None = Field(default=None, repr=False)
    reason: Reason | None = None


Plain = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+$"
Number = Annotated[int, Field(ge=0, le=2**32 - 1)]


class RefusedLibvirtCall(Body):
    """Calls of libvirt that a relay refused, alike in all but time and process; of `uid` and `pid` at a front.

    `peer`: at the source the destination as the front calls it, at the destination the SPIFFE id of the source.
    """

    role: Literal["source", "destination"]
    peer: Annotated[str, Field(min_length=1, max_length=255, pattern=Plain)]
    cause: Annotated[str, Field(max_length=300, pattern=r"^[\x20-\x7e]+$")]
    procedure: Annotated[int, Field(ge=-(2**31), le=2**32 - 1)] | None
    procedure_name: Word | None
    vm: Uuid | None
    vm_name: Annotated[str, Field(max_length=255, pattern=Plain)] | None
    uid: Number | None
    pid: Number | None
    count: Annotated[int, Field(ge=1, le=2**53)]
    first_ms_ago: Milliseconds
    last_ms_ago: Milliseconds


class RefusalReport(Body):
    """`lost`: calls beyond these that the relay had no room to keep."""

    epoch: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    sequence: Annotated[int, Field(ge=1, le=2**53)]
    lost: Annotated[int, Field(ge=0, le=2**53)]
    refusals: Annotated[list[RefusedLibvirtCall], Field(min_length=1, max_length=32)]


class ProgressReport(Body):
    """What the hypervisor says, in bytes; `pass` is the pre-copy pass."""

    migration_id: MigrationId
    state: Literal["running", "handing_over", "completed", "failed", "cancelled"]
    transferred_bytes: Count
    remaining_bytes: Count
    total_bytes: Count
    rate_bytes_per_second: Count
    pass_number: Annotated[Count, Field(alias="pass")]
    downtime_ms: Count | None = None
    message: Annotated[str, Field(max_length=1024)] | None = None


class ShownPermit(Body):
    permit: Annotated[str, Field(min_length=1, max_length=16 * 1024)]


class SignedReceipt(Body):
    """`body`: canonical JSON text; `signature` (DER) and `chain` (DER certificates, leaf first) in base64."""

    body: Annotated[str, Field(min_length=2, max_length=MAX_RECEIPT_CHARS)]
    signature: Annotated[str, Field(min_length=4, max_length=256)]
    chain: Annotated[list[Annotated[str, Field(max_length=8 * 1024)]], Field(min_length=1, max_length=4)]


class ReceiptReport(Body):
    receipt: SignedReceipt
