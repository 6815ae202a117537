"""`sealane login`: a token of the gateway's local issuer, kept in a file of mode 0600."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.credentials import StoredToken, read_secret, store_token
from gateway.cli.errors import REQUESTER, BadConfiguration
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import print_json, say
from gateway.cli.settings import resolve


def login(
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="NAME", help="Name in the gateway's local directory; else asked for."),
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(
            "--password-file",
            metavar="FILE",
            help="Read the password from the first line of this file (mode 0600) instead of asking for it. "
            "A password is never an argument: other users could read it.",
        ),
    ] = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Get a token from the gateway and keep it for the other commands.

    With an issuer of your own (Okta, Entra, Keycloak) there is no login here: put its access token into the
    token file.

    \b
    Examples:
      sealane login --user alice
      sealane login --user backup --password-file /run/secrets/backup --gateway https://gw:8443 --ca ca.pem
    """
    from gateway.cli.client import GatewayClient

    settings = resolve(gateway, ca, token_file, Path.home())
    stored_password = None if password_file is None else read_secret(password_file, "password file")
    name = user or typer.prompt("User", err=True)
    password = stored_password if stored_password is not None else typer.prompt("Password", hide_input=True, err=True)
    if not password or "\n" in password:
        raise BadConfiguration("the password is empty or has several lines", REQUESTER, "give it on one line")
    with GatewayClient(settings) as client:
        answer = client.login(name, password)
    expires_at = int(time.time()) + max(0, answer.expires_in)
    store_token(settings.token_file, StoredToken(answer.access_token, expires_at, settings.gateway))
    if as_json:
        print_json({"outcome": "logged_in", "user": name, "expires_at": expires_at, "gateway": settings.gateway})
    else:
        say(f"Logged in at {settings.gateway} as {name}, for {max(0, answer.expires_in) // 60} minutes.")
