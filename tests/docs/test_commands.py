"""Each `sealane …` that a page shows is a command with those options; in a block it is one that could be run.

So are the examples in each command's own help, and what errors and reports tell people to run.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import dropwhile, product
from pathlib import Path
from typing import Any

import pytest
import typer

from audit.query.parse import parse
from gateway.cli.main import app
from tests.docs.pages import PAGES, ROOT, Piece, blocks, read, spans

EITHER = "\x1f"  # in place of the | of `begin|switch`, which is no pipe
UNSAID = ("…", "...")
PACKAGES = ("audit", "certs", "gateway", "policy", "transport")
TOLD = re.compile(r"sealane ([a-z…][^`;,:()\n]*)")
QUERY = re.compile(r"audit query[^'\n`]*'([^'\n]+)'")
BEFORE = re.compile(r"(?:\$|sudo|exec|nice|[A-Z_]+=.*)\Z")


@pytest.fixture(scope="module")
def root() -> Any:
    return typer.main.get_command(app)


def test_each_command_that_a_block_shows_could_be_run(root: Any) -> None:
    shown = [(block, words) for page in PAGES for block in blocks(page) for words in commands(block)]
    assert len(shown) > 100
    assert [f"{where}: {fault}" for where, words in shown for fault in faults(root, words, whole=True)] == []


def test_each_command_that_a_sentence_names_exists(root: Any) -> None:
    named = [(span, words) for page in PAGES for span in spans(page) for words in commands(span)]
    assert len(named) > 100
    assert [f"{where}: {fault}" for where, words in named for fault in faults(root, words, whole=False)] == []


def test_each_example_of_a_help_text_could_be_run(root: Any) -> None:
    (page, *_) = PAGES
    shown = [(path, words) for path, text in help_texts(root, "") for words in commands(Piece(page, 1, "", text))]
    assert len(shown) > 100
    assert [f"{path}: {fault}" for path, words in shown for fault in faults(root, words, whole=True)] == []


def test_each_command_that_a_message_names_exists(root: Any) -> None:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    named = [(file, words.split()) for file in files for text in texts(file) for words in TOLD.findall(text)]
    assert len(named) > 100
    found = {
        f"{file.relative_to(ROOT)}: {fault}" for file, words in named for fault in faults(root, words, whole=False)
    }
    assert sorted(found) == []


def test_each_query_of_the_log_that_is_shown_can_be_asked() -> None:
    files = [*PAGES, *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]
    shown = [(file, query) for file in files for query in QUERY.findall(file.read_text(encoding="utf-8"))]
    assert len(shown) > 15
    for file, query in shown:
        assert parse(query, datetime.now(UTC)), f"{file}: {query}"


def test_each_command_stands_on_some_page_and_each_group_in_the_readme(root: Any) -> None:
    pages = " ".join(" ".join(read(page).split()) for page in PAGES if page.name != "CHANGELOG.md")
    assert [path for path in leaves(root, "") if path not in pages] == []
    readme = {words[0] for block in blocks(ROOT / "README.md") for words in commands(block) if words}
    assert sorted(root.commands.keys() - readme) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sealane migrat web", "no command migrat"),
        ("sealane migrate web --too b", "migrate: no option --too"),
        ("sealane migrate web --to b c", "migrate: too many words: c"),
        ("sealane audit verify", "audit verify: lacks DIRECTORY"),
        ("sealane certs rollover begin|swich root", "no command certs rollover swich"),
    ],
)
def test_what_is_wrong_is_found(root: Any, line: str, said: str) -> None:
    (page, *_) = PAGES
    found = [fault for words in commands(Piece(page, 1, "", line)) for fault in faults(root, words, whole=True)]
    assert any(fault.startswith(said) for fault in found), found


def commands(piece: Piece) -> Iterator[list[str]]:
    """The words after `sealane` of each command in a block of shell, or in a span; alternatives one by one."""
    if piece.kind not in {None, "", "sh"}:
        return
    for line in piece.text.replace("\\\n", " ").splitlines():
        if "sealane " not in line:
            continue
        lexer = shlex.shlex(re.sub(r"(?<=\w)\|(?=\w)", EITHER, line), posix=True, punctuation_chars=True)
        lexer.wordchars += f"{EITHER}…:@,+%[]{{}}^$"
        lexer.commenters = "" if piece.kind is None else "#"
        words: list[str] = []
        for word in [*_readable(lexer), ";"]:
            if word[0] in "();<>|&":
                yield from _of_sealane(words)
                words = []
            else:
                words.append(word)


def _readable(lexer: shlex.shlex) -> Iterator[str]:
    """Words up to a quotation mark that nothing closes: an apostrophe, in a line that is no command."""
    try:
        yield from lexer
    except ValueError:
        yield ";"


def _of_sealane(words: Sequence[str]) -> Iterator[list[str]]:
    rest = list(dropwhile(BEFORE.match, words))
    if rest and rest[0].rpartition("/")[2] == "sealane":
        given = [word.strip("[]") for word in rest[1:]]
        yield from map(list, product(*(word.split(EITHER) for word in given if word)))


def faults(command: Any, words: Sequence[str], *, whole: bool, path: str = "") -> Iterator[str]:
    """What is wrong with `words` as what follows `command`. `whole`: nothing may be left out, unless … says so."""
    named = f"{path}: " if path else ""
    places = [param for param in command.params if param.param_type_name == "argument"]
    flagged = [param for param in command.params if param.param_type_name == "option"]
    options = {name: param for param in flagged for name in (*param.opts, *param.secondary_opts)}
    given: list[str] = []
    rest = iter(words)
    seen = set()
    for word in rest:
        if word.startswith("-") and len(word) > 1:
            name, equals, _ = word.partition("=")
            if name == "--help":
                return
            if name not in options:
                yield f"{named}no option {name}"
                continue
            seen.add(options[name].name)
            if not options[name].is_flag and not equals:
                next(rest, None)
        elif hasattr(command, "commands"):
            below = command.commands.get(word)
            if below is None and word not in UNSAID:
                yield f"no command {f'{path} {word}'.strip()}"
            elif below is not None:
                yield from faults(below, [*rest], whole=whole, path=f"{path} {word}".strip())
            return
        else:
            given.append(word)
    if any(mark in word for word in words for mark in UNSAID):
        return
    if whole:
        if all(place.nargs == 1 for place in places) and len(given) > len(places):
            yield f"{named}too many words: {' '.join(given[len(places) :])}"
        lacks = [place.name.upper() for place in places[len(given) :] if place.required]
        lacks += [option.opts[0] for option in flagged if option.required and option.name not in seen]
        yield from (f"{named}lacks {what}" for what in lacks)


def help_texts(command: Any, path: str) -> Iterator[tuple[str, str]]:
    yield path, command.help or ""
    for name, below in getattr(command, "commands", {}).items():
        yield from help_texts(below, f"{path} {name}".strip())


def leaves(command: Any, path: str) -> Iterator[str]:
    below = getattr(command, "commands", {})
    if not below:
        yield path
    for name, each in below.items():
        yield from leaves(each, f"{path} {name}".strip())


def texts(file: Path) -> Iterator[str]:
    """What the strings of a module say, docstrings aside; … stands for what is filled in."""
    source = file.read_text(encoding="utf-8")
    if not TOLD.search(source):
        return
    for node in ast.walk(ast.parse(source)):
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.JoinedStr(values=parts):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
                case ast.Constant(value=str(text)) if not isinstance(node, ast.Expr | ast.JoinedStr):
                    yield text
