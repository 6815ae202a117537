"""Is it the same human? For a rule of two persons: one human with two accounts must not be both.

Nobody can know that for sure, so the comparison errs on the side of "the same": it is enough that two identities share
an id, an account of Active Directory, a user name, a name to show, or what a file of people says with `same_as`. Two
namesakes are refused as each other's second person; a third colleague is not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from policy.facts import Person

_OPAQUE: Final = re.compile(r"S-1-[0-9-]+|\{?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\}?", re.IGNORECASE)


def marks_of(person: Person, same_as: Iterable[str] = ()) -> frozenset[str]:
    """By what this human is recognised. `same_as`: identities, accounts or user names that are theirs, too."""
    facts = person.directory
    known = [person.id, person.account, *same_as]
    if facts is not None:
        known += [facts.account, facts.account_sid, facts.account_guid]
    texts = [text for text in known if text]
    marks = {f"id:{_fold(text)}" for text in texts}
    marks |= {f"user:{_fold(user)}" for text in texts if (user := user_name(text))}
    return frozenset(marks | {f"name:{_fold(person.name)}"})


def are_same(one: Iterable[str], other: Iterable[str]) -> bool:
    """Whether the marks of two identities may be those of one human."""
    return not frozenset(one).isdisjoint(other)


def user_name(identity: str) -> str:
    """`dora` of `https://idp#dora`, `CORP\\dora`, `dora@corp.example` and `dora`; "" of what is no name, a SID say."""
    last = identity.rpartition("#")[2].rpartition("\\")[2]
    name = last.partition("@")[0]
    return "" if _OPAQUE.fullmatch(name) else name


def _fold(text: str) -> str:
    """Compatible forms, case and spaces are no difference between two people."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
