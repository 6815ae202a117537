"""Test vectors of permits (docs/wire-protocol.md, section 3), a part of docs/wire-vectors.json: what a destination
takes, what it refuses, and by which code. Single use, witnesses and a second site are not among them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from audit.checkpoint import Checkpoint, LogSigner, sign_checkpoint, signature_line
from audit.merkle import Tree, inclusion_path
from audit.proof import leaf_hash
from policy.jws import encode_base64url
from policy.permit import P256_ORDER, Limits, PermitClaims, PermitKey, PermitProof, Requirements, permit_entry
from transport.relay.permits import PermitDesk

NOW: Final = 1_800_000_000
CRL_NUMBER: Final = 7
SOURCE, DESTINATION = "spiffe://example.test/host/a", "spiffe://example.test/host/b"
KEY: Final = ec.derive_private_key(0x5EA1A4E, ec.SECP256R1())
OTHER_KEY: Final = ec.derive_private_key(0x0DDBA11, ec.SECP256R1())
LOG: Final = LogSigner("example.test/log", ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER_LOG: Final = LogSigner("example.test/log", ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)))
KEY_ID: Final = PermitKey.from_public_key(KEY.public_key()).key_id
HEAD: Final = msgspec.json.encode({"alg": "ES256", "kid": KEY_ID, "typ": "sealane-permit+jwt"})
DECISION: Final = b'{"kind":"migration.decision"}'
NOTHING: Final = Requirements(content_digest=False, stream_inspection=False, vm_binding=False)
CLAIMS: Final = PermitClaims(
    iss="gateway.example.test",
    aud=DESTINATION,
    jti="7f3c",
    iat=NOW - 10,
    nbf=NOW - 10,
    exp=NOW + 60,
    session_until=NOW + 600,
    recover_until=NOW + 1200,
    migration_id="m-1",
    vm="11111111-2222-4333-8444-555555555555",
    source=SOURCE,
    destination=DESTINATION,
    ports=("disks", "memory"),
    limits=Limits(max_channels=16, bandwidth_bytes_per_second=0),
    requirements=Requirements(content_digest=False, stream_inspection=False, vm_binding=True),
    minimum_crl_number=CRL_NUMBER,
    bundle="0" * 64,
)

DESK: Final = PermitDesk(  # of the destination that judges them
    trust_domain="example.test",
    permit_keys=(PermitKey.from_public_key(KEY.public_key()),),
    log_verifiers=(LOG.verifier,),
    witness_keys=(),
    witnesses_required=0,
    can_bind_vm=True,
    crl_number=lambda: CRL_NUMBER,
    clock=lambda: NOW,
    supported_ports=frozenset({"backup-1", "disks", "memory"}),
    seals=frozenset({"sealane", "tls"}),
)


def permit_vectors() -> dict[str, Any]:
    spki = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return {
        "now": NOW,
        "source": SOURCE,
        "destination": DESTINATION,
        "crl_number": CRL_NUMBER,
        "ports": sorted(DESK.supported_ports),
        "seals": sorted(DESK.seals),
        "meets": ["content_digest", "vm_binding"],
        "permit_key": base64.b64encode(spki).decode(),
        "key_id": KEY_ID,
        "log_key": LOG.vkey,
        "good": [*map(_good, GOOD), _good(CLAIMS, "".join(map(_signed_by_another, ("other.test/log", LOG.origin))))],
        "refused": [{"why": why, "code": code, "permit": permit} for why, (code, permit) in _refused().items()],
    }


GOOD: Final = (
    CLAIMS,
    msgspec.structs.replace(CLAIMS, seal="tls", iat=NOW + 30, nbf=NOW + 30),
    msgspec.structs.replace(
        CLAIMS,
        ports=("backup-1",),
        iat=NOW - 60,
        nbf=NOW - 60,
        exp=NOW - 30,
        requirements=NOTHING,
        minimum_crl_number=0,
    ),
)


def _good(claims: PermitClaims, more_signatures: str = "") -> dict[str, Any]:
    proof, entry = logged(claims)
    proof = msgspec.structs.replace(proof, checkpoint=proof.checkpoint + more_signatures)
    return {"entry": entry.decode(), "leaf_hash": leaf_hash(entry).hex(), "permit": _permit(claims, proof)}


def _signed_by_another(name: str) -> str:
    """A signature of a checkpoint by a key that is not pinned, be it of the same name."""
    return signature_line(name, b"\0\0\0\1", bytes(64))


def _refused() -> dict[str, tuple[str, str]]:
    proof, _ = logged(CLAIMS)
    payload = payload_of(CLAIMS, proof)
    good = _permit(CLAIMS, proof)
    signed, _, signature = good.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    other_s = raw[:32] + (P256_ORDER - int.from_bytes(raw[32:])).to_bytes(32)
    body = proof.checkpoint.partition("\n\n")[0] + "\n"
    wrong_line = signature_line(LOG.origin, LOG.verifier.key_id, bytes(64))
    first, _, rest = payload[1:-1].partition(b',"bundle"')
    spelled = {
        "signed by a key that is not pinned": ("permit_signature", _jws(payload, key=OTHER_KEY)),
        "another key's id": ("permit_signature", _jws(payload, kid="0" * 16)),
        "another algorithm": ("permit_signature", _jws(payload, alg="ES384")),
        "the other spelling of its signature": ("permit_signature", f"{signed}.{encode_base64url(other_s)}"),
        "a signature that does not verify": ("permit_signature", f"{signed}.{encode_base64url(bytes(64))}"),
        "another typ": ("permit_format", _jws(payload, typ="JWT")),
        "no typ": ("permit_format", _jws(payload, typ=None)),
        "one more member in its header": ("permit_format", _jws(payload, cty="x")),
        "padded base64url": ("permit_format", good + "="),
        "left-over bits in base64url": ("permit_format", good[:-1] + chr(ord(good[-1]) + 1)),
        "white space": ("permit_format", _jws(payload.replace(b":", b": ", 1))),
        "another order of members": ("permit_format", _jws(b'{"bundle"' + rest + b"," + first + b"}")),
        "a member twice": ("permit_format", _jws(b'{"aud":"x",' + payload[1:])),
        "one more member": ("permit_format", _jws(payload[:-1] + b',"x":1}')),
        "one member less": ("permit_format", _jws(payload.replace(b',"seal":"sealane"', b""))),
        "an escape that need not be": ("permit_format", _jws(payload.replace(b"gateway", b"\\u0067ateway"))),
        "a number with a fraction": (
            "permit_format",
            _jws(payload.replace(b'"exp":1800000060', b'"exp":1800000060.0')),
        ),
        "more than 16 KiB": ("permit_size", good + "A" * (16 * 1024)),
        "four parts": ("permit_format", good + ".AAAA"),
        "an empty signature": ("permit_format", signed + "."),
        "standard base64": ("permit_format", f"{signed}.{signature[:-1]}+"),
        "a member of another's object": (
            "permit_format",
            _jws(payload.replace(b'"max_channels":16', b'"max_channels":16,"vm_binding":true')),
        ),
        "one member less in an object": (
            "permit_format",
            _jws(payload.replace(b'"bandwidth_bytes_per_second":0,', b"")),
        ),
        "a control character by another escape": (
            "permit_format",
            _jws(payload.replace(b"log\\n", b"log\\u000a")),
        ),
        "a character escaped that need not be": (
            "permit_format",
            _jws(payload.replace("\N{EM DASH}".encode(), b"\\u2014")),
        ),
        "minus zero": ("permit_format", _jws(payload.replace(b'_second":0', b'_second":-0'))),
        "null for a boolean": ("permit_format", _jws(payload.replace(b'_digest":false', b'_digest":null'))),
        "a header that says a member twice": ("permit_format", headed(payload, b'{"typ":"x",' + HEAD[1:])),
        "a header that is no object": ("permit_format", headed(payload, b"[]")),
        "the proof of another permit": (
            "permit_proof",
            _permit(CLAIMS, logged(msgspec.structs.replace(CLAIMS, jti="another"))[0]),
        ),
        "the proof of another log": ("permit_proof", _permit(CLAIMS, logged(CLAIMS, log=OTHER_LOG)[0])),
        "an index that is not its entry's": ("permit_proof", _permit(CLAIMS, msgspec.structs.replace(proof, index=3))),
        "a path that is cut short": (
            "permit_proof",
            _permit(CLAIMS, msgspec.structs.replace(proof, path=proof.path[:-1])),
        ),
        "a path of one more hash": (
            "permit_proof",
            _permit(CLAIMS, msgspec.structs.replace(proof, path=(*proof.path, proof.path[0]))),
        ),
        "a path of 64 hashes": (
            "permit_format",
            _permit(CLAIMS, msgspec.structs.replace(proof, path=proof.path[:1] * 64)),
        ),
        "a hash with left-over bits": (
            "permit_format",
            _permit(CLAIMS, msgspec.structs.replace(proof, decision_leaf_hash="A" * 42 + "B=")),
        ),
        "a hash of 31 bytes": (
            "permit_format",
            _permit(CLAIMS, msgspec.structs.replace(proof, decision_leaf_hash=base64.b64encode(bytes(31)).decode())),
        ),
        "a checkpoint of 4,097 characters": (
            "permit_format",
            _permit(CLAIMS, msgspec.structs.replace(proof, checkpoint=proof.checkpoint.ljust(4097, "x"))),
        ),
        "the decision of another entry": (
            "permit_proof",
            _permit(CLAIMS, msgspec.structs.replace(proof, decision_index=0)),
        ),
        "a checkpoint without a signature": (
            "permit_proof",
            _permit(CLAIMS, msgspec.structs.replace(proof, checkpoint=body + "\n")),
        ),
        "a checkpoint of four lines": ("permit_proof", _permit(CLAIMS, _noted(proof, body + "x\n"))),
        "a checkpoint of another origin": (
            "permit_proof",
            _permit(CLAIMS, _noted(proof, body.replace("example", "other", 1))),
        ),
        "a size with a zero in front": ("permit_proof", _permit(CLAIMS, _noted(proof, body.replace("\n5", "\n05")))),
        "a wrong signature beside the right one": (
            "permit_proof",
            _permit(CLAIMS, msgspec.structs.replace(proof, checkpoint=proof.checkpoint + wrong_line)),
        ),
        "an entry before its decision": (
            "permit_format",
            _permit(CLAIMS, msgspec.structs.replace(proof, decision_index=2)),
        ),
    }
    return spelled | {why: (code, _with(**changes)) for why, (code, changes) in FALSE_CLAIMS.items()}


FALSE_CLAIMS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "another destination": (
        "permit_parties",
        {"aud": "spiffe://example.test/host/c", "destination": "spiffe://example.test/host/c"},
    ),
    "another source": ("permit_parties", {"source": "spiffe://example.test/host/c"}),
    "another site, which is not pinned": ("permit_parties", {"source": "spiffe://other.test/host/a"}),
    "an audience that is not the destination": ("permit_audience", {"aud": "spiffe://example.test/host/c"}),
    "over": ("permit_times", {"exp": NOW - 31, "iat": NOW - 60, "nbf": NOW - 60}),
    "not yet": ("permit_times", {"nbf": NOW + 31}),
    "issued in the future": ("permit_times", {"iat": NOW + 31}),
    "a session that ends before it may begin": ("permit_times", {"session_until": NOW + 59}),
    "to begin within more than a day": (
        "permit_times",
        {"exp": NOW + 86_391, "session_until": NOW + 86_391, "recover_until": NOW + 86_391},
    ),
    "to be recovered for more than a week": ("permit_times", {"recover_until": NOW + 7 * 86_400 - 9}),
    "ports that are not sorted": ("permit_format", {"ports": ("memory", "disks")}),
    "a port twice": ("permit_format", {"ports": ("memory", "memory")}),
    "no port": ("permit_format", {"ports": ()}),
    "a named port beside another": ("permit_ports", {"ports": ("backup-1", "memory")}),
    "a port that is not carried here": ("permit_ports", {"ports": ("console",)}),
    "a UUID in upper case": ("permit_format", {"vm": "AAAAAAAA-2222-4333-8444-555555555555"}),
    "a path in its id": ("permit_format", {"jti": "../7f3c"}),
    "no channel": ("permit_format", {"limits": Limits(max_channels=0, bandwidth_bytes_per_second=0)}),
    "another seal": ("permit_format", {"seal": "none"}),
    "inspection of the stream": (
        "permit_requirements",
        {"requirements": msgspec.structs.replace(NOTHING, stream_inspection=True)},
    ),
    "binding to a VM of what moves no guest": (
        "permit_requirements",
        {"ports": ("backup-1",), "requirements": msgspec.structs.replace(NOTHING, vm_binding=True)},
    ),
    "not valid before it is over": ("permit_times", {"nbf": NOW + 20, "exp": NOW + 19}),
    "over before it was issued": ("permit_times", {"iat": NOW + 20, "exp": NOW + 19}),
    "a session that lasts longer than its recovery": ("permit_times", {"session_until": NOW + 1201}),
    "from a host to itself": ("permit_format", {"source": DESTINATION}),
    "a host's id in upper case": ("permit_format", {"source": "spiffe://example.test/host/A"}),
    "another kind of id": ("permit_format", {"source": "spiffe://example.test/service/a"}),
    "an issuer with a space": ("permit_format", {"iss": "the gateway"}),
    "an issuer of 256 characters": ("permit_format", {"iss": "x" * 256}),
    "an id of 65 characters": ("permit_format", {"jti": "x" * 65}),
    "an id that begins with a hyphen": ("permit_format", {"migration_id": "-1"}),
    "a bundle in upper case": ("permit_format", {"bundle": "A" * 64}),
    "a port's name that is none": ("permit_format", {"ports": ("Memory",)}),
    "more channels than 16 bits can count": (
        "permit_format",
        {"limits": Limits(max_channels=65_536, bandwidth_bytes_per_second=0)},
    ),
    "a number beyond 53 bits": ("permit_format", {"minimum_crl_number": 1 << 53}),
    "a negative number": ("permit_format", {"minimum_crl_number": -1}),
    "a newer CRL": ("permit_requirements", {"minimum_crl_number": CRL_NUMBER + 1}),
}


def _noted(proof: PermitProof, body: str) -> PermitProof:
    """With a checkpoint of this text, which the log's key has signed."""
    line = signature_line(LOG.origin, LOG.verifier.key_id, LOG.sign(body.encode()))
    return msgspec.structs.replace(proof, checkpoint=f"{body}\n{line}")


def _with(**changes: Any) -> str:
    claims = msgspec.structs.replace(CLAIMS, **changes)
    return _permit(claims, logged(claims)[0])


def logged(claims: PermitClaims, log: LogSigner = LOG) -> tuple[PermitProof, bytes]:
    """As the third of five entries, right after its decision."""
    entry = permit_entry(claims, 1, leaf_hash(DECISION))
    tree = Tree(_no_tile)
    for each in (b"first", DECISION, entry, b"fourth", b"fifth"):
        tree.append(leaf_hash(each))
    proof = PermitProof(
        decision_index=1,
        decision_leaf_hash=base64.b64encode(leaf_hash(DECISION)).decode(),
        index=2,
        checkpoint=sign_checkpoint(Checkpoint(log.origin, tree.size, tree.root()), log),
        path=tuple(base64.b64encode(each).decode() for each in inclusion_path(2, tree.size, tree.subtree)),
    )
    return proof, entry


def _no_tile(*_: int) -> list[bytes]:
    raise AssertionError("five entries fill no tile")


def payload_of(claims: PermitClaims, proof: PermitProof) -> bytes:
    return msgspec.json.encode({**msgspec.structs.asdict(claims), "proof": proof}, order="sorted")


def _permit(claims: PermitClaims, proof: PermitProof) -> str:
    return _jws(payload_of(claims, proof))


def _jws(payload: bytes, key: ec.EllipticCurvePrivateKey = KEY, **header: str | None) -> str:
    members = {"alg": "ES256", "kid": KEY_ID, "typ": "sealane-permit+jwt"} | header
    head = msgspec.json.encode({name: value for name, value in members.items() if value is not None}, order="sorted")
    return headed(payload, head, key)


def headed(payload: bytes, head: bytes, key: ec.EllipticCurvePrivateKey = KEY) -> str:
    """Signed as RFC 6979 does it, so that the file stays the same."""
    signed = f"{encode_base64url(head)}.{encode_base64url(payload)}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    return f"{signed}.{encode_base64url(r.to_bytes(32) + min(s, P256_ORDER - s).to_bytes(32))}"
