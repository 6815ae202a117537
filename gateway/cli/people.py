"""`sealane people`: the embedded directory's password hashes."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.credentials import password_of
from gateway.cli.errors import REQUESTER, BadConfiguration
from gateway.cli.options import JsonOption
from gateway.cli.output import print_json, say

MIN_PASSWORD_CHARACTERS = 8

app = typer.Typer(help="People of the gateway's local directory.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _people() -> None:
    """Keeps `hash-password` a subcommand while it is the only one."""


@app.command("hash-password")
def hash_password_command(
    password_file: Annotated[
        Path | None,
        typer.Option(
            "--password-file",
            metavar="FILE",
            help="Read the password from this file (mode 0600), or - for a line of standard input.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask for a password twice and print its scrypt hash, a line for people.toml.

    \b
    Example:
      sealane people hash-password        # then: put the line under [people.alice]
    """
    from policy.identity.local import hash_password

    password = password_of(password_file, twice=True)
    if len(password) < MIN_PASSWORD_CHARACTERS:
        raise BadConfiguration(
            f"the password has fewer than {MIN_PASSWORD_CHARACTERS} characters", REQUESTER, "choose a longer one"
        )
    try:
        hashed = hash_password(password)
    except ValueError as error:
        raise BadConfiguration(str(error), REQUESTER, "choose another one") from error
    if as_json:
        print_json({"password": hashed})
    else:
        say(f'password = "{hashed}"')
