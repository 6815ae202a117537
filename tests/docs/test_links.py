"""Where the pages lead: to other pages, to headings, to files of this repository, to goals of the Makefile."""

from __future__ import annotations

import re

from tests.docs.pages import PAGES, ROOT, anchors, blocks, prose, read, spans

LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = ("audit", "bench", "certs", "deploy", "docs", "gateway", "policy", "tests", "transport")
FILE = re.compile(rf"^(?:{'|'.join(FOLDERS)})(?:/[\w.-]+)+/?$")
GOAL = re.compile(r"\bmake ([a-z][a-z-]*)(?=[\s)]|$)")


def test_each_link_leads_somewhere() -> None:
    dead = []
    for page in PAGES:
        for link in LINK.findall(prose(page)):
            if "://" in link:
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                dead.append(f"{page.relative_to(ROOT)}: {link}")
    assert dead == []


def test_each_file_that_is_named_is_there() -> None:
    absent = [
        f"{span}: {word}"
        for page in PAGES
        for span in spans(page)
        for word in span.text.split()
        if FILE.match(name := word.partition("::")[0]) and not (ROOT / name).exists()
    ]
    assert absent == []


def test_each_page_that_a_module_names_is_there() -> None:
    modules = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py") if "node_modules" not in file.parts]
    named = {(file, page) for file in modules for page in re.findall(r"\bdocs/[\w/-]+\.(?:md|json)", read(file))}
    assert len(named) > 40
    assert sorted(f"{file.relative_to(ROOT)}: {page}" for file, page in named if not (ROOT / page).exists()) == []


def test_each_goal_that_is_named_is_in_the_makefile() -> None:
    goals = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), re.MULTILINE))
    pieces = [piece for page in PAGES for piece in (*spans(page), *blocks(page))]
    named = {(str(piece), goal) for piece in pieces for goal in GOAL.findall(piece.text)}
    assert len(named) > 50
    assert sorted(f"{where}: make {goal}" for where, goal in named if goal not in goals) == []


def test_each_page_can_be_found_from_the_readme() -> None:
    named = set(LINK.findall(read(ROOT / "README.md")))
    assert [page.name for page in PAGES if page.parent == ROOT / "docs" and f"docs/{page.name}" not in named] == []
