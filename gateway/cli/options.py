"""The options that several commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.output import remember_json

JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object as the last line of stdout.",
        callback=remember_json,
        is_eager=True,
    ),
]
GatewayOption = Annotated[
    str | None,
    typer.Option(
        "--gateway",
        metavar="URL",
        help="The gateway, https://HOST[:PORT]. Default: `gateway` of ~/.config/sealane/client.toml.",
    ),
]
CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        help="PEM file of the CA that signed the gateway's certificate. Default: `ca` of client.toml, "
        "else what this system trusts.",
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="Where the access token is (mode 0600): from `sealane login`, or any issuer's token on one "
        "line. Default: `token_file` of client.toml, else ~/.config/sealane/token.json.",
    ),
]
ServeConfigOption = Annotated[
    Path,
    typer.Option("--config", metavar="FILE", help="TOML configuration file of the service."),
]
