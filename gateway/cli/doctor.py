"""`sealane doctor`: is this host fit for its relay or gateway, and what is to be corrected?"""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.errors import OPERATOR, BadConfiguration
from gateway.cli.options import JsonOption
from gateway.cli.output import print_json, say
from gateway.cli.serve import needs_gateway_extra

if TYPE_CHECKING:
    from gateway.doctor.finding import Finding

EXIT_WRONG = 1
FOLDER = Path("/etc/sealane")
_MARKS = {"ok": "ok   ", "attention": "LOOK ", "wrong": "WRONG", "unknown": "?    "}


def doctor(
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Of a relay or a gateway. Default: those of /etc/sealane."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at this host: kernel, keys, certificates, CRLs, clock, ports, hypervisor; nothing is changed.

    Run it as root, or as who runs the service. Exit code 0: nothing is wrong; 1: something must be corrected.

    \b
    Examples:
      sealane doctor
      sealane doctor --config /etc/sealane/relay.toml --json
    """
    from gateway.doctor.finding import worst

    found: list[Finding] = []
    for path in [config] if config is not None else _configured():
        if not as_json:
            say(f"{path}")
        for finding in _look(path):
            found.append(finding)
            if not as_json:
                say(f"{_MARKS[finding.status]}  {finding.check}: {finding.message}")
                if finding.remedy:
                    say(f"       -> {finding.remedy}")
    outcome = worst(found)
    if as_json:
        names = ("check", "status", "message", "remedy")
        print_json({"outcome": outcome, "findings": [{n: getattr(each, n) for n in names} for each in found]})
    if outcome == "wrong":
        raise typer.Exit(EXIT_WRONG)


def _configured() -> list[Path]:
    try:
        found = [path for path in (FOLDER / "relay.toml", FOLDER / "gateway.toml") if path.exists()]
    except OSError as error:
        raise BadConfiguration(f"{FOLDER}: {error.strerror}", OPERATOR, "run as root") from error
    if not found:
        raise BadConfiguration(
            f"neither relay.toml nor gateway.toml is in {FOLDER}", OPERATOR, "name the file with --config"
        )
    return found


def _look(path: Path) -> Iterator[Finding]:
    now = datetime.now(UTC)
    if _is_gateway(path):
        with needs_gateway_extra():
            from gateway.doctor.gateway_host import gateway_host_findings
        return gateway_host_findings(path, Path("/"), now)
    from gateway.doctor.relay_host import relay_host_findings

    return relay_host_findings(path, Path("/"), now)


def _is_gateway(path: Path) -> bool:
    """A gateway's file has no [relay]. What cannot be read is shown by the look itself."""
    try:
        tables = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise BadConfiguration(f"{path}: {error.strerror}", OPERATOR, "run as root, or name another file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"{path} is not TOML: {error}", OPERATOR, "correct this file") from error
    return "relay" not in tables
