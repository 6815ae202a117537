"""How text is compared: folded once here, so that no back end has a rule of its own about case.

fold   NFC, each code point to its simple lower case, U+0000 to U+FFFD (SQLite's GLOB would end there), and the
       first 1,024 characters: the same text whatever database compares it.
words  of a folded text: runs of letters, digits and `_`, the first 64 characters of each.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

MAX_TEXT_CHARS = 1024
MAX_WORD_CHARS = 64

_WORD = re.compile(r"\w+")


@lru_cache(65_536)  # names come again and again
def fold(text: str) -> str:
    """The form of `text` that is stored and compared."""
    return _lowered(text)[:MAX_TEXT_CHARS].replace("\0", "\ufffd")


def words(text: str) -> tuple[str, ...]:
    """The words of a text that people wrote."""
    return tuple(word[:MAX_WORD_CHARS] for word in _WORD.findall(_lowered(text)))


def _lowered(text: str) -> str:
    if text.isascii():
        return text.lower()
    # Some have a lower case of two characters (U+0130): a character must stay one, for `?`.
    return "".join(character.lower()[0] for character in unicodedata.normalize("NFC", text))
