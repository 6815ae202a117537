"""`sealane certs rollover`: CAs and keys are replaced while everything runs, in steps that can be left alone."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from gateway.cli.asking import signed_in
from gateway.cli.certs import PassphraseOption, TokenOption, passphrase_of, said_plainly
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import print_json, say

if TYPE_CHECKING:
    from gateway.cli.replies import RolloverReply

app = typer.Typer(
    help="Replace a CA or a key while everything runs: begin, switch, retire.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

WhatArgument = Annotated[str, typer.Argument(metavar="WHAT", help="issuing, root, permit-key or log-key.")]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Although hosts are not ready: what that breaks is said, and recorded.")
]


@app.command("begin")
def begin(
    what: WhatArgument,
    reason: ReasonOption,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell every relay of the new key, beside the one in force. Needs RollKey.

    \b
    Example:
      sealane certs rollover begin issuing --reason "yearly, CHG-118"
    """
    _take(what, "begin", reason, False, (gateway, ca, token_file), as_json)


def _forcible(step: str, says: str) -> None:
    @app.command(step, help=says)
    def take(  # noqa: PLR0913, PLR0917 - its options
        what: WhatArgument,
        reason: ReasonOption,
        force: ForceOption = False,
        gateway: GatewayOption = None,
        ca: CaOption = None,
        token_file: TokenFileOption = None,
        as_json: JsonOption = False,
    ) -> None:
        _take(what, step, reason, force, (gateway, ca, token_file), as_json)


_forcible(
    "switch",
    """Put the new key in force, once every host believes it; the old one still counts. Needs RollKey.

    \b
    Example:
      sealane certs rollover switch issuing --reason "CHG-118"
    """,
)
_forcible(
    "retire",
    """Let go of the old key, once nothing needs it: every host stops believing it. Needs RollKey.

    \b
    Example:
      sealane certs rollover retire issuing --reason "CHG-118"
    """,
)


@app.command("status")
def status(
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which rollover is under way, and which hosts are not ready for its next step. Needs RollKey.

    \b
    Example:
      sealane certs rollover status
    """

    with signed_in(gateway, ca, token_file) as client:
        found = client.rollovers()
    if as_json:
        print_json({"rollovers": [msgspec.to_builtins(each) for each in found]})
        return
    for each in found:
        _say(each)


@app.command("init-root")
def init_root(  # noqa: PLR0913, PLR0917 - its options
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The folder of the root that is to be replaced.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The new folder of the root that follows.")],
    gateway_tls: Annotated[
        Path,
        typer.Option("--gateway-tls", metavar="FILE", help="The gateway's certificate; it is certified anew."),
    ],
    root_passphrase_file: Annotated[
        Path | None,
        typer.Option("--root-passphrase-file", metavar="FILE", help="Where the passphrase of the old root's key is."),
    ] = None,
    passphrase_file: PassphraseOption = None,
    pkcs11: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the next root where the old root's key is; the old one introduces it to whoever trusts the old one.

    \b
    Example:
      sealane certs rollover init-root /root/ca /root/ca-2027 --gateway-tls tls.pem
    """
    from certs import layout

    with said_plainly():
        own = passphrase_of(passphrase_file)
        former = passphrase_of(root_passphrase_file)
        made = layout.init_successor(root, directory, gateway_tls, datetime.now(UTC), former, own, pkcs11)
    if as_json:
        print_json({"outcome": "created" if made else "exists", "directory": str(directory), "root": str(root)})
    elif made:
        say(f"Made the root that follows in {directory}, introduced by {root}.")
        say(f"Next: sealane certs init-issuing {directory} ISSUING.next, beside the gateway's ISSUING;")
        say(f"and give {directory}/ca.pem to whoever names a CA file for this gateway, beside the old one.")
    else:
        say(f"The root that follows is in {directory} already; nothing was changed.")


def _take(
    what: str, step: str, reason: str, force: bool, where: tuple[str | None, Path | None, Path | None], as_json: bool
) -> None:

    with signed_in(*where) as client:
        done = client.roll_over(what, step, reason, force)
    if as_json:
        print_json({"outcome": step, **msgspec.to_builtins(done)})
        return
    _say(done)
    if done.left:
        say(f"Then: {done.left}")


def _say(state: RolloverReply) -> None:
    progress = "" if state.progress is None else f", {state.progress.ready} of {state.progress.hosts} hosts are ready"
    say(f"{state.what}: {state.stage}{progress}. Next: {state.next_step}")
    if state.progress is not None:
        for line in (*(f"{host} {why}" for host, why in state.progress.lacking.items()), *state.progress.waits):
            say(f"  {line}")
