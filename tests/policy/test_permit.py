"""Permits: what a forger, a stolen gateway key of another site, a hostile requester or a careless gateway would try."""

from __future__ import annotations

import base64
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import PERMIT_CHECKS, PermitRefused, PermitTooLarge
from policy.permit import (
    MAX_ENTRY_BYTES,
    Limits,
    PermitClaims,
    PermitKey,
    PermitProof,
    Requirements,
    VerifiedPermit,
    check_parties,
    check_times,
    paired,
    permit_entry,
    proof_entry,
    seal_permit,
    verify_permit,
)
from tests.policy.forgery import FORGERIES, Forgery, Material, dump, forge, other_spelling

NOW = 1_790_000_000
GATEWAY = ec.derive_private_key(NOW, ec.SECP256R1())  # always the same: what fuzzing keeps names it
STRANGER = ec.generate_private_key(ec.SECP256R1())
PINNED = PermitKey.from_public_key(GATEWAY.public_key())
HOST_A, HOST_B = "spiffe://bank.test/host/a", "spiffe://bank.test/host/b"
VM = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
LEAF = bytes(range(32))
LEAF_TEXT = base64.b64encode(LEAF).decode()

CLAIMS = PermitClaims(
    iss="gateway.bank.test",
    aud=HOST_B,
    jti="01JD7Z8Q4S",
    iat=NOW,
    nbf=NOW,
    exp=NOW + 60,
    session_until=NOW + 3600,
    recover_until=NOW + 7200,
    migration_id="m-1",
    vm=VM,
    source=HOST_A,
    destination=HOST_B,
    ports=("disks", "memory"),
    limits=Limits(max_channels=16, bandwidth_bytes_per_second=0),
    requirements=Requirements(content_digest=False, stream_inspection=False, vm_binding=True),
    minimum_crl_number=3,
    bundle="ab" * 32,
)
PROOF = PermitProof(
    decision_index=41,
    decision_leaf_hash=LEAF_TEXT,
    index=42,
    checkpoint="log.bank.test\n43\nAAAA\n\n— log.bank.test BBBB\n",
    path=(LEAF_TEXT, base64.b64encode(bytes(32)).decode()),
)
PAYLOAD: dict[str, Any] = {**msgspec.to_builtins(CLAIMS), "proof": msgspec.to_builtins(PROOF)}
HEADER = {"alg": "ES256", "kid": PINNED.key_id, "typ": "sealane-permit+jwt"}
MATERIAL = Material(HEADER, PAYLOAD, GATEWAY, STRANGER)


def refusal(token: str, *keys: PermitKey) -> str:
    with pytest.raises(PermitRefused) as refused:
        verify_permit(token, keys or [PINNED])
    assert refused.value.check in PERMIT_CHECKS
    return refused.value.check


def changed(**members: Any) -> PermitClaims:
    return msgspec.structs.replace(CLAIMS, **members)


def test_a_sealed_permit_verifies_offline_and_says_what_was_sealed() -> None:
    token = seal_permit(CLAIMS, PROOF, GATEWAY, PINNED.key_id)
    permit = verify_permit(token, [PermitKey.from_public_key(STRANGER.public_key()), PINNED])
    assert permit == VerifiedPermit(token, CLAIMS, PROOF, PINNED.key_id)
    check_times(permit.claims, NOW)
    check_parties(permit.claims, HOST_A, HOST_B)


def test_the_forger_starts_from_a_permit_that_is_accepted() -> None:
    assert verify_permit(MATERIAL.good, [PINNED]).claims == CLAIMS


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda f: f.name)
def test_refuses(forgery: Forgery) -> None:
    assert refusal(forgery.make(MATERIAL)) == forgery.check


@pytest.mark.parametrize("member", ["cty", "x5t", "x5t#S256"])
def test_refuses_header_members_that_only_tokens_of_others_have(member: str) -> None:
    assert refusal(MATERIAL.header_with(**{member: "x"})) == "header"


def test_refuses_the_type_of_an_access_token() -> None:
    assert refusal(MATERIAL.header_with(typ="at+jwt")) == "type"
    assert refusal(MATERIAL.header_with(typ="application/sealane-permit+jwt")) == "type"


def test_refuses_another_gateways_key() -> None:
    theirs = PermitKey.from_public_key(STRANGER.public_key())
    token = seal_permit(CLAIMS, PROOF, STRANGER, theirs.key_id)
    assert refusal(token) == "key"
    assert refusal(MATERIAL.good, theirs) == "key"


def test_refuses_without_any_pinned_key() -> None:
    with pytest.raises(PermitRefused):
        verify_permit(MATERIAL.good, [])


def test_refuses_two_different_keys_under_one_id() -> None:
    assert refusal(MATERIAL.good, PINNED, PermitKey(PINNED.key_id, STRANGER.public_key())) == "key"


def test_takes_a_key_that_is_pinned_twice() -> None:
    assert verify_permit(MATERIAL.good, [PINNED, PermitKey.from_public_key(GATEWAY.public_key())])


def test_refuses_es256_under_a_p384_key_that_was_pinned_past_the_check() -> None:
    p384 = ec.generate_private_key(ec.SECP384R1())
    assert refusal(forge(HEADER, PAYLOAD, p384), PermitKey(PINNED.key_id, p384.public_key())) == "key"


def test_a_permit_has_one_spelling_so_the_other_s_of_its_signature_is_refused() -> None:
    """Else a peer could make a second text of one permit, whose hash no receipt or record knows."""
    assert refusal(other_spelling(MATERIAL.good)) == "signature"


def test_sealing_always_gives_the_low_s() -> None:
    for _ in range(20):  # a high s comes up in half of all signatures
        verify_permit(seal_permit(CLAIMS, PROOF, GATEWAY, PINNED.key_id), [PINNED])


@pytest.mark.parametrize("name", sorted(PAYLOAD))
def test_refuses_a_permit_that_lacks(name: str) -> None:
    assert refusal(MATERIAL.claims_without(name)) == "claims"


@pytest.mark.parametrize("name", sorted(PAYLOAD))
@pytest.mark.parametrize(
    "value", [None, True, [], {}, "", 1.5, -1, "\u0000"], ids=["null", "true", "[]", "{}", "''", "1.5", "-1", "NUL"]
)
def test_refuses_a_claim_of_another_type(name: str, value: object) -> None:
    assert refusal(MATERIAL.claims_with(**{name: value})) == "claims"


@pytest.mark.parametrize("name", ["iat", "nbf", "exp", "session_until", "recover_until", "minimum_crl_number"])
@pytest.mark.parametrize("spell", [str, float, bool, lambda _: 2**60], ids=["text", "float", "bool", "2^60"])
def test_refuses_a_number_that_is_not_a_bounded_integer(name: str, spell: Any) -> None:
    assert refusal(MATERIAL.claims_with(**{name: spell(PAYLOAD[name])})) == "claims"


@pytest.mark.parametrize("where", ["limits", "requirements", "proof"])
def test_refuses_an_unknown_member_inside(where: str) -> None:
    assert refusal(MATERIAL.claims_with(**{where: {**PAYLOAD[where], "more": 1}})) == "claims"


def test_refuses_an_unknown_claim() -> None:
    assert refusal(MATERIAL.claims_with(admin=True)) == "claims"


def test_refuses_an_audience_that_is_a_list() -> None:
    assert refusal(MATERIAL.claims_with(aud=[HOST_B])) == "claims"
    assert refusal(MATERIAL.claims_with(aud=[HOST_B, "spiffe://bank.test/host/c"])) == "claims"


def test_refuses_an_audience_that_is_not_the_destination() -> None:
    assert refusal(MATERIAL.claims_with(aud="spiffe://bank.test/host/c")) == "audience"


@pytest.mark.parametrize(
    "host",
    [
        "spiffe://bank.test/host/A",
        "spiffe://Bank.test/host/a",
        "SPIFFE://bank.test/host/a",
        "spiffe://bank.test:443/host/a",
        "spiffe://user@bank.test/host/a",
        "spiffe://bank.test/host/a?x",
        "spiffe://bank.test/host/a#x",
        "spiffe://bank.test/host/a/",
        "spiffe://bank.test/host/a\n",
        "spiffe://bank.test/host/%61",
        "spiffe://bank.test/host/-a",
        "spiffe://bank.test/host/a-",
        "spiffe://bank.test/host/" + "a" * 64,
        "spiffe://bank.test//host/a",
        "spiffe://bank..test/host/a",
        "spiffe://.bank.test/host/a",
        "spiffe://" + "a" * 64 + ".test/host/a",
        "spiffe://" + "a." * 125 + "test/host/a",
        "spiffe://bank.test/gateway/a",
        "spiffe://bank.test/host/",
        "spiffe:///host/a",
        "spiffe://bank.test/host/а",  # noqa: RUF001 - a Cyrillic letter, on purpose
        " spiffe://bank.test/host/a",
        "bank.test/host/a",
    ],
)
def test_refuses_a_host_that_is_no_canonical_spiffe_id(host: str) -> None:
    assert refusal(MATERIAL.claims_with(source=host)) == "claims"
    assert refusal(MATERIAL.claims_with(destination=host, aud=host)) == "claims"


def test_refuses_a_migration_from_a_host_to_itself() -> None:
    assert refusal(MATERIAL.claims_with(source=HOST_B)) == "claims"


@pytest.mark.parametrize(
    "vm", [VM.upper(), VM.replace("-", ""), "{" + VM + "}", "urn:uuid:" + VM, VM + "\n", VM[:-1], VM + "0", "../" + VM]
)
def test_refuses_a_vm_that_is_no_canonical_uuid(vm: str) -> None:
    assert refusal(MATERIAL.claims_with(vm=vm)) == "claims"


@pytest.mark.parametrize("name", ["jti", "migration_id"])
@pytest.mark.parametrize("value", ["../x", "a/b", ".", "-x", "a b", "x" * 65, "a\x00", "é"])
def test_refuses_an_id_that_is_not_safe_as_a_file_name(name: str, value: str) -> None:
    assert refusal(MATERIAL.claims_with(**{name: value})) == "claims"


@pytest.mark.parametrize(
    "ports",
    [
        [],
        ["memory", "disks"],
        ["memory", "memory"],
        ["Memory"],
        ["SSH"],
        ["a_b"],
        ["memory", 1],
        "memory",
        {"memory": True},
    ],
    ids=str,
)
def test_refuses_ports_that_are_not_named_sorted_unique_and_some(ports: object) -> None:
    assert refusal(MATERIAL.claims_with(ports=ports)) == "claims"


def test_a_named_port_stands_alone() -> None:
    assert refusal(MATERIAL.claims_with(ports=["backup", "memory"])) == "ports"


@pytest.mark.parametrize("seal", ["none", "", "Sealane", "TLS"])
def test_refuses_any_other_seal(seal: str) -> None:
    assert refusal(MATERIAL.claims_with(seal=seal)) == "claims"


@pytest.mark.parametrize("bundle", ["AB" * 32, "ab" * 31, "sha256:" + "ab" * 32, "zz" * 32])
def test_refuses_a_bundle_that_is_no_digest(bundle: str) -> None:
    assert refusal(MATERIAL.claims_with(bundle=bundle)) == "claims"


@pytest.mark.parametrize("limits", [{"max_channels": 0}, {"max_channels": 65_536}, {"bandwidth_bytes_per_second": -1}])
def test_refuses_limits_out_of_range(limits: dict[str, int]) -> None:
    assert refusal(MATERIAL.claims_with(limits={**PAYLOAD["limits"], **limits})) == "claims"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("index", 41),
        ("index", 40),
        ("index", -1),
        ("decision_leaf_hash", LEAF_TEXT[:-1]),
        ("decision_leaf_hash", LEAF_TEXT[:-2] + "9="),  # left-over bits: another spelling of the same hash
        ("decision_leaf_hash", LEAF.hex()),
        ("checkpoint", ""),
        ("checkpoint", "x" * 4097),
        ("path", [LEAF_TEXT] * 64),
        ("path", ["AAAA"]),
        ("path", LEAF_TEXT),
    ],
)
def test_refuses_a_proof_out_of_shape(name: str, value: object) -> None:
    assert refusal(MATERIAL.claims_with(proof={**PAYLOAD["proof"], name: value})) == "claims"


@pytest.mark.parametrize(
    "times",
    [
        {"nbf": NOW + 61},
        {"session_until": NOW + 59},
        {"recover_until": NOW + 3599},
        {"iat": NOW + 61},
        {"exp": NOW + 86_401, "session_until": NOW + 86_401, "recover_until": NOW + 86_401},
        {"recover_until": NOW + 7 * 86_400 + 1},
    ],
    ids=["nbf after exp", "session before exp", "recovery before session", "iat after exp", "exp a day", "a week"],
)
def test_refuses_times_that_contradict_each_other_or_last_too_long(times: dict[str, int]) -> None:
    assert refusal(MATERIAL.claims_with(**times)) == "times"


def test_an_evacuation_permit_of_a_day_is_taken() -> None:
    token = MATERIAL.claims_with(exp=NOW + 86_400, session_until=NOW + 86_400, recover_until=NOW + 7 * 86_400)
    assert verify_permit(token, [PINNED])


@pytest.mark.parametrize(
    "payload",
    [
        dump(PAYLOAD).replace(b'":', b'": ', 1),
        b"{" + dump({"vm": VM})[1:-1] + b"," + dump({k: v for k, v in PAYLOAD.items() if k != "vm"})[1:],
        dump(PAYLOAD).replace(b"bank", b"\\u0062ank", 1),
        dump(PAYLOAD) + b" ",
    ],
    ids=["a space", "another order", "an escape", "a trailing space"],
)
def test_refuses_claims_that_are_not_canonical_json(payload: bytes) -> None:
    assert refusal(forge(HEADER, payload, GATEWAY)) == "claims"


@given(st.integers(0, len(MATERIAL.good) * 8 - 1))
def test_one_flipped_bit_is_refused(bit: int) -> None:
    data = bytearray(MATERIAL.good.encode())
    data[bit // 8] ^= 1 << bit % 8
    refusal(data.decode("latin-1"))


@given(st.dictionaries(st.sampled_from(sorted(PAYLOAD)), st.none() | st.integers() | st.text() | st.lists(st.text())))
def test_any_signed_claims_are_a_permit_or_a_refusal(members: dict[str, Any]) -> None:
    """Also what the right key signed gives either a permit of consistent claims or that one exception."""
    try:
        token = MATERIAL.claims_with(**members)
    except UnicodeEncodeError:
        return
    try:
        permit = verify_permit(token, [PINNED])
    except PermitRefused:
        return
    assert seal_permit(permit.claims, permit.proof, GATEWAY, PINNED.key_id)


hashes = st.binary(min_size=32, max_size=32).map(lambda data: base64.b64encode(data).decode())
proofs = st.builds(
    lambda decision, gap, leaf, checkpoint, path: PermitProof(decision, leaf, decision + gap, checkpoint, tuple(path)),
    st.integers(0, 2**50),
    st.integers(1, 100),
    hashes,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100),
    st.lists(hashes, max_size=5),
)
claims = st.builds(
    lambda iat, spans, ports, flags, count: changed(
        iat=iat,
        nbf=iat,
        exp=iat + spans[0],
        session_until=iat + sum(spans[:2]),
        recover_until=iat + sum(spans),
        ports=tuple(sorted(ports)),
        requirements=Requirements(*flags),
        limits=Limits(count % 65_535 + 1, count),
        minimum_crl_number=count,
    ),
    st.integers(0, 2**33),
    st.tuples(*[st.integers(0, 86_400)] * 3),
    st.sets(st.sampled_from(["memory", "disks", "libvirt"]), min_size=1),
    st.tuples(*[st.booleans()] * 3),
    st.integers(0, 2**53 - 1),
)


@given(claims, proofs)
def test_what_is_sealed_comes_back(claims: PermitClaims, proof: PermitProof) -> None:
    permit = verify_permit(seal_permit(claims, proof, GATEWAY, PINNED.key_id), [PINNED])
    assert (permit.claims, permit.proof) == (claims, proof)
    assert proof_entry(permit) == permit_entry(claims, proof.decision_index, base64.b64decode(proof.decision_leaf_hash))


def test_the_entry_is_canonical_json_of_the_decision_and_all_claims_but_the_proof() -> None:
    entry = permit_entry(CLAIMS, 41, LEAF)
    claims = {name: value for name, value in PAYLOAD.items() if name != "proof"}
    decision = {"index": 41, "leaf_hash": LEAF_TEXT}
    assert entry == dump({"kind": "sealane-permit", "decision": decision, "claims": claims})


def test_entries_of_sibling_permits_differ() -> None:
    entries = {
        permit_entry(CLAIMS, 41, LEAF),
        permit_entry(CLAIMS, 40, LEAF),
        permit_entry(CLAIMS, 41, bytes(32)),
        permit_entry(changed(jti="other"), 41, LEAF),
        permit_entry(changed(recover_until=NOW + 7201), 41, LEAF),
    }
    assert len(entries) == 5


def test_a_leaf_hash_of_another_size_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        permit_entry(CLAIMS, 41, LEAF[:-1])


def test_an_entry_of_more_than_4_kib_is_not_made() -> None:
    with pytest.raises(PermitTooLarge) as error:
        permit_entry(changed(iss="x" * MAX_ENTRY_BYTES), 41, LEAF)
    assert error.value.size > error.value.limit == MAX_ENTRY_BYTES


def test_the_largest_permit_that_relays_take_fits() -> None:
    """Names at their limits, the deepest tree and a full checkpoint stay below 16 KiB and 4 KiB."""
    domain = ".".join(["d" * 63] * 2 + ["d" * 50])
    source, destination = (f"spiffe://{domain}/host/{name * 60}" for name in "ab")
    assert len(source) == 253
    claims = changed(
        iss="i" * 255, aud=destination, source=source, destination=destination, jti="j" * 64, migration_id="m" * 64
    )
    proof = msgspec.structs.replace(PROOF, checkpoint="c" * 4096, path=(LEAF_TEXT,) * 63)
    permit = verify_permit(seal_permit(claims, proof, GATEWAY, PINNED.key_id), [PINNED])
    assert proof_entry(permit)


def test_a_permit_of_more_than_16_kib_is_not_sealed() -> None:
    escaped_sixfold = msgspec.structs.replace(PROOF, checkpoint="\x01" * 4096)
    with pytest.raises(PermitTooLarge):
        seal_permit(CLAIMS, escaped_sixfold, GATEWAY, PINNED.key_id)


@pytest.mark.parametrize(
    "mistake",
    [{"seal": "none"}, {"ports": ("memory", "disks")}, {"vm": VM.upper()}, {"aud": HOST_A}, {"exp": NOW - 1}],
    ids=str,
)
def test_what_relays_would_refuse_is_not_sealed(mistake: dict[str, Any]) -> None:
    with pytest.raises(PermitRefused):
        seal_permit(changed(**mistake), PROOF, GATEWAY, PINNED.key_id)


def test_sealing_under_another_keys_id_fails_at_the_gateway_not_at_each_relay() -> None:
    with pytest.raises(ValueError, match="key_id"):
        seal_permit(CLAIMS, PROOF, STRANGER, PINNED.key_id)


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()],
    ids=["P-384", "Ed25519"],
)
def test_only_p256_keys_can_be_pinned(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(ValueError, match="P-256"):
        PermitKey.from_pem(pem)


def test_a_pinned_key_is_read_from_pem_and_garbage_is_not() -> None:
    pem = GATEWAY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert PermitKey.from_pem(pem) == PINNED
    assert len(PINNED.key_id) == 16
    with pytest.raises(ValueError):  # noqa: PT011 - the words are OpenSSL's
        PermitKey.from_pem(b"garbage")


@pytest.mark.parametrize("now", [NOW - 30, NOW, NOW + 60, NOW + 90])
def test_a_session_may_begin_within_the_times_and_30_seconds_of_skew(now: int) -> None:
    check_times(CLAIMS, now)


@pytest.mark.parametrize(
    ("members", "now", "detail"),
    [
        ({}, NOW + 91, "expired"),
        ({}, NOW - 31, "future"),
        ({"iat": NOW - 100, "nbf": NOW}, NOW - 31, "not yet"),
        ({}, 0, "future"),
        ({}, 2**40, "expired"),
    ],
)
def test_a_session_may_not_begin_at_another_time(members: dict[str, int], now: int, detail: str) -> None:
    with pytest.raises(PermitRefused, match=detail) as refused:
        check_times(changed(**members), now)
    assert refused.value.check == "times"


@pytest.mark.parametrize(
    ("source", "destination", "check"),
    [
        (HOST_B, HOST_A, "source"),
        ("spiffe://other.test/host/a", HOST_B, "source"),
        (HOST_A, "spiffe://bank.test/host/c", "destination"),
        (HOST_A.upper(), HOST_B, "source"),
        ("", "", "source"),
    ],
)
def test_other_hosts_are_refused(source: str, destination: str, check: str) -> None:
    with pytest.raises(PermitRefused) as refused:
        check_parties(CLAIMS, source, destination)
    assert refused.value.check == check


def test_claims_whose_audience_is_not_their_destination_are_refused_even_if_nobody_verified_them() -> None:
    with pytest.raises(PermitRefused) as refused:
        check_parties(changed(aud="spiffe://bank.test/host/c"), HOST_A, HOST_B)
    assert refused.value.check == "audience"


def test_a_relay_needs_no_cedar_no_http_client_and_no_event_loop_for_permits() -> None:
    program = (
        "import sys, policy.permit\n"
        "print([m for m in ('cedarpy', 'httpx', 'trio', 'policy.facts', 'policy.identity') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"


def of_site(key_id: str, **members: Any) -> VerifiedPermit:
    return VerifiedPermit("", changed(**members), PROOF, key_id)


@pytest.mark.parametrize(
    ("key_id", "members", "check"),
    [
        ("own", {}, "signature"),
        ("other", {"vm": VM.replace("6", "7")}, "vm"),
        ("other", {"source": "spiffe://bank.test/host/c"}, "source"),
        ("other", {"destination": "spiffe://bank.test/host/c"}, "destination"),
        ("other", {"ports": ("memory",)}, "ports"),
        ("other", {"migration_id": "m-2"}, "claims"),
        ("other", {"seal": "tls"}, "claims"),
    ],
)
def test_two_sites_permits_are_of_one_migration_and_of_two_gateways(
    key_id: str, members: dict[str, Any], check: str
) -> None:
    with pytest.raises(PermitRefused) as refused:
        paired(of_site("own"), of_site(key_id, **members))
    assert refused.value.check == check


def test_of_two_permits_what_both_allow_is_left_and_what_either_wants_is_wanted() -> None:
    theirs = {
        "jti": "theirs",
        "session_until": NOW + 60,
        "recover_until": NOW + 9000,
        "limits": Limits(max_channels=4, bandwidth_bytes_per_second=1000),
        "requirements": Requirements(content_digest=True, stream_inspection=False, vm_binding=False),
    }
    both = paired(of_site("own"), of_site("other", **theirs))
    assert both.other is not None
    assert (both.claims.jti, both.other.claims.jti) == (CLAIMS.jti, "theirs")
    assert (both.claims.session_until, both.claims.recover_until) == (NOW + 60, CLAIMS.recover_until)
    assert both.claims.limits == theirs["limits"]  # 0 is no limit, and no least one
    assert both.claims.requirements == Requirements(content_digest=True, stream_inspection=False, vm_binding=True)
