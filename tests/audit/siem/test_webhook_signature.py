"""Against the verifier that Standard Webhooks publishes, which we did not write."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from audit.siem.webhook_signature import parse_keys, signed_headers

SECRET = base64.b64encode(bytes(range(32))).decode()
SEED = bytes(range(32))
ED25519 = base64.b64encode(SEED).decode()
BODY = b'{"type":"sealane.audit.entries"}'
ID = "9762c2f5d5eccd96-1-to-7-of-7"


def now() -> int:
    return int(datetime.now(UTC).timestamp())


@given(st.binary(max_size=300).map(lambda raw: b'{"n":"%s"}' % raw.hex().encode()))
def test_the_published_verifier_accepts_what_was_signed(body: bytes) -> None:
    headers = signed_headers(parse_keys(f"whsec_{SECRET}"), ID, now(), body)
    Webhook(SECRET).verify(body, headers)


@pytest.mark.parametrize("changed", ["body", "id", "timestamp", "signature", "old", "future", "key"])
def test_the_published_verifier_refuses_anything_else(changed: str) -> None:
    key = base64.b64encode(bytes(32)).decode() if changed == "key" else SECRET
    off = {"old": -timedelta(minutes=10), "future": timedelta(minutes=10)}.get(changed, timedelta())
    headers = signed_headers(parse_keys(f"whsec_{SECRET}"), ID, now() + int(off.total_seconds()), BODY)
    body = BODY + b" " if changed == "body" else BODY
    headers["webhook-id"] += "x" if changed == "id" else ""
    headers["webhook-timestamp"] = str(now() + 1) if changed == "timestamp" else headers["webhook-timestamp"]
    headers["webhook-signature"] = "v1,AAAA" if changed == "signature" else headers["webhook-signature"]
    with pytest.raises(WebhookVerificationError):
        Webhook(key).verify(body, headers)


def test_two_keys_sign_side_by_side_and_each_verifies() -> None:
    headers = signed_headers(parse_keys(f"whsec_{SECRET}\nwhsk_{ED25519}\n"), ID, now(), BODY)
    Webhook(SECRET).verify(BODY, headers)
    _, asymmetric = headers["webhook-signature"].split(" ")
    version, _, signature = asymmetric.partition(",")
    assert version == "v1a"
    public = Ed25519PrivateKey.from_private_bytes(SEED).public_key()
    message = f"{ID}.{headers['webhook-timestamp']}.".encode() + BODY
    public.verify(base64.b64decode(signature), message)
    with pytest.raises(InvalidSignature):
        public.verify(base64.b64decode(signature), message + b" ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        SECRET,
        "whsec_",
        f"whsec_{base64.b64encode(bytes(23)).decode()}",
        f"whsec_{base64.b64encode(bytes(65)).decode()}",
        f"whsk_{base64.b64encode(bytes(31)).decode()}",
        "whsec_!!!!",
        f"whsec_{SECRET}\n" * 5,
    ],
)
def test_keys_that_are_none_are_refused_without_showing_them(text: str) -> None:
    with pytest.raises(ValueError, match=r"line 1 is|holds [05] keys") as refused:
        parse_keys(text)
    assert SECRET not in str(refused.value)


def test_a_key_does_not_show_itself() -> None:
    assert SECRET not in repr(parse_keys(f"whsec_{SECRET}\nwhsk_{ED25519}"))
    assert repr(bytes(range(32))) not in repr(parse_keys(f"whsec_{SECRET}"))
