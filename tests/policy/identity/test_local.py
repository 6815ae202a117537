"""The local directory: a file that holds hashes, log-ins that tell nothing, tokens like everybody else's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import DirectoryRefused, TokenRefused
from policy.facts import Person
from policy.identity.local import (
    LocalDirectory,
    PasswordHash,
    ScryptCost,
    hash_password,
    issue_token,
    local_verifier,
    person_table,
)

NOW = 1_790_000_000
ISSUER, AUDIENCE = "https://gateway.bank.test", "sealane"
KEY = ec.generate_private_key(ec.SECP256R1())
CHEAP = ScryptCost(log2_n=14, p=1)  # the least that the file may hold
SALT = bytes(16)
ALICE, BOB = (hash_password(word, SALT, CHEAP) for word in ("correct horse", "battery staple"))
FILE = person_table("alice", "Alice Example", ["operators", "audit"], ALICE) + person_table("bob", "Bób", [], BOB)
DIRECTORY = LocalDirectory.parse(FILE.encode())


def written(path: Path, text: str = FILE, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def test_the_right_password_gives_the_person() -> None:
    alice = DIRECTORY.check_password("alice", "correct horse")
    assert alice is not None
    assert (alice.username, alice.name, alice.groups) == ("alice", "Alice Example", ("operators", "audit"))


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("alice", "battery staple"),
        ("alice", ""),
        ("alice", "correct horse "),
        ("alice", "correct horse\x00"),
        ("alice", "\ud800"),
        ("Alice", "correct horse"),
        ("alice ", "correct horse"),
        ("", ""),
        ("mallory", "correct horse"),
        ("mallory", ""),
        ("alice", "x" * 1025),
        ("alice", "é" * 513),
        ("__class__", "x"),
    ],
)
def test_a_wrong_name_or_password_gives_nobody(username: str, password: str) -> None:
    assert DIRECTORY.check_password(username, password) is None


def test_a_password_typed_composed_or_decomposed_is_one() -> None:
    directory = LocalDirectory.parse(person_table("a", "A", [], hash_password("caf\u00e9", SALT, CHEAP)).encode())
    assert directory.check_password("a", "cafe\u0301")


def test_an_unknown_user_costs_the_same_work_as_a_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    work: list[dict[str, Any]] = []
    real: Callable[..., bytes] = hashlib.scrypt

    def counted(secret: bytes, **cost: Any) -> bytes:
        work.append({"salt": len(cost.pop("salt")), **cost})
        return real(secret, salt=SALT, **cost)

    monkeypatch.setattr("policy.identity.local.hashlib.scrypt", counted)
    DIRECTORY.check_password("alice", "wrong")
    DIRECTORY.check_password("mallory", "wrong")
    assert len(work) == 2
    assert work[0] == work[1]


def test_the_decoy_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a password that gives the decoy's hash logs nobody in."""
    monkeypatch.setattr("policy.identity.local._scrypt", lambda *_: DIRECTORY.decoy.digest)
    assert DIRECTORY.check_password("mallory", "x") is None


def test_hashes_of_different_cost_are_refused_because_time_would_tell_who_exists() -> None:
    dearer = hash_password("x", SALT, ScryptCost(log2_n=14, p=2))
    text = FILE + person_table("carol", "Carol", [], dearer)
    with pytest.raises(DirectoryRefused, match="different cost"):
        LocalDirectory.parse(text.encode())


def test_a_new_hash_is_salted_and_neither_repr_shows_it() -> None:
    assert hash_password("x", cost=CHEAP) != hash_password("x", cost=CHEAP)
    secret = ALICE.rpartition("$")[2]
    assert secret not in repr(DIRECTORY)
    assert secret not in repr(DIRECTORY.people["alice"])


@pytest.mark.parametrize("password", ["", "x" * 1025, "é" * 513, "x\x00", "a\nb", "\ud800"])
def test_no_hash_is_made_of_what_is_no_password(password: str) -> None:
    with pytest.raises(ValueError, match="1 to 1024 bytes"):
        hash_password(password, SALT, CHEAP)


def test_no_hash_is_made_with_a_short_salt() -> None:
    with pytest.raises(ValueError, match="salt"):
        hash_password("x", b"", CHEAP)


@pytest.mark.parametrize("cost", [(13, 8, 1), (18, 8, 1), (15, 1, 1), (15, 16, 1), (15, 8, 0), (15, 8, 11)])
def test_a_cost_that_is_too_weak_or_would_stop_the_gateway_is_refused(cost: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="scrypt cost"):
        ScryptCost(*cost)
    log2_n, r, p = cost
    text = ALICE.replace("ln=14,r=8,p=1", f"ln={log2_n},r={r},p={p}")
    with pytest.raises(DirectoryRefused, match=r"people\.alice\.password"):
        LocalDirectory.parse(FILE.replace(ALICE, text).encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + "A",
        lambda text: text + "\n",
        lambda text: text[:-1] + chr(ord(text[-1]) + 1),  # left-over bits
        lambda text: text.replace("scrypt", "bcrypt"),
        lambda text: text.replace("p=1", "p=01"),
        lambda text: text.replace("p=1", "p=١"),  # noqa: RUF001 - an Arabic digit, on purpose
        lambda _: "correct horse",
        lambda _: "",
    ],
)
def test_a_password_hash_has_one_spelling(change: Callable[[str], str]) -> None:
    with pytest.raises(ValueError, match=r"password hash|scrypt cost"):
        PasswordHash.parse(change(ALICE))


@given(st.text(max_size=120))
def test_any_text_is_a_password_hash_or_a_value_error(text: str) -> None:
    try:
        assert str(PasswordHash.parse(text)) == text
    except ValueError:
        pass


@given(
    st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32), st.integers(14, 17), st.integers(1, 10)
)
def test_a_password_hash_comes_back(salt: bytes, digest: bytes, log2_n: int, p: int) -> None:
    original = PasswordHash(ScryptCost(log2_n, 8, p), salt, digest)
    assert PasswordHash.parse(str(original)) == original


# The file.


def test_a_private_file_is_loaded(tmp_path: Path) -> None:
    assert LocalDirectory.load(written(tmp_path / "people.toml")) == DIRECTORY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666])
def test_a_file_that_others_may_read_or_write_is_refused(mode: int, tmp_path: Path) -> None:
    with pytest.raises(DirectoryRefused, match="chmod 600"):
        LocalDirectory.load(written(tmp_path / "people.toml", mode=mode))


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "people.toml")
    real = os.fstat

    def of_another(descriptor: int) -> os.stat_result:
        fields = list(real(descriptor))
        fields[4] = 12_345
        return os.stat_result(fields)

    monkeypatch.setattr("policy.identity.local.os.fstat", of_another)
    with pytest.raises(DirectoryRefused, match="another user"):
        LocalDirectory.load(path)


def test_a_missing_file_a_folder_a_fifo_and_a_huge_file_are_refused_with_their_path(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    written(tmp_path / "huge", FILE + "#" * (1 << 20) + "\n")
    reasons = {"missing": "cannot be read", "fifo": "regular", "folder": "director|regular", "huge": "1048576 bytes"}
    for name, reason in reasons.items():
        with pytest.raises(DirectoryRefused, match=f"{tmp_path / name}: .*({reason})"):
            LocalDirectory.load(tmp_path / name)


GOOD_TABLE = f'name = "A"\ngroups = []\npassword = "{ALICE}"\n'


@pytest.mark.parametrize(
    "text",
    [
        "people = 5",
        "[people.alice]",
        "[people.alice]\n" + GOOD_TABLE + "admin = true",
        "[people.alice]\n" + GOOD_TABLE + "[settings]\nx = 1",
        "[people.alice]\n" + GOOD_TABLE + "[people.alice]\n" + GOOD_TABLE,
        "[people.Alice]\n" + GOOD_TABLE,
        '[people."a b"]\n' + GOOD_TABLE,
        '[people."../a"]\n' + GOOD_TABLE,
        '[people."é"]\n' + GOOD_TABLE,
        '[people.""]\n' + GOOD_TABLE,
        "[people.alice]\n" + GOOD_TABLE.replace("[]", '["a", "a"]'),
        "[people.alice]\n" + GOOD_TABLE.replace("[]", '[""]'),
        "[people.alice]\n" + GOOD_TABLE.replace("[]", '["a\\nb"]'),
        "[people.alice]\n" + GOOD_TABLE.replace("[]", '"a"'),
        "[people.alice]\n" + GOOD_TABLE.replace("[]", str([f"g{n}" for n in range(65)])),
        "[people.alice]\n" + GOOD_TABLE.replace('"A"', '"\\u202eA"'),
        "[people.alice]\n" + GOOD_TABLE.replace(ALICE, "secret"),
        "\x00",
        "a = " + "[" * 5000,
    ],
    ids=lambda text: text[:60],
)
def test_a_file_that_is_wrong_anywhere_is_refused_as_a_whole(text: str) -> None:
    with pytest.raises(DirectoryRefused):
        LocalDirectory.parse(text.encode())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[people.alice]\n" + GOOD_TABLE.replace("groups", "group"),
            'people.alice.group: is no key; did you mean "groups"?',
        ),
        ('[people.alice]\nname = "A"\ngroups = []\n', "people.alice.password: is missing; it must be a text"),
        (
            '[people.alice]\nname = "A"\ngroups = []\npassword = 12345678\n',
            "people.alice.password: what stands there is not shown; allowed is a text",
        ),
        ("[alice]\n" + GOOD_TABLE, "alice: is no key; the keys and tables of the file are people"),
        ('[people]\nalice = "p12345678"\n', "people.alice: is a text; allowed is a table"),
        ("[people]\nalice = 12345678\n", "people.alice: is a number; allowed is a table"),
        ('people = "p12345678"\n', "people: is a text; allowed is a table"),
    ],
)
def test_a_fault_is_told_by_key_and_no_password_is_repeated(text: str, said: str) -> None:
    with pytest.raises(DirectoryRefused) as refused:
        LocalDirectory.parse(text.encode())
    assert said in str(refused.value)
    assert "12345678" not in str(refused.value)


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(DirectoryRefused):
        LocalDirectory.parse(b"\xff")


def test_a_directory_without_people_lets_nobody_in() -> None:
    assert LocalDirectory.parse(b"[people]\n").people == {}


@given(st.binary(max_size=60))
def test_any_bytes_are_a_directory_or_a_refusal(data: bytes) -> None:
    try:
        assert LocalDirectory.parse(data).people == {}
    except DirectoryRefused:
        pass


printable = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=20)


@given(printable, st.lists(printable, max_size=4, unique=True))
def test_what_is_written_for_a_person_is_read_back(name: str, groups: list[str]) -> None:
    try:
        text = person_table("a.b@c", name, groups, ALICE)
    except DirectoryRefused:  # a name that cannot be printed
        return
    person = LocalDirectory.parse(text.encode()).people["a.b@c"]
    assert (person.name, person.groups) == (name, tuple(groups))


def test_a_table_that_would_not_load_is_not_written() -> None:
    with pytest.raises(DirectoryRefused):
        person_table('a"]\n[people.root', "A", [], ALICE)


# Tokens.


def token(now: int = NOW, **changes: Any) -> str:
    arguments: dict[str, Any] = {"key": KEY, "issuer": ISSUER, "audience": AUDIENCE, "lifetime_seconds": 900}
    return issue_token(DIRECTORY.people["alice"], now=now, **{**arguments, **changes})


def test_a_local_token_goes_through_the_strict_verifier() -> None:
    verifier = local_verifier(KEY.public_key(), ISSUER, AUDIENCE, 900)
    assert verifier.verify(token(), NOW + 1) == Person(
        id=f"{ISSUER}#alice",
        issuer=ISSUER,
        name="Alice Example",
        groups=frozenset({f"{ISSUER}#operators", f"{ISSUER}#audit"}),
        authenticated_by="local",
    )


def test_someone_without_groups_is_known_to_have_none() -> None:
    verifier = local_verifier(KEY.public_key(), ISSUER, AUDIENCE, 900)
    bob = issue_token(DIRECTORY.people["bob"], KEY, ISSUER, AUDIENCE, NOW, 900)
    assert verifier.verify(bob, NOW).groups == frozenset()


def test_two_tokens_have_two_ids_unless_one_is_given() -> None:
    assert token() != token()
    assert token(token_id="t")[:-86] == token(token_id="t")[:-86]


def test_a_person_with_as_many_groups_as_the_file_allows_gets_a_token_and_one_with_more_is_refused() -> None:
    groups = [f"{number:02}" + '"' * 60 for number in range(64)]  # each quotation mark takes two bytes in JSON
    person = LocalDirectory.parse(person_table("a", "A", groups, ALICE).encode()).people["a"]
    verifier = local_verifier(KEY.public_key(), ISSUER, AUDIENCE, 900)
    read = verifier.verify(issue_token(person, KEY, ISSUER, AUDIENCE, NOW, 900), NOW).groups
    assert read == frozenset(f"{ISSUER}#{group}" for group in groups)
    with pytest.raises(DirectoryRefused, match="shorten"):
        person_table("a", "A", [group + '""' for group in groups], ALICE)


@pytest.mark.parametrize(
    ("changes", "later", "check"),
    [
        ({}, 930, "times"),
        ({"issuer": "https://other.test"}, 0, "issuer"),
        ({"audience": "other"}, 0, "audience"),
        ({"key": ec.generate_private_key(ec.SECP256R1())}, 0, "key"),
        ({"lifetime_seconds": 901}, 0, "lifetime"),
    ],
    ids=["expired", "issuer", "audience", "key", "lifetime"],
)
def test_another_gateways_or_an_old_token_is_refused(changes: dict[str, Any], later: int, check: str) -> None:
    with pytest.raises(TokenRefused) as refused:
        local_verifier(KEY.public_key(), ISSUER, AUDIENCE, 900).verify(token(**changes), NOW + later)
    assert refused.value.check == check
