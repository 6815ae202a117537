"""The tree of commands: what it needs, what it says of itself, how it ends."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from gateway.cli import demo
from gateway.cli.main import app
from tests.gateway.cli.conftest import Sealane, last_object, only_error_line

# What a relay's host does not have. The commands of such a host must not even try to import it.
WITHOUT_EXTRA = """
import sys
for name in ("fastapi", "starlette", "hypercorn", "cedarpy"):
    sys.modules[name] = None
from typer.testing import CliRunner
from gateway.cli.main import app

def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, (arguments, result.output)
    return result

for words in ("", "relay", "relay serve", "relay open", "migrate", "login", "audit verify", "audit query", "certs"):
    run(*words.split(), "--help")
folder = sys.argv[1]
run("relay", "serve", "--config", folder + "/missing.toml", code=2)
run("certs", "init", folder + "/ca", "--trust-domain", "corp.example")
run("certs", "issue", folder + "/ca", "host-a")
run("migrate", "vm", "--to", "host", "--gateway", "https://127.0.0.1:1", code=2)
run("audit", "verify", folder, "--key", "a+b+c", code=2)
run("audit", "query", "--log", folder, code=2)
import transport.relay.process
refused = run("gateway", "serve", "--config", folder + "/missing.toml", code=2)
assert "pip install 'sealane[gateway]'" in refused.stderr, refused.output
"""


def run_python(home: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: what it imports and configures must not reach other tests."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={"HOME": str(home)})


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its words."""

    def walk(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        children = getattr(command, "commands", None)
        if children is None:
            yield words, command
        for name, child in (children or {}).items():
            yield from walk(f"{words} {name}".strip(), child)

    yield from walk("", typer.main.get_command(app))


def test_a_relays_host_needs_nothing_of_the_gateway_extra(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_EXTRA, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={"HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("words", "command"), list(commands()))
def test_every_command_has_help_with_an_example_and_every_option_has_its_own(words: str, command: Any) -> None:
    assert f"sealane {words}" in command.help
    assert "Example" in command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{words}: {parameter.name}"


def test_the_commands_of_the_design_are_there() -> None:
    assert {words for words, _ in commands()} >= {
        "gateway serve",
        "relay serve",
        "relay open",
        "migrate",
        "login",
        "certs init",
        "certs issue",
        "certs show",
        "audit verify",
        "audit show",
        "audit query",
        "audit tail",
        "demo",
        "people hash-password",
    }


def test_what_reports_something_reports_it_as_json_too() -> None:
    services = {"gateway serve", "relay serve", "relay open", "relay pipe", "audit witness serve"}
    for words, command in commands():
        options = {option for parameter in command.params for option in parameter.opts}
        assert ("--json" in options) == (words not in services), words


def test_no_command_takes_a_secret_as_an_argument() -> None:
    for words, command in commands():
        options = {option for parameter in command.params for option in parameter.opts}
        assert not options & {"--password", "--token", "--secret"}, words


def test_the_version_is_the_distributions(sealane: Sealane) -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert sealane("--version").stdout == f"sealane {project['version']}\n"


@pytest.mark.parametrize("service", ["gateway", "relay"])
def test_a_service_says_in_one_line_what_is_wrong_with_its_configuration(tmp_path: Path, service: str) -> None:
    config = tmp_path / "service.toml"
    config.write_text('[unknown]\nkey = "value"\n')
    program = "from gateway.cli.main import run; run()"
    done = run_python(tmp_path, program, service, "serve", "--config", str(config))
    assert done.returncode == 2, done.stderr
    assert str(config) in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(("arguments", "asked"), [([], (False, False)), (["--json", "--keep"], (True, True))])
def test_the_demo_is_told_what_was_asked_and_gives_its_exit_code(
    sealane: Sealane, monkeypatch: pytest.MonkeyPatch, arguments: list[str], asked: tuple[bool, bool]
) -> None:
    calls: list[tuple[bool, bool]] = []

    def run_demo(*, json: bool, keep: bool) -> int:
        calls.append((json, keep))
        return 1

    monkeypatch.setattr("gateway.demo.run_demo", run_demo, raising=False)
    assert sealane("demo", *arguments).exit_code == 1
    assert calls == [asked]
    assert demo.demo.__doc__


def test_an_error_before_any_answer_is_an_object_too(sealane: Sealane) -> None:
    result = sealane("audit", "query", "--since", "yesterday", "--json")
    assert result.exit_code == 2
    assert "--since" in only_error_line(result)
    assert last_object(result)["outcome"] == "error"


@pytest.mark.parametrize(
    "words", [["audit", "query", "vm:a\udcff"], ["migrate", "a\udcff\udcfeb", "--to", "b", "--check"]]
)
def test_an_argument_that_is_not_utf8_is_a_line(words: list[str], sealane: Sealane) -> None:
    result = sealane(*words)
    assert result.exit_code == 2
    assert "an argument is not UTF-8 text" in result.stderr


def test_an_answer_that_a_full_disk_does_not_take_is_told_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from gateway.cli.main import run; run()", "audit", "fields"]
    with Path("/dev/full").open("w", encoding="ascii") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env={"HOME": str(tmp_path)}
        )
    assert done.returncode == 1
    assert done.stderr.startswith("sealane: the answer cannot be written: No space left on device; ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["audit", "fields"], ["audit", "fields", "--json"], ["--help"], ["--version"]])
def test_nobody_who_reads_the_answer_is_nothing_to_tell(words: list[str], tmp_path: Path) -> None:
    """At the end of the process, in the command, by rich and by typer: all ends as `head` ends other programs."""
    command = [sys.executable, "-c", "from gateway.cli.main import run; run()", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"HOME": str(tmp_path)}
    ) as asked:
        assert asked.stdout is not None
        assert asked.stderr is not None
        asked.stdout.close()
        assert asked.stderr.read() == ""
    assert asked.returncode == 141


def test_a_locale_without_a_character_gets_it_written_out(tmp_path: Path) -> None:
    program = "from gateway.cli import output; from gateway.cli.main import app, run\n"
    program += "app.command('arrow')(lambda: output.say('a \u2192 b'))\nrun()"
    done = subprocess.run(
        [sys.executable, "-c", program, "arrow"], capture_output=True, text=True, check=False,
        env={"HOME": str(tmp_path), "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "a \\u2192 b\n", "")


@pytest.mark.parametrize("words", [["--config", "none.toml"], ["--config=none.toml"]])
def test_a_relay_is_served_alike_with_or_without_what_reads_options(words: list[str], tmp_path: Path) -> None:
    """Without: as systemd starts it. It would hold that memory for as long as it runs."""
    program = "import atexit, sys; atexit.register(lambda: print('pydantic' in sys.modules))\n"
    program += "from gateway.cli.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", program, "relay", "serve", *words], capture_output=True, text=True, check=False,
        env={"HOME": str(tmp_path)}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("sealane relay: ")
    assert "none.toml: no such file; " in done.stderr
    assert "the operator must act" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == f"{words[0] != '--config'}\n"
