"""Who is taken for the same human, and who is not."""

from __future__ import annotations

import pytest

from policy.facts import DirectoryFacts, Person
from policy.identity.sameness import are_same, marks_of, user_name

DORA = Person("https://idp.test#8f14e45f", "https://idp.test", "Dora Duty", frozenset(), "oidc", "dora@corp.example")


def someone(identity: str, name: str = "Somebody Else", account: str | None = None, sid: str | None = None) -> Person:
    issuer = identity.partition("#")[0]
    facts = DirectoryFacts(None, account_sid=sid) if sid else None
    return Person(identity, issuer, name, frozenset(), "oidc", account, facts)


@pytest.mark.parametrize(
    ("other", "same_as"),
    [
        (someone("https://idp.test#8f14e45f"), ()),
        (someone("sealane-sealed#dora"), ()),
        (someone("sealane-local#DORA"), ()),
        (someone("https://other.test#1", account="CORP\\dora"), ()),
        (someone("https://other.test#1", account="Dora@elsewhere.example"), ()),
        (someone("https://other.test#1", name="dora  duty"), ()),
        (someone("https://other.test#1", name="Ｄora Duty"), ()),  # noqa: RUF001 - a full-width letter, on purpose
        (someone("sealane-sealed#duty1"), ("dora@corp.example",)),
        (someone("sealane-sealed#duty1"), ("https://idp.test#8f14e45f",)),
        (someone("sealane-sealed#duty1"), ("dora",)),
    ],
)
def test_one_thing_in_common_is_enough(other: Person, same_as: tuple[str, ...]) -> None:
    assert are_same(marks_of(DORA), marks_of(other, same_as))


def test_one_account_of_the_directory_is_one_human_whatever_the_names() -> None:
    one, other = someone("https://a.test#1", "A", sid="S-1-5-21-1-2-3-4"), someone("https://b.test#2", "B")
    assert not are_same(marks_of(one), marks_of(other))
    assert are_same(marks_of(one), marks_of(other, ("S-1-5-21-1-2-3-4",)))


def test_colleagues_are_different_people() -> None:
    assert not are_same(marks_of(DORA), marks_of(someone("sealane-sealed#mona", "Mona Manager")))
    one = someone("https://a.test#1", "A", sid="S-1-5-21-1-2-3-4")
    assert not are_same(marks_of(one), marks_of(someone("https://b.test#2", "B", sid="S-1-5-21-1-2-3-5")))


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        ("https://idp#dora", "dora"),
        ("CORP\\dora", "dora"),
        ("dora@corp.example", "dora"),
        ("dora", "dora"),
        ("S-1-5-21-1-2-3-4", ""),
        ("{6f1c2a52-4c0e-4a57-9d3c-0b8f6f0f7a11}", ""),
        ("https://idp#6F1C2A52-4c0e-4a57-9d3c-0b8f6f0f7a11", ""),
    ],
)
def test_the_user_name_of_an_identity(identity: str, name: str) -> None:
    assert user_name(identity) == name
