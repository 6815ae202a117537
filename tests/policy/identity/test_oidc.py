"""Access tokens: the list of the reference, item by item, against a verifier with a fixed clock."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwk as joserfc_jwk
from joserfc import jwt as joserfc_jwt
from joserfc.errors import JoseError

from policy.errors import TOKEN_CHECKS, TokenRefused
from policy.facts import Person
from policy.identity.keys import JwkSet
from policy.identity.oidc import IssuerSettings, TokenVerifier, unverified_issuer
from policy.jws import VerificationKey
from tests.policy.forgery import FORGERIES, Forgery, Material, dump, forge, other_spelling, segment

NOW = 1_790_000_000
ISSUER, AUDIENCE = "https://login.bank.test", "sealane"
KEY = ec.generate_private_key(ec.SECP256R1())
STRANGER = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
RSA_2048 = rsa.generate_private_key(65_537, 2048)
RSA_1024 = rsa.generate_private_key(65_537, 1024)  # noqa: S505 - the weak key that must be refused

HEADER = {"alg": "ES256", "kid": "key-1", "typ": "at+jwt"}
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "00u1alice",
    "name": "Alice Example",
    "groups": ["operators", "bank#zone"],
    "client_id": "sealane-cli",
    "iat": NOW - 10,
    "exp": NOW + 600,
    "jti": "t-1",
}
MATERIAL = Material(HEADER, CLAIMS, KEY, STRANGER)
KEYS = JwkSet(
    {
        "key-1": (VerificationKey("key-1", KEY.public_key(), "ES256"),),
        "rsa-1": (VerificationKey("rsa-1", RSA_2048.public_key()),),
        "weak": (VerificationKey("weak", RSA_1024.public_key()),),
        "p384": (VerificationKey("p384", P384.public_key()),),
    }
)
SETTINGS = IssuerSettings(ISSUER, AUDIENCE)
CERTIFICATE = b"any DER: TLS has verified it"
THUMBPRINT = segment(hashlib.sha256(CERTIFICATE).digest())


def settings(**changes: Any) -> IssuerSettings:
    return IssuerSettings(ISSUER, AUDIENCE, **changes)


def verify(token: str, now: int = NOW, using: IssuerSettings = SETTINGS) -> Person:
    return TokenVerifier(using, KEYS).verify(token, now)


def refusal(token: str, now: int = NOW, using: IssuerSettings = SETTINGS) -> str:
    with pytest.raises(TokenRefused) as refused:
        verify(token, now, using)
    assert refused.value.check in TOKEN_CHECKS
    return refused.value.check


def test_a_good_token_names_a_person_and_groups_bound_to_the_issuer() -> None:
    assert verify(MATERIAL.good) == Person(
        id="https://login.bank.test#00u1alice",
        issuer=ISSUER,
        name="Alice Example",
        groups=frozenset({f"{ISSUER}#operators", f"{ISSUER}#bank#zone"}),
        authenticated_by="oidc",
    )


def test_rs256_tokens_are_taken() -> None:
    assert verify(forge({"alg": "RS256", "kid": "rsa-1", "typ": "at+jwt"}, CLAIMS, RSA_2048)).name == "Alice Example"


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda f: f.name)
def test_refuses(forgery: Forgery) -> None:
    assert refusal(forgery.make(MATERIAL)) == forgery.check


# Keys.


def test_refuses_a_kid_of_another_key_of_the_set() -> None:
    assert refusal(MATERIAL.header_with(kid="p384")) == "key"
    assert refusal(MATERIAL.header_with(kid="rsa-1")) == "key"


def test_refuses_es256_with_a_p384_key() -> None:
    assert refusal(forge({**HEADER, "kid": "p384"}, CLAIMS, P384)) == "key"


def test_refuses_rsa_1024() -> None:
    assert refusal(forge({**HEADER, "alg": "RS256", "kid": "weak"}, CLAIMS, RSA_1024)) == "key"


def test_refuses_an_algorithm_that_this_issuer_does_not_use() -> None:
    only_rsa = settings(algorithms=frozenset({"RS256"}))
    assert refusal(MATERIAL.good, using=only_rsa) == "algorithm"


def test_the_other_spelling_of_a_signature_is_taken_because_issuers_do_not_choose_low_s() -> None:
    assert verify(other_spelling(MATERIAL.good)) == verify(MATERIAL.good)


@pytest.mark.parametrize(
    "error", [OverflowError, RecursionError, ValueError, KeyError, TypeError, MemoryError], ids=lambda e: e.__name__
)
def test_whatever_the_library_raises_is_a_refusal(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("policy.identity.oidc.jwt.decode", broken)
    assert refusal(MATERIAL.good) == "signature"


def test_refuses_when_the_library_reads_other_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.identity.oidc.jwt.decode", lambda *_, **__: {**CLAIMS, "sub": "root"})
    assert refusal(MATERIAL.good) == "signature"


# Type.


def test_takes_the_full_media_type_and_any_case() -> None:
    assert verify(MATERIAL.header_with(typ="application/at+jwt"))
    assert verify(MATERIAL.header_with(typ="AT+JWT"))


def test_refuses_a_permit_as_a_token() -> None:
    assert refusal(MATERIAL.header_with(typ="sealane-permit+jwt")) == "type"


def test_takes_typ_jwt_only_from_an_issuer_that_is_set_up_so() -> None:
    assert verify(MATERIAL.header_with(typ="JWT"), using=settings(token_types=frozenset({"jwt"})))


# Registered claims.


@pytest.mark.parametrize(
    ("name", "check"),
    [("iss", "issuer"), ("aud", "audience"), ("sub", "subject"), ("exp", "times"), ("iat", "times")],
)
def test_refuses_a_token_that_lacks(name: str, check: str) -> None:
    assert refusal(MATERIAL.claims_without(name)) == check


@pytest.mark.parametrize(
    "issuer", [ISSUER + "/", ISSUER.upper(), "https://evil.test", [ISSUER], None, 5, "", {"a": 1}], ids=str
)
def test_refuses_another_issuer(issuer: object) -> None:
    assert refusal(MATERIAL.claims_with(iss=issuer)) == "issuer"


@pytest.mark.parametrize(
    "audience",
    ["other", "", [], ["other"], None, 5, True, {"sealane": 1}, [AUDIENCE, 5], [[AUDIENCE]], [AUDIENCE] * 17],
    ids=str,
)
def test_refuses_another_audience(audience: object) -> None:
    assert refusal(MATERIAL.claims_with(aud=audience)) == "audience"


def test_takes_a_list_of_audiences_with_ours_in_it() -> None:
    assert verify(MATERIAL.claims_with(aud=[AUDIENCE]))
    assert verify(MATERIAL.claims_with(aud=["account", AUDIENCE]))


def test_refuses_several_audiences_without_an_authorised_party() -> None:
    claims = {k: v for k, v in CLAIMS.items() if k != "client_id"} | {"aud": ["account", AUDIENCE]}
    assert refusal(forge(HEADER, claims, KEY)) == "authorized-party"


@pytest.mark.parametrize("subject", ["", 5, None, ["alice"], "a\nb", "a\u202eb", "a\x1b[2J", "x" * 256], ids=repr)
def test_refuses_a_subject_that_is_not_short_printable_text(subject: object) -> None:
    assert refusal(MATERIAL.claims_with(sub=subject)) == "subject"


@pytest.mark.parametrize("members", [{"jti": 5}, {"at_hash": "x"}], ids=str)
def test_refuses_what_the_library_refuses_of_other_claims(members: dict[str, Any]) -> None:
    assert refusal(MATERIAL.claims_with(**members)) == "claims"


# Times.


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize(
    "value",
    [str(NOW), float(NOW), True, False, None, [NOW], {}, -1, 2**40, 10**300],
    ids=["text", "float", "true", "false", "null", "list", "object", "negative", "2^40", "huge"],
)
def test_refuses_a_time_that_is_not_a_whole_number(name: str, value: object) -> None:
    assert refusal(MATERIAL.claims_with(**{name: value})) == "times"


def test_refuses_an_expired_token_30_seconds_after_exp() -> None:
    assert verify(MATERIAL.good, NOW + 629)
    assert refusal(MATERIAL.good, NOW + 630) == "times"


def test_refuses_a_future_iat_beyond_30_seconds() -> None:
    assert verify(MATERIAL.claims_with(iat=NOW + 30))
    assert refusal(MATERIAL.claims_with(iat=NOW + 31)) == "times"


def test_refuses_a_token_before_its_nbf() -> None:
    assert verify(MATERIAL.claims_with(nbf=NOW + 30))
    assert refusal(MATERIAL.claims_with(nbf=NOW + 31)) == "times"


def test_the_clock_is_the_callers_not_the_libraries() -> None:
    long_ago = 1_000_000_000
    token = MATERIAL.claims_with(iat=long_ago, exp=long_ago + 60)
    assert verify(token, long_ago + 1)
    assert refusal(token, NOW) == "times"


def test_refuses_a_lifetime_above_the_cap() -> None:
    hour = settings(max_lifetime_seconds=3600)
    assert verify(MATERIAL.claims_with(iat=NOW, exp=NOW + 3600), using=hour)
    assert refusal(MATERIAL.claims_with(iat=NOW, exp=NOW + 3601), using=hour) == "lifetime"
    assert refusal(MATERIAL.claims_with(exp=NOW + 86_400)) == "lifetime"


def test_refuses_an_exp_before_its_iat() -> None:
    assert refusal(MATERIAL.claims_with(iat=NOW + 20, exp=NOW + 10)) == "lifetime"


# Authorised party, acr, amr.


def test_refuses_a_token_that_was_given_to_another_client() -> None:
    ours = settings(authorized_parties=frozenset({"sealane-cli"}))
    assert verify(MATERIAL.good, using=ours)
    assert verify(MATERIAL.claims_with(azp="sealane-cli"), using=ours)
    assert refusal(MATERIAL.claims_with(client_id="wiki"), using=ours) == "authorized-party"
    assert refusal(MATERIAL.claims_without("client_id"), using=ours) == "authorized-party"


@pytest.mark.parametrize("azp", ["other", "", 5, None, ["sealane-cli"]], ids=str)
def test_refuses_an_azp_that_is_no_text_or_contradicts_the_client_id(azp: object) -> None:
    assert refusal(MATERIAL.claims_with(azp=azp)) == "authorized-party"


def test_refuses_an_acr_that_is_not_accepted() -> None:
    strong = settings(accepted_acr=frozenset({"phr", "phrh"}))
    assert verify(MATERIAL.claims_with(acr="phr"), using=strong)
    for token in (MATERIAL.good, MATERIAL.claims_with(acr="0"), MATERIAL.claims_with(acr=["phr"])):
        assert refusal(token, using=strong) == "authentication"


def test_refuses_an_amr_that_lacks_a_method() -> None:
    two = settings(required_amr=frozenset({"mfa", "hwk"}))
    assert verify(MATERIAL.claims_with(amr=["hwk", "mfa", "pwd"]), using=two)
    for amr in (["mfa"], [], "mfa hwk", {"mfa": 1, "hwk": 1}, ["mfa", "hwk", 5], None):
        assert refusal(MATERIAL.claims_with(amr=amr), using=two) == "authentication"
    assert refusal(MATERIAL.good, using=two) == "authentication"


# Groups: unknown is never empty.


@pytest.mark.parametrize(
    "members",
    [
        {"_claim_names": {"groups": "src1"}, "_claim_sources": {"src1": {"endpoint": "https://evil.test/groups"}}},
        {"_claim_names": {"groups": "src1"}},
        {"_claim_sources": {}},
        {"hasgroups": True},
        {"hasgroups": "true"},
        {"groups": [f"g{number}" for number in range(100)]},
        {"groups": [f"g{number}" for number in range(500)]},
    ],
    ids=["Entra overage", "pointer", "sources", "hasgroups", "hasgroups as text", "Okta's cap", "beyond the cap"],
)
def test_groups_that_overflow_are_unknown(members: dict[str, Any]) -> None:
    assert verify(MATERIAL.claims_with(**members)).groups is None


def test_a_missing_groups_claim_is_unknown() -> None:
    assert verify(MATERIAL.claims_without("groups")).groups is None
    assert verify(MATERIAL.good, using=settings(groups_claim="roles")).groups is None


def test_an_empty_list_of_groups_is_known_to_be_empty() -> None:
    assert verify(MATERIAL.claims_with(groups=[])).groups == frozenset()
    assert verify(MATERIAL.claims_with(groups=[], hasgroups=False)).groups == frozenset()


def test_a_full_list_just_below_the_cap_is_known() -> None:
    groups = verify(MATERIAL.claims_with(groups=[f"g{number}" for number in range(99)])).groups
    assert groups is not None
    assert len(groups) == 99


@pytest.mark.parametrize("groups", ["admins", None, 5, {"admins": 1}, [5], [None], [["a"]], [""], ["a\nb"]], ids=repr)
def test_refuses_groups_that_are_not_a_list_of_names(groups: object) -> None:
    assert refusal(MATERIAL.claims_with(groups=groups)) == "groups"


def test_a_group_that_is_named_like_a_sid_or_like_another_issuers_stays_this_issuers() -> None:
    groups = verify(MATERIAL.claims_with(groups=["S-1-5-32-544", "https://other.test#admins"])).groups
    assert groups == frozenset({f"{ISSUER}#S-1-5-32-544", f"{ISSUER}#https://other.test#admins"})


def test_groups_come_from_the_claim_that_the_operator_names() -> None:
    person = verify(MATERIAL.claims_with(roles=["a"]), using=settings(groups_claim="roles"))
    assert person.groups == frozenset({f"{ISSUER}#a"})


@pytest.mark.parametrize("name", [None, 5, "", "evil\nname", "x" * 256], ids=str)
def test_a_name_that_cannot_be_shown_is_replaced_by_the_subject(name: object) -> None:
    assert verify(MATERIAL.claims_with(name=name)).name == "00u1alice"


# Routing, settings, and the whole.


def test_the_issuer_by_which_a_verifier_is_chosen() -> None:
    assert unverified_issuer(MATERIAL.good) == ISSUER
    for bad in ("", "a.b.c", MATERIAL.claims_without("iss"), MATERIAL.claims_with(iss=5)):
        with pytest.raises(TokenRefused):
            unverified_issuer(bad)


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": ""},
        {"issuer": "https://a#b"},
        {"issuer": "https://a?b"},
        {"issuer": "https://" + "a" * 255},
        {"audience": ""},
        {"algorithms": frozenset()},
        {"algorithms": frozenset({"HS256"})},
        {"algorithms": frozenset({"none"})},
        {"token_types": frozenset()},
        {"leeway_seconds": 301},
        {"max_lifetime_seconds": 0},
        {"group_cap": 0},
        {"authenticated_by": ""},
    ],
    ids=str,
)
def test_bad_settings_fail_at_start(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has words of its own
        IssuerSettings(**{"issuer": ISSUER, "audience": AUDIENCE, **changes})


def joserfc_accepts(token: str) -> bool:
    key = joserfc_jwk.ECKey.import_key(KEY)
    try:
        decoded = joserfc_jwt.decode(token, key, algorithms=["ES256"])
        joserfc_jwt.JWTClaimsRegistry(
            now=lambda: NOW,
            leeway=30,
            iss={"essential": True, "value": ISSUER},
            aud={"essential": True, "value": AUDIENCE},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
        ).validate(decoded.claims)
    except (JoseError, ValueError, TypeError):
        return False
    return True


def test_joserfc_agrees_about_the_good_token() -> None:
    assert joserfc_accepts(MATERIAL.good)


@given(
    st.dictionaries(
        st.sampled_from(["iss", "aud", "sub", "exp", "iat", "nbf", "jti", "azp", "acr", "amr", "groups", "name", "x"]),
        st.none()
        | st.booleans()
        | st.integers(NOW - 10**5, NOW + 10**5)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=4)
        | st.lists(st.sampled_from([AUDIENCE, "x", ""]), max_size=3),
        max_size=3,
    )
)
def test_what_we_accept_joserfc_accepts_too(members: dict[str, Any]) -> None:
    try:
        payload = dump({**CLAIMS, **members})
    except UnicodeEncodeError:  # a lone surrogate
        payload = json.dumps({**CLAIMS, **members}).encode()
    token = forge(HEADER, payload, KEY)
    try:
        person = verify(token)
    except TokenRefused:
        return
    assert person.issuer == ISSUER
    assert joserfc_accepts(token)


@pytest.mark.parametrize(
    "bound",
    [
        None,
        "x",
        {},
        {"jkt": "A" * 43},
        {"x5t#S256": 7},
        {"x5t#S256": "A" * 43},
        {"x5t#S256": THUMBPRINT + "="},
        {"x5t#S256": THUMBPRINT.upper()},
        {"x5t#S256": THUMBPRINT, "jkt": "A" * 43},
    ],
)
def test_a_binding_that_is_not_to_the_certificate_shown_is_refused(bound: object) -> None:
    token = forge(HEADER, {**CLAIMS, "cnf": bound}, KEY)
    with pytest.raises(TokenRefused) as caught:
        TokenVerifier(SETTINGS, KEYS).verify(token, NOW, CERTIFICATE)
    assert caught.value.check == "sender"


def test_a_bound_token_needs_its_certificate_and_one_that_is_not_bound_needs_none() -> None:
    token = forge(HEADER, {**CLAIMS, "cnf": {"x5t#S256": THUMBPRINT}}, KEY)
    assert TokenVerifier(SETTINGS, KEYS).verify(token, NOW, CERTIFICATE).id.endswith("#00u1alice")
    assert refusal(token) == "sender"
    assert refusal(MATERIAL.good, using=settings(sender_constraint="required")) == "sender"
    assert TokenVerifier(SETTINGS, KEYS).verify(MATERIAL.good, NOW, CERTIFICATE).id.endswith("#00u1alice")


ACTING = settings(accepted_actors=frozenset({"nova", "https://other.test#cinder"}))


@pytest.mark.parametrize(
    ("act", "actor"),
    [
        ({"sub": "nova"}, f"{ISSUER}#nova"),
        ({"sub": "nova", "iss": ISSUER, "more": [1]}, f"{ISSUER}#nova"),
        ({"sub": "cinder", "iss": "https://other.test"}, "https://other.test#cinder"),
        ({"sub": "nova", "act": {"sub": "anybody"}}, f"{ISSUER}#nova"),
    ],
)
def test_an_accepted_actor_acts_for_the_subject(act: object, actor: str) -> None:
    person = verify(forge(HEADER, {**CLAIMS, "act": act}, KEY), using=ACTING)
    assert (person.id, person.actor) == (f"{ISSUER}#00u1alice", actor)


@pytest.mark.parametrize(
    "act",
    [
        None,
        "nova",
        [],
        {},
        {"sub": ""},
        {"sub": 7},
        {"sub": "no\nva"},
        {"sub": "cinder"},
        {"sub": "nova", "iss": "https://other.test"},
        {"sub": "x", "iss": f"{ISSUER}#nova"},
        {"sub": "other", "act": {"sub": "nova"}},
        {"sub": "nova", "act": 7},
        {"sub": "nova", "act": {"sub": "a", "act": {"sub": "b", "act": {"sub": "c", "act": {"sub": "d"}}}}},
    ],
)
def test_refuses_any_other_actor(act: object) -> None:
    assert refusal(forge(HEADER, {**CLAIMS, "act": act}, KEY), using=ACTING) == "actor"


def test_an_actor_is_refused_where_none_is_accepted() -> None:
    assert refusal(forge(HEADER, {**CLAIMS, "act": {"sub": "nova"}}, KEY)) == "actor"


def test_eight_thousand_groups_do_not_fit_into_a_token() -> None:
    groups = [f"group-{number}" for number in range(8000)]
    assert refusal(forge(HEADER, {**CLAIMS, "groups": groups}, KEY)) == "size"
    few = forge(HEADER, {**CLAIMS, "groups": [str(number) for number in range(100)]}, KEY)
    assert verify(few).groups is None  # as many as the issuer's cap: perhaps cut short
