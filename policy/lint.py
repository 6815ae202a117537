"""What Cedar's validator lets pass although nobody can mean it: words of two alphabets, policies that never apply."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, Final

_COMMENT_OR_STRING: Final = re.compile(r'//[^\n\r]*|"((?:\\.|[^"\\])*)"')
_ALPHABETS: Final = ("LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE")
_WORD: Final = re.compile(r"\w+")


def mixed_words(text: str) -> Iterator[str]:
    """Words in the strings of a policy that mix alphabets with look-alike letters: a Cyrillic O in `production`.

    Facts are plain ASCII, so such a word equals none of them, and a `forbid` for it never holds.
    """
    for match in _COMMENT_OR_STRING.finditer(text):
        for word in _WORD.findall(match[1] or ""):
            if not word.isascii() and len({alphabet for letter in word if (alphabet := _alphabet(letter))}) > 1:
                yield word


def _alphabet(letter: str) -> str | None:
    name = unicodedata.name(letter, "")
    return next((alphabet for alphabet in _ALPHABETS if name.startswith(alphabet)), None)


def never_applies(policy: Mapping[str, Any]) -> bool:
    """Does one of its conditions rule it out, whatever the request is: `when { false }`, `unless { true }`?

    `policy` as in Cedar's JSON. Conditions that only amount to that are not found.
    """
    ruled_out = {"when": False, "unless": True}
    return any(
        condition["body"].get("Value") is ruled_out[condition["kind"]] for condition in policy.get("conditions", ())
    )
