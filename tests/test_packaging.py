"""What others install from: the lock and the project file agree, and neither names an index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [each for extra in project["optional-dependencies"].values() for each in extra]
    names = {normalized(re.split(r"[\[<>=!~; ]", each, maxsplit=1)[0]) for each in wanted}
    locked = {normalized(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", LOCK, re.MULTILINE)}
    assert names <= locked, f"run `make lock`: {sorted(names - locked)} are missing"


def test_every_locked_version_has_a_hash() -> None:
    for requirement in re.split(r"\n(?=\S)", LOCK.strip()):
        if not requirement.startswith("#"):
            assert "--hash=sha256:" in requirement, requirement


def test_the_lock_names_no_index_or_any_other_place() -> None:
    lines = re.compile(r"[a-z0-9._-]+==\S+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?|    #[^:]*|#[^:]*")
    assert [line for line in LOCK.splitlines() if not lines.fullmatch(line)] == []
