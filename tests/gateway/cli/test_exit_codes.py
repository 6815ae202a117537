"""The list of exit codes that README and `sealane --help` give is what the program ends with."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from gateway.cli.main import app

ROOT = Path(__file__).parents[3]
LISTED = re.compile(r"Exit\s+codes:\s+((?:\d+ [a-z ]+(?:, )?)+)\.")


def listed(text: str) -> dict[int, str]:
    (found,) = LISTED.findall(" ".join(text.split()))
    return {int(code): words for code, _, words in (each.partition(" ") for each in found.split(", "))}


def codes_in(tree: ast.AST) -> Iterator[int]:
    """What is given to typer.Exit or sys.exit, and what constants and errors of exit codes are set to."""
    for node in ast.walk(tree):
        values: list[ast.AST] = []
        match node:
            case ast.Call(func=ast.Attribute(attr="Exit" | "exit"), args=arguments):
                values = [*arguments]
            case ast.Assign(targets=[target]) | ast.AnnAssign(target=target) if node.value is not None:
                named = [each.id for each in ast.walk(target) if isinstance(each, ast.Name)]
                is_code = any(name == "exit_code" or name.startswith("EXIT_") for name in named)
                values = [node.value] if is_code else []
        constants = [each.value for value in values for each in ast.walk(value) if isinstance(each, ast.Constant)]
        yield from (each for each in constants if type(each) is int)


def test_readme_and_help_list_the_codes_that_the_program_ends_with() -> None:
    files = [path for package in ("gateway", "transport") for path in (ROOT / package).rglob("*.py")]
    used = {code for path in files for code in codes_in(ast.parse(path.read_text()))}
    assert listed((ROOT / "README.md").read_text()) == listed(str(app.info.help))
    assert set(listed(str(app.info.help))) == used | {0}
