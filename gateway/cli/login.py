"""`sealane login`: a token of the gateway's local issuer or of an OpenID provider, kept in a file of mode 0600."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLR0913, PLR0917, PLC0415

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.credentials import StoredToken, password_of, store_token
from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import note, print_json, say
from gateway.cli.settings import ClientSettings, resolve
from gateway.counted import counted

if TYPE_CHECKING:
    from gateway.cli.issuer_client import IssuerLogin, TokenAnswer
    from gateway.cli.replies import OfferedIssuer
    from gateway.cli.settings import IssuerTable


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
            help="Read the password from this file (mode 0600), or - for a line of standard input, instead of asking "
            "for it. A password is never an argument: other users could read it.",
        ),
    ] = None,
    sealed: Annotated[
        bool,
        typer.Option("--sealed", help="For a person of the gateway's sealed file: only to break glass; an alarm."),
    ] = False,
    issuer: Annotated[
        str | None,
        typer.Option("--issuer", metavar="URL", help="Sign in there, where the gateway knows several issuers."),
    ] = None,
    device: Annotated[
        bool,
        typer.Option("--device", help="Approve in a browser on any machine, with a code (default with an issuer)."),
    ] = False,
    browser: Annotated[
        bool, typer.Option("--browser", help="Sign in in a browser on this machine (authorization code with PKCE).")
    ] = False,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Get a token and keep it for the other commands.

    With --user it is for a person of the gateway's local directory. Without, the gateway (or `[issuer]` of
    client.toml) says at which identity provider to sign in; one that has none asks for a local name.

    \b
    Examples:
      sealane login
      sealane login --browser
      sealane login --user alice
      sealane login --user backup --password-file /run/secrets/backup --gateway https://gw:8443 --ca ca.pem
    """
    settings = resolve(gateway, ca, token_file, Path.home())
    wants_local, wants_issuer = bool(user or password_file or sealed), bool(issuer or device or browser)
    if (wants_local and wants_issuer) or (device and browser):
        raise BadConfiguration(
            "these options exclude each other", REQUESTER, "give --user, or one of --device and --browser"
        )
    where = None if wants_local else _choose(settings, issuer, required=wants_issuer)
    if where is None:
        name, token = _by_password(settings, user, password_file, sealed=sealed)
    else:
        name, token = _at_issuer(settings, where, device=device, browser=browser)
    expires_at = int(time.time()) + token.expires_in
    store_token(settings.token_file, StoredToken(token.access_token, expires_at, settings.gateway))
    if as_json:
        print_json({"outcome": "logged_in", "user": name, "expires_at": expires_at, "gateway": settings.gateway})
    else:
        say(f"Logged in at {settings.gateway} as {name}, for {counted(token.expires_in // 60, 'minute')}.")


def _by_password(
    settings: ClientSettings, user: str | None, password_file: Path | None, *, sealed: bool
) -> tuple[str, TokenAnswer]:
    from gateway.cli.client import GatewayClient
    from gateway.cli.issuer_client import TokenAnswer

    name = user or typer.prompt("User", err=True)
    password = password_of(password_file)
    if not password or "\n" in password:
        raise BadConfiguration("the password is empty or has several lines", REQUESTER, "give it on one line")
    with GatewayClient(settings) as client:
        answer = client.login(name, password, sealed=sealed)
    return name, TokenAnswer(answer.access_token, "Bearer", answer.expires_in)


def _choose(settings: ClientSettings, issuer: str | None, *, required: bool) -> IssuerLogin | None:
    """The issuer to sign in at; None for a local password. client.toml wins over what the gateway says."""
    from gateway.cli.client import GatewayClient
    from gateway.cli.issuer_client import IssuerLogin

    offers: Sequence[IssuerTable | OfferedIssuer]
    if settings.issuer is not None:
        offers = [settings.issuer]
    else:
        with GatewayClient(settings) as client:
            offers = client.identity().issuers
    found = [offer for offer in offers if issuer is None or offer.issuer == issuer]
    if not found and not required:
        return None
    if len(found) != 1:
        known = ", ".join(offer.issuer for offer in offers) or "none"
        raise BadConfiguration(
            f"which issuer? known for a login: {known}",
            REQUESTER if offers else OPERATOR,
            "name one with --issuer" if offers else "add `login` to an issuer of the gateway's configuration",
        )
    (offer,) = found
    return IssuerLogin(offer.issuer, offer.client_id, offer.scopes, offer.resource, settings.issuer_ca)


def _at_issuer(settings: ClientSettings, where: IssuerLogin, *, device: bool, browser: bool) -> tuple[str, TokenAnswer]:
    """A token that the gateway accepts; one that it refuses is not kept."""
    import webbrowser

    from gateway.cli.client import GatewayClient
    from gateway.cli.code_flow import by_browser
    from gateway.cli.device_flow import by_device
    from gateway.cli.follow import Clock
    from gateway.cli.issuer_client import IssuerClient, access_token_of

    clock = Clock(time.monotonic, time.sleep)
    with IssuerClient(where) as client:
        endpoints = client.discover()
        if browser or (endpoints.device_authorization_endpoint is None and not device):
            answer = by_browser(client, endpoints, note, webbrowser.open, clock)
        else:
            answer = by_device(client, endpoints, note, clock)
    token = access_token_of(answer, where)
    with GatewayClient(settings, token) as gateway:
        return gateway.whoami().name, answer
