"""Key sets as issuers publish them, and as someone would who wants the wrong key to be used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import TokenRefused
from policy.identity.keys import MAX_SET_BYTES, JwkSet
from policy.jws import parse_strict, verify_signature
from tests.policy.forgery import forge, segment

P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
RSA_2048 = rsa.generate_private_key(65_537, 2048)
RSA_1024 = rsa.generate_private_key(65_537, 1024)  # noqa: S505 - the weak key that must be refused


def ec_jwk(key: ec.EllipticCurvePrivateKey, crv: str, **members: Any) -> dict[str, Any]:
    numbers, size = key.public_key().public_numbers(), (key.key_size + 7) // 8
    x, y = segment(numbers.x.to_bytes(size)), segment(numbers.y.to_bytes(size))
    return {"kty": "EC", "crv": crv, "x": x, "y": y, "kid": "k", **members}


def rsa_jwk(key: rsa.RSAPrivateKey, **members: Any) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    n, e = segment(numbers.n.to_bytes(key.key_size // 8)), segment(numbers.e.to_bytes(3))
    return {"kty": "RSA", "n": n, "e": e, "kid": "k", **members}


EC_KEY, RSA_KEY = ec_jwk(P256, "P-256"), rsa_jwk(RSA_2048)


def key_set(*keys: Mapping[str, Any]) -> JwkSet:
    return JwkSet.parse(json.dumps({"keys": keys}).encode())


def verify(keys: JwkSet, algorithm: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    token = forge({"alg": algorithm, "kid": "k"}, {}, key)
    parsed = parse_strict(token, algorithms=frozenset({algorithm}))
    verify_signature(parsed, keys.key_for(parsed))


def refusal(keys: JwkSet, algorithm: str = "ES256") -> str:
    with pytest.raises(TokenRefused) as refused:
        verify(keys, algorithm, RSA_2048 if algorithm.startswith("RS") else P256)
    assert refused.value.check == "key"
    return refused.value.detail


@pytest.mark.parametrize(
    "members",
    [{}, {"use": "sig"}, {"alg": "ES256"}, {"key_ops": ["verify"]}, {"x5c": ["AAAA"], "x5t": "x"}, {"new": {"a": 1}}],
    ids=str,
)
def test_takes_an_ec_key(members: dict[str, Any]) -> None:
    verify(key_set({**EC_KEY, **members}), "ES256", P256)


def test_takes_an_rsa_key() -> None:
    verify(key_set(rsa_jwk(RSA_2048, use="sig", alg="RS256")), "RS256", RSA_2048)


def test_a_mixed_set_with_keys_that_we_cannot_use_does_not_spoil_the_others() -> None:
    keys = key_set(
        {"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "kid": "ed"},
        {"kty": "oct", "k": "AAAA", "kid": "oct"},
        ec_jwk(P384, "P-384", kid="p384"),
        rsa_jwk(RSA_1024, kid="weak"),
        {"kty": "EC"},
        {"kid": 7},
        rsa_jwk(RSA_2048, kid="rsa"),
        EC_KEY,
    )
    verify(keys, "ES256", P256)
    assert keys.knows("ed")
    assert not keys.knows("other")


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"use": "enc"}, "use"),
        ({"use": None}, "use"),
        ({"key_ops": ["sign"]}, "key_ops"),
        ({"key_ops": []}, "key_ops"),
        ({"key_ops": "verify"}, "key_ops"),
        ({"alg": "ES384"}, "another algorithm"),
        ({"alg": "HS256"}, "alg"),
        ({"alg": None}, "alg"),
        ({"alg": ["ES256"]}, "alg"),
        ({"kty": "oct"}, "kty"),
        ({"kty": "RSA"}, "no n"),
        ({"kty": ["EC"]}, "kty"),
        ({"crv": "P-384"}, "size"),
        ({"crv": "secp256k1"}, "crv"),
        ({"crv": ["P-256"]}, "crv"),
        ({"crv": None}, "crv"),
        ({"d": "AAAA"}, "private"),
        ({"k": "AAAA"}, "symmetric"),
        ({"x": EC_KEY["y"]}, ""),  # not on the curve; the words are OpenSSL's
        ({"x": "AAAA"}, "size"),
        ({"x": EC_KEY["x"] + "="}, "base64url"),
        ({"y": 5}, "no y"),
    ],
    ids=lambda value: value or "any" if isinstance(value, str) else "-".join(value),  # workers must agree: no key in it
)
def test_refuses_an_ec_key_whose_members_disagree(members: dict[str, Any], why: str) -> None:
    assert why in refusal(key_set({**EC_KEY, **members}))


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"e": "Aw"}, "exponent"),  # 3
        ({"e": segment(b"\x01" * 9)}, "exponent"),
        ({"e": segment((65_538).to_bytes(3))}, ""),  # even
        ({"n": segment(b"\xff" * 128)}, "modulus"),
        ({"n": segment(b"\xff" * 1025)}, "modulus"),
        ({"n": segment(b"\x00" * 256)}, "modulus"),
        ({"n": None}, "no n"),
        ({"alg": "RS512"}, "another algorithm"),
        ({"alg": "RSA-OAEP"}, "alg"),
        ({"p": "AAAA"}, "private"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refuses_an_rsa_key_whose_members_disagree(members: dict[str, Any], why: str) -> None:
    assert why in refusal(key_set({**RSA_KEY, **members}), "RS256")


def test_refuses_rsa_1024() -> None:
    assert "modulus" in refusal(key_set(rsa_jwk(RSA_1024)), "RS256")


def test_refuses_a_p384_key_for_es256() -> None:
    with pytest.raises(TokenRefused, match="secp256r1"):
        verify(key_set(ec_jwk(P384, "P-384")), "ES256", P384)


def test_refuses_two_keys_under_one_kid_even_if_one_is_of_no_use() -> None:
    assert "two keys" in refusal(key_set(EC_KEY, {**EC_KEY, "use": "enc"}))
    assert "two keys" in refusal(key_set(EC_KEY, EC_KEY))


def test_refuses_a_kid_that_no_key_has() -> None:
    assert "no key" in refusal(key_set({**EC_KEY, "kid": "K"}))
    assert "no key" in refusal(key_set({k: v for k, v in EC_KEY.items() if k != "kid"}))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":[],"keys":[]}',
        b'{"keys":' + b"[" * 5000,
        b'{"keys":[NaN]}',
        json.dumps({"keys": [EC_KEY] * 101}).encode(),
        b'{"keys":[]' + b" " * MAX_SET_BYTES + b"}",
    ],
    ids=lambda document: str(document[:20]),
)
def test_refuses_a_document_that_is_no_bounded_key_set(document: bytes) -> None:
    with pytest.raises(TokenRefused):
        JwkSet.parse(document)


any_json = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)


@given(
    st.sampled_from([EC_KEY, RSA_KEY]),
    st.dictionaries(
        st.sampled_from(["kty", "crv", "x", "y", "n", "e", "use", "alg", "key_ops", "kid"]), any_json, max_size=4
    ),
)
def test_any_key_is_usable_or_says_why_not(base: dict[str, Any], members: dict[str, Any]) -> None:
    keys = key_set({**base, **members})
    assert all(isinstance(key, str) or key.public_key for named in keys.keys.values() for key in named)
