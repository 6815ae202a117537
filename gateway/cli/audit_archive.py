"""`sealane audit archive`: a growing copy of a log that proves itself, where those who run it cannot reach."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLR0913, PLR0917, PLC0415

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.audit_options import LogOption
from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration, Refused
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import print_json, say
from gateway.counted import counted

if TYPE_CHECKING:
    from audit.tile_tree import TileSource


def archive(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The archive: made if it is missing.")],
    key: Annotated[
        list[str],
        typer.Option("--key", metavar="FILE|VKEY", help="The log's verifier key, from a place that you trust."),
    ],
    log: LogOption = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add to an archive what the log has grown by, after verifying every entry of it against signed checkpoints.

    Refuses a log that does not continue what is archived: it was put back or forked, and the archive is the evidence.
    The archive is checked by `sealane audit verify DIR`, like the log itself. Reading a gateway is on record there.

    \b
    Examples:
      sealane audit archive /mnt/worm/audit --key log.vkey
      sealane audit archive /mnt/worm/audit --key log.vkey --log /var/lib/sealane/log --json
    """
    from audit.tile_tree import FolderTiles
    from gateway.cli.proving import GatewayTiles
    from gateway.cli.record_source import connected

    if log is None:
        with connected(gateway, ca, token_file) as client:
            # The checkpoint first: its key may be newer than what was said of the keys before it.
            text, lines = client.checkpoint(), client.log_keys()
            _update(directory, key, text, GatewayTiles(client), lines, as_json=as_json)
        return
    if gateway is not None:
        raise BadConfiguration("--log and --gateway exclude each other", REQUESTER, "give one of them")
    try:
        text = (log / "checkpoint").read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"{log} is no log: {error}", REQUESTER, "name the folder of a log") from error
    _update(directory, key, text, FolderTiles(log), log / "keys", as_json=as_json)


def _update(
    directory: Path, given: list[str], text: str, source: TileSource, said: Path | bytes, *, as_json: bool
) -> None:
    """`said`: what the log says of keys that followed the given ones or went before, or its file; it is kept."""
    from audit.archive import Archive
    from audit.checkpoint import LogVerifier
    from audit.errors import AuditError, CheckpointError
    from audit.log_keys import KEYS_FILE
    from audit.verify_keys import joined_keys, keys_joined_by
    from gateway.cli.verification import read_keys

    try:
        verifiers = [LogVerifier.parse(vkey) for vkey in read_keys(given)]
    except CheckpointError as error:
        raise BadConfiguration(f"--key: {error}", REQUESTER, "get it anew from where you trust it") from error
    vkeys, where = tuple(each.vkey for each in verifiers), f"{directory}/{KEYS_FILE}"
    try:
        vkeys, _ = joined_keys(directory, vkeys)
        where = "the gateway's /v1/log/keys" if isinstance(said, bytes) else str(said)
        vkeys, joining = keys_joined_by(said, vkeys) if isinstance(said, bytes) else joined_keys(said.parent, vkeys)
    except (ValueError, OSError) as error:
        raise Refused(f"nothing was archived: {where}: {error}", OPERATOR, "restore that file") from error
    verifiers = [LogVerifier.parse(vkey) for vkey in vkeys]
    try:
        archived = Archive(directory, verifiers)
        before = archived.size
        new = archived.update(text, source, successors=joining)
    except AuditError as error:
        raise Refused(f"nothing was archived: {error}", OPERATOR, "compare both with `sealane audit verify`") from error
    except OSError as error:
        place = error.filename or directory
        raise Refused(f"nothing was archived: {place}: {error.strerror}", OPERATOR, "mend that and repeat") from error
    document = {"outcome": "archived", "directory": str(directory), "origin": new.origin, "size": new.size}
    if as_json:
        print_json({**document, "added": new.size - before})
    else:
        say(f"{directory} holds {counted(new.size, 'entry')} of {new.origin}, {new.size - before} of them new")
