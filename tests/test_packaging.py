"""What others install from: the lock and the project file agree, and neither names an index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("requirements.lock", "deploy/gssapi/build.lock", "deploy/gssapi/requirements.lock")
FOR_TESTS = ("deploy/nova/requirements.lock",)  # fetched by a goal of its own, `make nova`
LOCKS = {name: (ROOT / name).read_text(encoding="utf-8") for name in (*OURS, *FOR_TESTS)}
LOCK = LOCKS["requirements.lock"]


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [each for extra in project["optional-dependencies"].values() for each in extra]
    names = {normalized(re.split(r"[\[<>=!~; ]", each, maxsplit=1)[0]) for each in wanted}
    locked = {
        normalized(name) for lock in OURS for name in re.findall(r"^([A-Za-z0-9._-]+)==", LOCKS[lock], re.MULTILINE)
    }
    assert names <= locked, f"run `make lock`: {sorted(names - locked)} are missing"


def test_nobody_needs_a_compiler_for_what_is_in_the_lock_of_all() -> None:
    assert not re.search(r"^(gssapi|cython)==", LOCK, re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_version_has_a_hash(lock: str) -> None:
    for requirement in re.split(r"\n(?=\S)", LOCKS[lock].strip()):
        if not requirement.startswith("#"):
            assert "--hash=sha256:" in requirement, requirement


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_names_no_index_or_any_other_place(lock: str) -> None:
    lines = re.compile(r"[a-z0-9._-]+==\S+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?|    #[^:]*|#[^:]*")
    assert [line for line in LOCKS[lock].splitlines() if not lines.fullmatch(line)] == []
