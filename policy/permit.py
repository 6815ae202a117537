"""The permit: what a gateway allows, in a form that both relays verify offline.

A permit is a compact JWS (`typ: sealane-permit+jwt`, ES256) over canonical JSON: the claims below and `proof`,
which shows that the *permit entry* of these claims is in the gateway's log (`docs/wire-protocol.md`, section 3).
This module makes and checks all of it but the Merkle proof and the single use, which belong to the relay.
It is on the path of a hypervisor host: nothing here needs more than msgspec, python-jose and cryptography.

Single use is by (`key_id`, `jti`), never by a hash of the text: an ECDSA signature has two spellings, (r, s) and
(r, n - s), and anyone can turn one into the other. Only the one with the smaller s is accepted here, so that the
permit hash in both relays' receipts and in the gateway's record is one, too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal, cast

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from policy.errors import PermitRefused, PermitTooLarge, TokenRefused
from policy.jws import (
    MAX_TOKEN_BYTES,
    UnverifiedToken,
    VerificationKey,
    decode_base64url,
    encode_base64url,
    key_id_of,
    parse_strict,
    sign,
    verify_signature,
)

PERMIT_TYPE: Final = "sealane-permit+jwt"
MAX_PERMIT_BYTES: Final = MAX_TOKEN_BYTES
MAX_ENTRY_BYTES: Final = 4 * 1024
MAX_PROOF_CHECKPOINT_CHARS: Final = 4096
ALGORITHM: Final = "ES256"
SKEW_SECONDS: Final = 30
# An evacuation permit is issued hours ahead. The relay's store of used `jti` is purged after `exp`, so that its
# size follows from this cap; a session that lasts for days is one that should be asked for anew.
MAX_BEGIN_SECONDS: Final = 24 * 3600
MAX_RECOVER_SECONDS: Final = 7 * 24 * 3600
# Order of the P-256 group (SEC 2, section 2.4.2).
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

_HOST = (
    r"spiffe://(?=[a-z0-9.-]{1,255}/)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
    r"/host/[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
)
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

# A hypervisor's ports, and names that a site gives to ports of other programs (docs/relay.md).
HYPERVISOR_PORTS: Final = frozenset({"disks", "libvirt", "memory"})
PORT_NAME: Final = r"\A[a-z]([a-z0-9-]{0,30}[a-z0-9])?\Z"
Port = Annotated[str, Meta(pattern=PORT_NAME, max_length=32)]
Seal = Literal["sealane", "tls"]
HostId = Annotated[str, Meta(pattern=rf"\A{_HOST}\Z", max_length=255)]
CanonicalUuid = Annotated[str, Meta(pattern=rf"\A{_UUID}\Z")]
Name = Annotated[str, Meta(pattern=r"\A[\x21-\x7e]+\Z", max_length=255)]  # printable ASCII without spaces
FileName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")]  # relays name spool files by it
Seconds = Annotated[int, Meta(ge=0, le=253_402_300_799)]  # unix time, up to the year 9999
Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Hash = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9+/]{43}=\Z")]  # 32 bytes in base64
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much a session may use; `bandwidth_bytes_per_second` 0 is no limit."""

    max_channels: Annotated[int, Meta(ge=1, le=65_535)]
    bandwidth_bytes_per_second: Count


class Requirements(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What relays must be able to do; `vm_binding`: check the UUID of the VM behind the socket."""

    content_digest: bool
    stream_inspection: bool
    vm_binding: bool


class PermitClaims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One migration of one VM from one host to one other. Times are unix seconds.

    `exp` is the end of beginning a session, `session_until` of going on with it, `recover_until` of post-copy
    recovery. `aud` is the destination. `bundle` is the policy bundle's digest in hex.

    `seal`: how lanes are sealed: by frames of their own, or (`tls`) by TLS.
    """

    iss: Name
    aud: HostId
    jti: FileName
    iat: Seconds
    nbf: Seconds
    exp: Seconds
    session_until: Seconds
    recover_until: Seconds
    migration_id: FileName
    vm: CanonicalUuid
    source: HostId
    destination: HostId
    ports: tuple[Port, ...]
    limits: Limits
    requirements: Requirements
    minimum_crl_number: Count
    bundle: Digest
    seal: Seal = "sealane"

    @property
    def named_port(self) -> str | None:
        return named_port(self.ports)

    @property
    def moves_guest(self) -> bool:
        """Else another program's stream is carried, and whatever becomes of it, the VM stays where it is."""
        return self.named_port is None


class PermitProof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the permit entry is in the log (`index`, `path`, `checkpoint`), and which decision it follows."""

    decision_index: Count
    decision_leaf_hash: Hash
    index: Count
    checkpoint: Annotated[str, Meta(min_length=1, max_length=MAX_PROOF_CHECKPOINT_CHARS)]
    path: Annotated[tuple[Hash, ...], Meta(max_length=63)]  # a log has fewer than 2^63 entries

    def path_hashes(self) -> tuple[bytes, ...]:
        """The inclusion path from the leaf's sibling upwards, 32 bytes each."""
        return tuple(map(_decode_hash, self.path))


@dataclass(frozen=True, slots=True)
class PermitKey:
    """A pinned gateway key, and its id by `policy.jws.key_id_of`."""

    key_id: str
    public_key: ec.EllipticCurvePublicKey

    @classmethod
    def from_public_key(cls, public_key: ec.EllipticCurvePublicKey) -> PermitKey:
        """Raises ValueError (the operator: pin a P-256 key) for any other curve."""
        if not isinstance(public_key, ec.EllipticCurvePublicKey) or public_key.curve.name != "secp256r1":
            raise ValueError("a permit key must be an EC key on P-256")
        return cls(key_id_of(public_key), public_key)

    @classmethod
    def from_pem(cls, pem: bytes) -> PermitKey:
        """Read a `PUBLIC KEY` PEM, as `certs init` writes it; ValueError (the operator) if it is no P-256 key."""
        return cls.from_public_key(cast(ec.EllipticCurvePublicKey, serialization.load_pem_public_key(pem)))


@dataclass(frozen=True, slots=True)
class VerifiedPermit:
    """A permit whose signature and form hold. Times, parties, VM, ports, proof and single use are yet to check."""

    token: str = field(repr=False)
    claims: PermitClaims
    proof: PermitProof
    key_id: str
    other: VerifiedPermit | None = None  # the other site's, of the same migration (`paired`)


def permit_entry(claims: PermitClaims, decision_index: int, decision_leaf_hash: bytes) -> bytes:
    """The entry that the log appends right after decision `decision_index`; PermitTooLarge above 4 KiB."""
    if len(decision_leaf_hash) != hashlib.sha256().digest_size:
        raise ValueError("decision_leaf_hash is not a SHA-256")
    leaf_hash = base64.b64encode(decision_leaf_hash).decode("ascii")
    decision = {"index": decision_index, "leaf_hash": leaf_hash}
    entry = _canonical({"kind": "sealane-permit", "decision": decision, "claims": claims})
    if len(entry) > MAX_ENTRY_BYTES:
        raise PermitTooLarge("permit entry", len(entry), MAX_ENTRY_BYTES)
    return entry


def proof_entry(permit: VerifiedPermit) -> bytes:
    """The permit entry, rebuilt from what was signed; the relay checks its inclusion in the log."""
    proof = permit.proof
    return permit_entry(permit.claims, proof.decision_index, _decode_hash(proof.decision_leaf_hash))


def seal_permit(claims: PermitClaims, proof: PermitProof, private_key: ec.EllipticCurvePrivateKey, key_id: str) -> str:
    """Sign claims and proof as a compact JWS of at most 16 KiB.

    Raises PermitRefused if a relay would refuse them (our mistake), PermitTooLarge, and ValueError if `key_id`
    is not the id of the key.
    """
    if key_id != PermitKey.from_public_key(private_key.public_key()).key_id:
        raise ValueError("key_id is not the id of the permit key")
    payload = _canonical(_payload(claims, proof))
    _decode_payload(payload, msgspec.json.decode(payload))
    token = _with_low_s(sign(payload, private_key, key_id=key_id, token_type=PERMIT_TYPE))
    if len(token) > MAX_PERMIT_BYTES:
        raise PermitTooLarge("permit", len(token), MAX_PERMIT_BYTES)
    return token


def verify_permit(token: str, keys: Sequence[PermitKey]) -> VerifiedPermit:
    """Check size, form, the signature by exactly one of the pinned `keys`, type, and every claim's form.

    Raises PermitRefused, whose `check` names the first of them that failed. Pure and offline.
    """
    try:
        parsed = parse_strict(
            token,
            algorithms=frozenset({ALGORITHM}),
            header_members=frozenset({"alg", "kid", "typ"}),
            max_bytes=MAX_PERMIT_BYTES,
        )
        key = _pinned_key(parsed, keys)
        verify_signature(parsed, VerificationKey(key.key_id, key.public_key, ALGORITHM))
    except TokenRefused as error:
        raise PermitRefused(_permit_check(error), error.detail) from error
    if not _is_low_s(parsed.signature):
        raise PermitRefused("signature", "the signature is the other spelling of a valid one (high s)")
    if parsed.header.get("typ") != PERMIT_TYPE:
        raise PermitRefused("type", f"typ is not {PERMIT_TYPE}")
    claims, proof = _decode_payload(parsed.payload, dict(parsed.claims))
    return VerifiedPermit(token, claims, proof, key.key_id)


def check_times(claims: PermitClaims, now: int, skew: int = SKEW_SECONDS) -> None:
    """Require that a session may begin at `now` (unix seconds). Raises PermitRefused("times")."""
    if claims.iat > now + skew:
        raise PermitRefused("times", "issued in the future: compare the clocks of relay and gateway")
    if now < claims.nbf - skew:
        raise PermitRefused("times", "not yet valid")
    if now > claims.exp + skew:
        raise PermitRefused("times", "expired")


def check_parties(claims: PermitClaims, source: str, destination: str) -> None:
    """Require that the two hosts are the permit's; SPIFFE ids from certificates, never from a message.

    Raises PermitRefused (source, destination; audience if the permit contradicts itself).
    """
    if claims.aud != claims.destination:
        raise PermitRefused("audience", "aud is not the destination")
    if claims.source != source:
        raise PermitRefused("source", "for another source host")
    if claims.destination != destination:
        raise PermitRefused("destination", "for another destination host")


def named_port(ports: Iterable[str]) -> str | None:
    """The port of another program, if a permit is for one: then it opens nothing else, and moves no guest."""
    return next((port for port in ports if port not in HYPERVISOR_PORTS), None)


def trust_domain_of(host: str) -> str:
    """Of a host's SPIFFE id in its canonical form, as claims have it."""
    return host.removeprefix("spiffe://").partition("/")[0]


def paired(own: VerifiedPermit, other: VerifiedPermit) -> VerifiedPermit:
    """`own` with the other site's permit of the same migration: what is left to begin is what both allow.

    Both are verified. Raises PermitRefused where they are not of one migration, or one gateway signed both. Begin and
    single use go by each permit's own `exp`.
    """
    ours, theirs = own.claims, other.claims
    if own.key_id == other.key_id:
        raise PermitRefused("signature", "one gateway has signed both permits")
    same: tuple[tuple[str, Any, Any], ...] = (
        ("vm", ours.vm, theirs.vm),
        ("source", ours.source, theirs.source),
        ("destination", ours.destination, theirs.destination),
        ("ports", ours.ports, theirs.ports),
        ("claims", (ours.migration_id, ours.seal), (theirs.migration_id, theirs.seal)),
    )
    for check, mine, of_other in same:
        if mine != of_other:
            raise PermitRefused(cast(Any, check), "the two sites' permits are not of one migration")
    rates = [each.limits.bandwidth_bytes_per_second for each in (ours, theirs)]
    needs = ours.requirements, theirs.requirements
    claims = msgspec.structs.replace(
        ours,
        session_until=min(ours.session_until, theirs.session_until),
        recover_until=min(ours.recover_until, theirs.recover_until),
        limits=Limits(
            min(ours.limits.max_channels, theirs.limits.max_channels), min((rate for rate in rates if rate), default=0)
        ),
        requirements=Requirements(
            content_digest=any(each.content_digest for each in needs),
            stream_inspection=any(each.stream_inspection for each in needs),
            vm_binding=any(each.vm_binding for each in needs),
        ),
    )
    return replace(own, claims=claims, other=other)


def _pinned_key(token: UnverifiedToken, keys: Sequence[PermitKey]) -> PermitKey:
    """The one pinned key that the permit names; the same key pinned twice is one key."""
    named = [key for key in keys if key.key_id == token.key_id]
    if not named or any(key != named[0] for key in named):
        raise TokenRefused("key", "not signed by a pinned gateway key")
    return named[0]


def _payload(claims: PermitClaims, proof: PermitProof) -> dict[str, Any]:
    return {**msgspec.structs.asdict(claims), "proof": proof}


def _decode_payload(payload: bytes, members: dict[str, Any]) -> tuple[PermitClaims, PermitProof]:
    """Decode strictly, and require that one permit has one spelling.

    The log's entry is rebuilt from the decoded claims. Encoding them again must therefore give the very bytes
    that were signed: no default filled in, no float for an integer, no other order, no space.
    """
    try:
        proof = msgspec.convert(members.pop("proof", None), PermitProof)
        claims = msgspec.convert(members, PermitClaims)
    except msgspec.ValidationError as error:
        raise PermitRefused("claims", str(error)) from error
    if _canonical(_payload(claims, proof)) != payload:
        raise PermitRefused("claims", "not canonical JSON")
    _check_consistent(claims, proof)
    return claims, proof


def _check_consistent(claims: PermitClaims, proof: PermitProof) -> None:
    """What no honest gateway writes, whatever the time and whoever asks."""
    if claims.aud != claims.destination:
        raise PermitRefused("audience", "aud is not the destination")
    if claims.source == claims.destination:
        raise PermitRefused("claims", "source and destination are one host")
    if not claims.ports or list(claims.ports) != sorted(set(claims.ports)):
        raise PermitRefused("claims", "ports are not sorted, unique and at least one")
    if len(claims.ports) > 1 and not claims.moves_guest:
        raise PermitRefused("ports", "a named port beside another: it moves no guest, and is opened alone")
    if not claims.nbf <= claims.exp <= claims.session_until <= claims.recover_until:
        raise PermitRefused("times", "not nbf <= exp <= session_until <= recover_until")
    if not claims.iat <= claims.exp <= claims.iat + MAX_BEGIN_SECONDS:
        raise PermitRefused("times", f"exp is not within {MAX_BEGIN_SECONDS} s of iat")
    if claims.recover_until > claims.iat + MAX_RECOVER_SECONDS:
        raise PermitRefused("times", f"recover_until is more than {MAX_RECOVER_SECONDS} s after iat")
    if proof.index <= proof.decision_index:
        raise PermitRefused("claims", "the permit entry does not follow its decision")
    for text in (proof.decision_leaf_hash, *proof.path):
        if base64.b64encode(_decode_hash(text)).decode("ascii") != text:
            raise PermitRefused("claims", "a hash that is not canonical base64")


def _permit_check(error: TokenRefused) -> Any:
    """The checks of `policy.jws` have the same names here."""
    return error.check


def _decode_hash(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise PermitRefused("claims", "a hash that is not base64") from error


def _canonical(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _is_low_s(signature: bytes) -> bool:
    return int.from_bytes(signature[32:]) <= P256_ORDER // 2


def _with_low_s(token: str) -> str:
    signing_input, _, text = token.rpartition(".")
    signature = decode_base64url(text)
    if not _is_low_s(signature):
        low = P256_ORDER - int.from_bytes(signature[32:])
        signature = signature[:32] + low.to_bytes(32)
    return f"{signing_input}.{encode_base64url(signature)}"
