"""`sealane migration`: what became of one, and asking for its end."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.asking import signed_in
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import console, print_json

app = typer.Typer(help="A migration by its id: its state, and its end.", no_args_is_help=True, rich_markup_mode=None)
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `sealane migrate` and the audit log name it.")]


@app.command("cancel")
def cancel(
    migration_id: IdArgument,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask for the end of a migration; the guest goes on where it is. Recorded.

    Heeded until the guest is handed over, and in post-copy until the switch; `show` tells the outcome.

    \b
    Example:
      sealane migration cancel 4f1e0c9a2b7d4c5e8f60718293a4b5c6
    """

    with signed_in(gateway, ca, token_file) as client:
        client.cancel(migration_id)
    if as_json:
        print_json({"migration_id": migration_id, "cancel_requested": True})
    else:
        console().print(f"asked for the end of {migration_id}; see `sealane migration show {migration_id}`")


@app.command("show")
def show(
    migration_id: IdArgument,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """State, numbers and message of a migration.

    \b
    Example:
      sealane migration show 4f1e0c9a2b7d4c5e8f60718293a4b5c6 --json
    """
    import msgspec

    with signed_in(gateway, ca, token_file) as client:
        reply = client.migration(migration_id)
    if as_json:
        print_json(msgspec.to_builtins(reply))
        return
    console().print(f"{reply.state}{f': {reply.message}' if reply.message else ''}", markup=False)
