"""The text of a policy file: its tokens, the policies in it, and the places that people are told, as line and column.

Cedar's parser overflows its stack on deep nesting, which ends the whole process, and its errors name no place. Both
are made good here: `check_nesting` comes before any call of the parser, and `first_bad_token` finds the place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from policy.errors import BundleRefused

MAX_DEPTH: Final = 50
MAX_TOKENS: Final = 5_000  # of one policy; a chain of operators nests too: 2,500 deep at most, 5,000 were seen to work
MAX_CONDITIONALS: Final = 100
# Comments and strings as Cedar's own lexer reads them, so that a bracket in one cannot hide another's depth.
_TOKEN: Final = re.compile(r'//[^\n\r]*|"(?:\\.|[^"\\])*"|[0-9]+|[A-Za-z_][A-Za-z_0-9]*|\S')


@dataclass(frozen=True, slots=True)
class Piece:
    """One policy's text and where it begins in its file: at its first token, comments before it left out."""

    start: int
    text: str


def split_policies(text: str) -> Iterator[Piece]:
    """The policies of a file, each up to its `;`, which Cedar has nowhere else, so that a bracket left open spoils one
    policy only. What follows the last is a piece, too: one that is not finished."""
    start = None
    for match in _TOKEN.finditer(text):
        word = match[0]
        if word.startswith("//"):
            continue
        if start is None:
            start = match.start()
        if word == ";":
            yield Piece(start, text[start : match.end()])
            start = None
    if start is not None:
        yield Piece(start, text[start:])


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """Both from 1, as editors count."""
    before = text[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


def tokens_of(text: str) -> list[tuple[int, str]]:
    """Offset and text of each token; comments are none."""
    return [(match.start(), match[0]) for match in _TOKEN.finditer(text) if not match[0].startswith("//")]


def first_bad_token(text: str, fails_before_end: Callable[[str], bool]) -> int:
    """The offset of the token that no policy could go on with; the end of the text if it only stops too early.

    `fails_before_end` tells of a beginning of the text whether the parser objects to something else than its end. Every
    beginning of a good beginning is good, so a dozen calls of the parser find the first that is not.
    """
    tokens = tokens_of(text)
    good, bad = 0, len(tokens) + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        offset, word = tokens[middle - 1]
        if fails_before_end(text[: offset + len(word)]):
            bad = middle
        else:
            good = middle
    return tokens[bad - 1][0] if bad <= len(tokens) else len(text.rstrip())


def find_word(text: str, word: str) -> int | None:
    """Offset of a word that stands as a token of its own, or as a string's content."""
    wanted = {word, f'"{word}"'}
    return next((offset for offset, token in tokens_of(text) if token in wanted), None)


def check_nesting(file: str, text: str, openers: str = "([{", closers: str = ")]}", ends: str = ";") -> None:
    """Refuse what could overflow the parser's stack: brackets, chains of operators and of `if` … `else`."""
    depth = tokens = conditionals = 0
    for match in _TOKEN.finditer(text):
        word = match[0]
        if word.startswith("//"):
            continue
        tokens += 1
        if word in openers:
            depth += 1
        elif word in closers:
            depth -= 1
        elif word == "if":
            conditionals += 1
        elif word == ends and depth == 0:
            tokens = conditionals = 0
        if depth < 0:
            raise BundleRefused(file, f"closes a bracket that was never opened: {word}")
        if depth > MAX_DEPTH or conditionals > MAX_CONDITIONALS:
            raise BundleRefused(file, f"is nested deeper than {MAX_DEPTH} brackets or {MAX_CONDITIONALS} ifs: split it")
        if tokens > MAX_TOKENS:
            raise BundleRefused(file, f"has more than {MAX_TOKENS} words in one piece: use groups or tags, or split it")
