"""Receipts: what one relay certifies of a session, signed with its host key (docs/wire-protocol.md section 8)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.tls import CIPHER as TLS_CIPHER
from certs.tls import ControlPeer, HostCredentials
from policy.permit import VerifiedPermit
from transport.errors import UNDECODABLE, ConfigurationError, ProtocolViolation
from transport.relay.channel import ChannelCounts
from transport.relay.content_digests import document
from transport.wire.control import Role
from transport.wire.frames import CIPHER
from transport.wire.messages import Receipt

VERSION = 1
# Recoveries of one session that are certified although they were interrupted, each by a receipt of its own: a gateway
# takes 32 of a host, and the one that comes last tells the most.
MOST_INTERRUPTED: Final = 24


@dataclass(slots=True)
class ReceiptFacts:
    """What a session gathers for its receipt while it runs. Times are of this host's clock."""

    role: Role
    permit: VerifiedPermit
    vm_binding: str
    started: datetime
    own_leaf_sha256: bytes
    peer: ControlPeer | None = None
    channels: list[ChannelCounts] = field(default_factory=list)
    connections: int = 0
    is_recovery: bool = False  # it went on with the interrupted post-copy of another session
    lacks_memory: bool = False  # at D: the guest runs, and not all of its memory has come in this session
    lacks_counts: bool = False  # a former process of this relay carried it, and its counts went with that
    outcome: str = "failed"
    downtime_ms: int | None = None
    peer_receipt_sha256: str | None = None
    is_kept: bool = False  # at D, durably

    @property
    def has_carried(self) -> bool:
        return any(each.sent_bytes or each.received_bytes for each in self.channels)


def make_receipt(facts: ReceiptFacts, credentials: HostCredentials, ended: datetime) -> Receipt:
    """The signed receipt, as it goes to the peer. The body is canonical JSON."""
    return _signed(_body(facts, ended), credentials)


def naming_peers(sent: Receipt, peer_receipt_sha256: str | None, credentials: HostCredentials) -> Receipt:
    """A receipt of ours that was sent, as we keep it: with the digest of what was answered."""
    return _signed(msgspec.json.decode(sent.body) | {"peer_receipt_sha256": peer_receipt_sha256}, credentials)


def _signed(members: dict[str, Any], credentials: HostCredentials) -> Receipt:
    body = msgspec.json.encode(members, order="sorted")
    key = credentials.private_key
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError("identity.private_key must be an EC P-256 key: it signs receipts")
    signature = key.sign(body, ec.ECDSA(hashes.SHA256()))
    return Receipt(body.decode(), base64.b64encode(signature).decode())


def recovery_suffix(started: datetime, recovery_id: str) -> str:
    """Of the name under which a recovery's receipt waits: in the order of names it comes after what it recovers."""
    return f".recovery-{started:%Y%m%dT%H%M%S}-{recovery_id[:8]}"


def receipt_for_gateway(receipt: Receipt, chain: Sequence[x509.Certificate], permit: str) -> bytes:
    """As the spool keeps it: what the gateway takes (receipt, signature and certificate chain), and its permit."""
    return msgspec.json.encode(
        {
            "receipt": {
                "body": receipt.body,
                "signature": receipt.signature,
                "chain": [base64.b64encode(c.public_bytes(Encoding.DER)).decode() for c in chain],
            },
            "permit": permit,
        }
    )


def for_gateway_and_permit(kept: bytes) -> tuple[bytes, str | None]:
    """Of a kept receipt the gateway's part, and the permit if it is there. What cannot be read goes as it is."""
    try:
        document = msgspec.json.decode(kept, type=dict)
    except UNDECODABLE:
        return kept, None
    permit = document.pop("permit", None)
    return msgspec.json.encode(document), permit if isinstance(permit, str) else None


def receipt_sha256(receipt: Receipt) -> str:
    return hashlib.sha256(receipt.body.encode()).hexdigest()


class _Outcome(msgspec.Struct):
    outcome: str


def outcome_of(receipt: Receipt) -> str | None:
    """What a peer's receipt certifies, if it can be read."""
    try:
        return msgspec.json.decode(receipt.body, type=_Outcome).outcome
    except UNDECODABLE:
        return None


def verify_peer_receipt(receipt: Receipt, peer: ControlPeer) -> None:
    """`ProtocolViolation` unless the peer of this very connection signed it."""
    key = peer.leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ProtocolViolation("a receipt by a key that is not EC")
    try:
        signature = base64.b64decode(receipt.signature, validate=True)
        key.verify(signature, receipt.body.encode(), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        raise ProtocolViolation("a receipt whose signature does not verify") from None


def _body(facts: ReceiptFacts, ended: datetime) -> dict[str, Any]:
    claims, peer = facts.permit.claims, facts.peer
    theirs = peer.leaf_sha256.hex() if peer else None
    own = None if facts.lacks_counts and peer is None else facts.own_leaf_sha256.hex()  # a former process showed one
    is_source = facts.role is Role.SOURCE
    digests = {c.channel: c.digests for c in facts.channels if c.digests is not None}
    has_digests = claims.requirements.content_digest and not facts.lacks_counts
    return {
        "version": VERSION,
        "role": facts.role.value,
        "jti": claims.jti,
        "migration_id": claims.migration_id,
        "permit_sha256": hashlib.sha256(facts.permit.token.encode()).hexdigest(),
        "source": claims.source,
        "destination": claims.destination,
        "vm": claims.vm,
        "vm_binding": facts.vm_binding,
        "tls": {"version": peer.tls_version, "group": peer.group, "cipher": peer.cipher} if peer else None,
        "lane_cipher": _lane_cipher(facts),
        "source_fingerprint": own if is_source else theirs,
        "destination_fingerprint": theirs if is_source else own,
        "channels": [
            {
                "channel": c.channel,
                "port": c.port,
                "sent_bytes": c.sent_bytes,
                "received_bytes": c.received_bytes,
                "sent_frames": c.sent_frames,
                "received_frames": c.received_frames,
            }
            for c in facts.channels
        ],
        "resumptions": max(0, facts.connections - 1),
        "outcome": facts.outcome,
        "started": _rfc3339(min(facts.started, ended)),  # the clock may have been set back since
        "ended": _rfc3339(ended),
        "downtime_ms": facts.downtime_ms,
        "checkpoint": facts.permit.proof.checkpoint,
        "peer_receipt_sha256": facts.peer_receipt_sha256,
        "content_digests": document(digests, facts.role) if has_digests else None,
        **_of_other_site(facts.permit),
        **({"recovery": True} if facts.is_recovery else {}),
        **({"lacks_memory": True} if facts.lacks_memory else {}),
        **({"lacks_counts": True} if facts.lacks_counts else {}),
    }


def _of_other_site(permit: VerifiedPermit) -> dict[str, str]:
    """Only in a session of two sites: `jti`, `permit_sha256` and `checkpoint` are of the receipt's own site."""
    if permit.other is None:
        return {}
    return {"other_permit_sha256": hashlib.sha256(permit.other.token.encode()).hexdigest()}


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _lane_cipher(facts: ReceiptFacts) -> str | None:
    if not facts.channels:
        return None
    return TLS_CIPHER if facts.permit.claims.seal == "tls" else CIPHER
