"""Every bad permit is refused, with the code of the first check that fails, before a hypervisor hears of it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jose import jws

from audit.checkpoint import LogSigner
from audit.log import Log
from audit.proof import leaf_hash
from policy.permit import PermitKey, Requirements, permit_entry, seal_permit
from tests.transport.site import ORIGIN, Site, base64_text
from transport.errors import OfferRefused, RefusalCode
from transport.relay.host import open_host
from transport.relay.permits import PermitDesk


@pytest.fixture
def desk(site: Site) -> PermitDesk:
    return open_host(site.relay_config("b")).permits


def refusal(site: Site, desk: PermitDesk, token: str) -> RefusalCode:
    with pytest.raises(OfferRefused) as refused:
        desk.verify(token, source=site.spiffe("a"), destination=site.spiffe("b"))
    return refused.value.code


def test_a_good_permit_is_taken_by_both_ends(site: Site, desk: PermitDesk) -> None:
    token = site.permit()
    assert desk.verify(token, source=site.spiffe("a"), destination=site.spiffe("b")).token == token
    assert desk.verify(token, source=site.spiffe("a"), destination=None).token == token


NOW = int(time.time())
DAY = 86_400


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"iat": NOW - 900, "nbf": NOW - 900, "exp": NOW - 40}, RefusalCode.PERMIT_TIMES, id="expired"),
        pytest.param(
            {"nbf": NOW + DAY, "iat": NOW + DAY}
            | dict.fromkeys(("exp", "session_until", "recover_until"), NOW + DAY + 50),
            RefusalCode.PERMIT_TIMES,
            id="not yet valid",
        ),
        pytest.param(
            {"aud": "spiffe://example.test/host/c", "destination": "spiffe://example.test/host/c"},
            RefusalCode.PERMIT_PARTIES,
            id="for another destination",
        ),
        pytest.param({"source": "spiffe://example.test/host/c"}, RefusalCode.PERMIT_PARTIES, id="of another source"),
        pytest.param({"source": "spiffe://other.test/host/a"}, RefusalCode.PERMIT_PARTIES, id="of another domain"),
        pytest.param({"ports": ("libvirt",)}, RefusalCode.PERMIT_PORTS, id="for a port that is not served"),
        pytest.param(
            {"requirements": Requirements(content_digest=False, stream_inspection=True, vm_binding=False)},
            RefusalCode.PERMIT_REQUIREMENTS,
            id="wants inspection",
        ),
        pytest.param(
            {"requirements": Requirements(content_digest=False, stream_inspection=False, vm_binding=True)},
            RefusalCode.PERMIT_REQUIREMENTS,
            id="wants the UUID checked where it cannot be",
        ),
        pytest.param({"minimum_crl_number": 1000}, RefusalCode.PERMIT_REQUIREMENTS, id="wants a newer CRL"),
    ],
)
def test_a_permit_that_says_something_else_is_refused(
    site: Site, desk: PermitDesk, changes: dict[str, object], code: RefusalCode
) -> None:
    assert refusal(site, desk, site.permit(**changes)) in (code, RefusalCode.PERMIT_AUDIENCE)


def test_an_expired_permit_still_settles_what_it_began(site: Site, desk: PermitDesk) -> None:
    token = site.permit(iat=NOW - 900, nbf=NOW - 900, exp=NOW - 800, session_until=NOW - 10)
    assert desk.reopen(token, None).token == token
    assert refusal(site, desk, token) is RefusalCode.PERMIT_TIMES


def altered(token: str, change: Callable[[dict[str, object]], None]) -> str:
    """The token with other claims under the old signature."""
    header, payload, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    change(claims)
    return ".".join([header, base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("="), signature])


def test_an_altered_permit_is_refused(site: Site, desk: PermitDesk) -> None:
    token = altered(site.permit(), lambda claims: claims.update(vm="99999999-2222-4333-8444-555555555555"))
    assert refusal(site, desk, token) is RefusalCode.PERMIT_SIGNATURE


def test_a_permit_under_another_gateways_key_is_refused(site: Site, desk: PermitDesk) -> None:
    claims = site.claims()
    other = ec.generate_private_key(ec.SECP256R1())
    honest = seal_permit(claims, site.proof(claims), other, PermitKey.from_public_key(other.public_key()).key_id)
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pinned = PermitKey.from_public_key(site.permit_key.public_key()).key_id
    payload = base64.urlsafe_b64decode(honest.split(".")[1] + "==")
    posing = jws.sign(payload, pem.decode(), {"typ": "sealane-permit+jwt", "kid": pinned}, "ES256")
    for token in (honest, posing):
        assert refusal(site, desk, token) is RefusalCode.PERMIT_SIGNATURE


def test_a_permit_without_its_signature_is_refused(site: Site, desk: PermitDesk) -> None:
    header, payload, _ = site.permit().split(".")
    nothing = base64.urlsafe_b64encode(b'{"alg":"none","typ":"sealane-permit+jwt"}').decode().rstrip("=")
    for token in (f"{header}.{payload}.", f"{nothing}.{payload}."):
        assert refusal(site, desk, token) in (RefusalCode.PERMIT_SIGNATURE, RefusalCode.PERMIT_FORMAT)


def test_a_permit_of_more_than_16_kib_is_refused(site: Site, desk: PermitDesk) -> None:
    assert refusal(site, desk, site.permit() + "A" * 16384) is RefusalCode.PERMIT_SIZE


def test_the_proof_of_a_sibling_proves_nothing(site: Site, desk: PermitDesk) -> None:
    claims, sibling = site.claims(), site.claims()
    assert refusal(site, desk, site.seal(claims, site.proof(sibling))) is RefusalCode.PERMIT_PROOF


def test_the_proof_of_a_decision_alone_proves_nothing(site: Site, desk: PermitDesk) -> None:
    """A denial is in the log too, and provably so: it must not open a lane."""
    claims = site.claims()
    denial = b'{"record":{"outcome":"denied"}}'
    commit = site.log.append([lambda _: [denial, denial]])
    index = commit.first_index[0] + 1
    proof = msgspec.structs.replace(
        site.proof(site.claims()),
        decision_index=index - 1,
        decision_leaf_hash=base64_text(leaf_hash(denial)),
        index=index,
        checkpoint=commit.checkpoint_text,
        path=tuple(base64_text(node) for node in commit.inclusion_path(index)),
    )
    assert refusal(site, desk, site.seal(claims, proof)) is RefusalCode.PERMIT_PROOF


def test_an_entry_that_names_another_decision_is_not_this_permits(site: Site, desk: PermitDesk) -> None:
    claims = site.claims()
    proof = site.proof(claims)
    lying = msgspec.structs.replace(proof, decision_leaf_hash=base64_text(leaf_hash(b"a denial")))
    assert refusal(site, desk, site.seal(claims, lying)) is RefusalCode.PERMIT_PROOF


@pytest.mark.parametrize("origin", [ORIGIN, "elsewhere.example.test/log"])
def test_a_proof_under_a_log_that_is_not_pinned_is_refused(
    site: Site, desk: PermitDesk, tmp_path: Path, origin: str
) -> None:
    claims = site.claims()
    digest = leaf_hash(b"d")
    other = Log.open(tmp_path / "other", LogSigner(origin, ed25519.Ed25519PrivateKey.generate()))
    with other:
        commit = other.append([lambda index: [b"d", permit_entry(claims, index, digest)]])
        path = tuple(base64_text(node) for node in commit.inclusion_path(1))
        proof = msgspec.structs.replace(
            site.proof(site.claims()),
            decision_index=0,
            decision_leaf_hash=base64_text(digest),
            index=1,
            checkpoint=commit.checkpoint_text,
            path=path,
        )
    assert refusal(site, desk, site.seal(claims, proof)) is RefusalCode.PERMIT_PROOF


@pytest.mark.parametrize("damage", ["shorter", "longer", "another node", "another index", "older checkpoint"])
def test_a_damaged_proof_is_refused(site: Site, desk: PermitDesk, damage: str) -> None:
    older = site.proof(site.claims()).checkpoint
    for _ in range(5):
        site.proof(site.claims())
    claims = site.claims()
    proof = site.proof(claims)
    node = base64_text(b"n" * 32)
    changes: dict[str, dict[str, Any]] = {
        "shorter": {"path": proof.path[:-1]},
        "longer": {"path": (*proof.path, node)},
        "another node": {"path": (node, *proof.path[1:])},
        "another index": {"index": proof.index + 2},
        "older checkpoint": {"checkpoint": older},
    }
    damaged = msgspec.structs.replace(proof, **changes[damage])
    assert refusal(site, desk, site.seal(claims, damaged)) in (RefusalCode.PERMIT_PROOF, RefusalCode.PERMIT_FORMAT)
