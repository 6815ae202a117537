"""Publications: every way in which one can be altered, and everybody who signs what they may not."""

from __future__ import annotations

import base64
import json
import string
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from policy.bundle import Bundle
from policy.bundle_files import MAX_BYTES, read_bundle_files
from policy.errors import BundleRefused
from policy.publication import (
    MAX_PUBLICATION_BYTES,
    BundleName,
    Publication,
    Role,
    Signers,
    check_signatures,
    decode_publication,
    public_text,
    sign_publication,
    unsigned,
)

BANK = Path(__file__).parents[2] / "policy" / "examples" / "bank"
NOW = datetime(2026, 11, 26, tzinfo=UTC)
KEYS = {name: Ed25519PrivateKey.generate() for name in ("alice", "bob", "carl", "rita", "eve")}
ROLE_NAMES: tuple[Role, ...] = ("author", "approver")
BOTH = list(ROLE_NAMES)
ROLES = {"alice": BOTH, "bob": BOTH, "carl": ["approver"], "rita": BOTH}
FILES = read_bundle_files(BANK)
BUNDLE = Bundle.from_files(FILES)
ABOUT = BundleName(BUNDLE.name, BUNDLE.version, BUNDLE.digest)


def public_of(name: str) -> str:
    return public_text(KEYS[name].public_key())


def signers_text(**changes: str) -> str:
    return "".join(
        f'[[signer]]\nname = "{name}"\nkey = "{public_of(name)}"\nroles = {json.dumps(ROLES[name])}\n'
        + changes.get(name, "")
        for name in ROLES
    )


def other_spelling(key: str) -> str:
    """Of the same 32 bytes: two bits of the last character count for nothing."""
    digits = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    spelling = f"{key[:42]}{digits[digits.index(key[42]) ^ 1]}="
    assert base64.b64decode(spelling, validate=True) == base64.b64decode(key)
    return spelling


SIGNERS = Signers.parse(signers_text(rita="retired = true\n"))


def signed(*steps: tuple[str, str], about: BundleName = ABOUT) -> Publication:
    publication = unsigned(FILES)
    for role, name in steps:
        publication = sign_publication(publication, about, role, name, KEYS[name], NOW)  # type: ignore[arg-type]
    return publication


GOOD = signed(("author", "alice"), ("approver", "bob"))


def test_one_author_and_another_who_approved_make_a_publication() -> None:
    again = decode_publication(GOOD.encode())
    assert again == GOOD
    found = check_signatures(again, ABOUT, SIGNERS, 1)
    assert (found.author, found.approvers) == ("alice", ("bob",))


def test_it_is_written_in_one_spelling_that_ends_a_line() -> None:
    assert GOOD.encode() == decode_publication(GOOD.encode()).encode()
    assert GOOD.encode().endswith(b"}\n")


@pytest.mark.parametrize(
    ("publication", "approvals", "words"),
    [
        (unsigned(FILES), 1, "0 authors"),
        (signed(("author", "alice")), 1, "0 of 1 approvals by others than its author"),
        (signed(("author", "alice"), ("approver", "bob")), 2, "1 of 2 approvals"),
        (signed(("author", "alice"), ("author", "bob")), 1, "2 authors"),
        (signed(("approver", "alice"), ("approver", "bob")), 1, "0 authors"),
        (signed(("author", "carl"), ("approver", "bob")), 1, "carl signed it as author, but may not"),
        (signed(("author", "alice"), ("approver", "rita")), 1, "rita signed it, but is retired"),
        (signed(("author", "alice"), ("approver", "eve")), 1, "eve signed it, but is not among"),
        (
            signed(("author", "alice"), ("approver", "bob"), about=replace(ABOUT, digest="0")),
            1,
            "not of these files",
        ),
        (signed(("author", "alice"), ("approver", "bob"), about=replace(ABOUT, version=2)), 1, "not of these files"),
        (signed(("author", "alice"), ("approver", "bob"), about=replace(ABOUT, name="x")), 1, "not of these files"),
    ],
)
def test_whoever_signs_what_he_may_not_signs_nothing(publication: Publication, approvals: int, words: str) -> None:
    with pytest.raises(BundleRefused, match=words):
        check_signatures(publication, ABOUT, SIGNERS, approvals)


def test_a_retired_signer_counts_for_what_was_published_before() -> None:
    publication = signed(("author", "alice"), ("approver", "rita"))
    assert check_signatures(publication, ABOUT, SIGNERS, 1, published_before=True).approvers == ("rita",)


def test_nobody_signs_twice_and_no_author_approves() -> None:
    for role in ROLE_NAMES:
        with pytest.raises(BundleRefused, match="has signed it already"):
            sign_publication(GOOD, ABOUT, role, "alice", KEYS["alice"], NOW)
    # By hand: the same signature twice, and an approval of one's own.
    author, approver = GOOD.signatures
    own = signed(("approver", "alice")).signatures[0]
    for signatures in ((author, approver, approver), (author, own), (author, approver, own)):
        with pytest.raises(BundleRefused, match="signed it twice"):
            check_signatures(msgspec.structs.replace(GOOD, signatures=signatures), ABOUT, SIGNERS, 1)


@pytest.mark.parametrize("what", ["role", "signer", "time"])
def test_everything_beside_a_signature_is_signed(what: str) -> None:
    author, approver = GOOD.signatures
    changes = {"role": "author", "signer": "carl", "time": "2026-11-26T00:00:01Z"}
    altered = msgspec.structs.replace(approver, **{what: changes[what]})
    with pytest.raises(BundleRefused):
        check_signatures(msgspec.structs.replace(GOOD, signatures=(author, altered)), ABOUT, SIGNERS, 1)


def altered(change: Callable[[dict[str, Any]], Any]) -> bytes:
    document = json.loads(GOOD.encode())
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        GOOD.encode()[:-3],
        GOOD.encode()[: len(GOOD.encode()) // 2],
        GOOD.encode() + b"x",
        b"\xff" + GOOD.encode(),
        b"[" * 100_000,
        b" " * (MAX_PUBLICATION_BYTES + 1),
        altered(lambda d: d.update(form=2)),
        GOOD.encode().replace(b'"form": 1', b'"form": 1, "form": 1'),
        GOOD.encode().replace(b'"files": {', b'"files": {"bundle.toml": "another",'),
        altered(lambda d: d.update(more=1)),
        altered(lambda d: d["signatures"][0].update(role="owner")),
        altered(lambda d: d["signatures"][0].update(signer="../../etc/passwd")),
        altered(lambda d: d["signatures"][0].update(signature="A" * 89)),
        altered(lambda d: d.update(signatures=d["signatures"] * 17)),
        altered(lambda d: d["files"].update({"../evil.cedar": ""})),
        altered(lambda d: d["files"].update({"policies/../evil.cedar": ""})),
        altered(lambda d: d["files"].update({"policies/sub/evil.cedar": ""})),
        altered(lambda d: d["files"].update({"/etc/cron.d/x": ""})),
        altered(lambda d: d["files"].update({"policies/evil.sh": ""})),
        altered(lambda d: d["files"].update({"policies/big.cedar": "x" * MAX_BYTES})),
        altered(lambda d: d["files"].update({f"policies/p{n}.cedar": "" for n in range(2_001)})),
        altered(lambda d: d["files"].update({"policies/lone.cedar": "\ud800"})),
        altered(lambda d: d["files"].pop("schema.cedarschema")),
        altered(lambda d: d["files"].update({"policies/a.cedar": 1})),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_what_is_no_publication_is_refused(data: bytes) -> None:
    with pytest.raises(BundleRefused):
        decode_publication(data)


@given(st.binary(max_size=400))
def test_no_bytes_bring_the_decoder_down(data: bytes) -> None:
    with pytest.raises(BundleRefused):
        decode_publication(data)


@given(st.integers(0, len(GOOD.encode()) - 1), st.integers(0, 7))
def test_no_bit_can_be_flipped_unseen(place: int, bit: int) -> None:
    data = bytearray(GOOD.encode())
    data[place] ^= 1 << bit
    try:
        publication = decode_publication(bytes(data))
        bundle = Bundle.from_files(publication.files)
        check_signatures(publication, BundleName(bundle.name, bundle.version, bundle.digest), SIGNERS, 1)
    except BundleRefused:
        return
    assert publication == GOOD  # only the spelling of the JSON around it changed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "signer = []",
        "[[signer]]\nname = 'a'",
        signers_text().replace('name = "bob"', 'name = "alice"'),
        signers_text().replace(public_of("bob"), public_of("alice")),
        signers_text().replace(public_of("bob"), other_spelling(public_of("alice"))),
        signers_text().replace(public_of("bob"), "!" * 44),
        signers_text().replace(public_of("bob"), "A" * 44),
        signers_text(bob="admin = true\n"),
        "x = " + "[" * 10_000,
    ],
)
def test_a_file_of_signers_with_a_fault_is_refused_whole(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Signers.parse(text)


def test_a_fault_in_the_file_of_signers_is_told_by_key() -> None:
    with pytest.raises(ValueError, match=r'roles.1.: is "reviewer"; allowed is "approver" or "author"'):
        Signers.parse(signers_text().replace('"approver"', '"reviewer"'))
