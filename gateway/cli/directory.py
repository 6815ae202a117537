"""`sealane directory`: is the gateway's Active Directory set up right, and what is to be corrected?"""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration
from gateway.cli.options import JsonOption, ServeConfigOption
from gateway.cli.output import print_json, say
from gateway.cli.serve import needs_gateway_extra

if TYPE_CHECKING:
    from policy.identity.directory_account import AccountName
    from policy.identity.directory_check import Step
    from policy.identity.directory_settings import Credentials, DirectorySettings

EXIT_FAILED = 1
EXIT_UNREACHABLE = 3

app = typer.Typer(help="The Active Directory of a gateway.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _directory() -> None:
    """Keeps `check` a subcommand while it is the only one."""


@app.command("check")
def check(
    config: ServeConfigOption,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="NAME", help="Also look up this account: user@domain, DOMAIN\\user, SID, GUID."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Try each domain controller step by step, and say what to correct.

    Name, connection, certificate, service account, search base; with --user also account, groups and state.
    Exit code 0: everything works; 1: something must be corrected; 3: no controller works.

    \b
    Example:
      sealane directory check --config /etc/sealane/gateway.toml --user alice@corp.example
    """
    with needs_gateway_extra():
        from policy.identity.directory_check import check_directory
    settings, credentials = _load(config)
    name = None if user is None else _account_name(user, settings)
    steps = []
    for step in check_directory(settings, credentials, name, datetime.now(UTC)):
        steps.append(step)
        if not as_json:
            _say_step(step)
    working = {step.controller for step in steps} - {
        step.controller for step in steps if not step.passed and step.name not in {"user", "state"}
    }
    failed = [step for step in steps if not step.passed]
    if as_json:
        print_json(_document(steps, failed))
    elif not failed:
        say("Everything works.")
    if failed:
        raise typer.Exit(EXIT_FAILED if working else EXIT_UNREACHABLE)


def _load(path: Path) -> tuple[DirectorySettings, Credentials]:
    """Raises BadConfiguration."""
    from gateway import config as configuration
    from gateway.errors import GatewayError
    from policy.errors import DirectoryRefused
    from policy.identity.directory_settings import read_credentials

    try:
        config = configuration.load(path)
        settings = config.identity.active_directory
        if settings is None:
            raise BadConfiguration(
                f"{path}: has no [identity.active_directory]", OPERATOR, "add the table; docs/identity.md shows one"
            )
        return settings, read_credentials(settings, config.directory)
    except GatewayError as error:
        raise BadConfiguration(error.detail, error.who_must_act, error.next_step, error.code) from error
    except DirectoryRefused as error:
        raise BadConfiguration(str(error), OPERATOR, "correct this file and run the command again") from error


def _account_name(user: str, settings: DirectorySettings) -> AccountName:
    from policy.errors import AccountRefused
    from policy.identity.directory_account import parse_name

    try:
        return parse_name(user, settings.domain)
    except AccountRefused as error:
        raise BadConfiguration(f"--user: {error.detail}", REQUESTER, "name the account in one of these ways") from error


def _say_step(step: Step) -> None:
    say(f"{'ok  ' if step.passed else 'FAIL'}  {step.controller}  {step.name:<8}{step.detail}")
    for sid, name in step.group_names:
        say(f"          {sid}  {name}")
    if step.remedy is not None:
        say(f"      to do: {step.remedy}")


def _document(steps: Sequence[Step], failed: Sequence[Step]) -> dict[str, Any]:
    return {
        "outcome": "failed" if failed else "ok",
        "steps": [
            {
                "controller": step.controller,
                "step": step.name,
                "passed": step.passed,
                "detail": step.detail,
                "remedy": step.remedy,
                **({"groups": dict(step.group_names)} if step.group_names else {}),
            }
            for step in steps
        ],
    }
