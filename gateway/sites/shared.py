"""What another site tells of its log must look like before it is held against ours: its gateway may be hostile.

Else one that has something to hide would have the comparison fail, or its outcome grow too large for a record. Only
what is looked at has a shape here: a newer gateway may tell more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Text = Annotated[str, Meta(max_length=512)]
Role = Literal["source", "destination"]


class _Vm(msgspec.Struct, frozen=True):
    uuid: Text | None


class _Side(msgspec.Struct, frozen=True):
    role: Role
    other_jti: Text | None = None
    other_permit_sha256: Text | None = None


class _Permit(msgspec.Struct, frozen=True):
    jti: Text
    session_until: Annotated[int, Meta(ge=0, le=2**53)]


class _OfDecision(msgspec.Struct, frozen=True):
    site: _Side
    permit: _Permit | None = None


class _OfAnswer(msgspec.Struct, frozen=True):
    permit_sha256: Text | None = None
    other_jti: Text | None = None


class _OfReceipt(msgspec.Struct, frozen=True):
    role: Role
    body: Annotated[str, Meta(max_length=64 * 1024)]
    body_sha256: Text | None = None


class _Record(msgspec.Struct, frozen=True, tag_field="kind", kw_only=True):
    migration_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")]
    vm: _Vm
    outcome: Text | None = None
    source: Text | None = None
    destination: Text | None = None


class _Decision(_Record, frozen=True, tag="migration.decision", kw_only=True):
    details: _OfDecision


class _Answer(_Record, frozen=True, tag="migration.other_site", kw_only=True):
    details: _OfAnswer


class _Receipt(_Record, frozen=True, tag="migration.receipt", kw_only=True):
    details: _OfReceipt


class _Channel(msgspec.Struct, frozen=True):
    channel: Annotated[int, Meta(ge=0, le=2**53)]


class _Body(msgspec.Struct, frozen=True):
    outcome: Text
    channels: tuple[_Channel, ...] = ()
    content_digests: dict[str, str] | None = None
    peer_receipt_sha256: Text | None = None


def require_record(record: Mapping[str, Any]) -> None:
    """Of one of `reconcile.KINDS`, with all that is compared. Raises msgspec.ValidationError."""
    msgspec.convert(record, _Decision | _Answer | _Receipt)


def read_body(text: Any) -> dict[str, Any]:
    """Of a receipt, as far as it is compared. Raises msgspec.MsgspecError, TypeError, RecursionError."""
    body = msgspec.json.decode(text, type=dict[str, Any])
    msgspec.convert(body, _Body)
    return body
