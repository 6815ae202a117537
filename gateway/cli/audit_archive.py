"""`sealane audit archive`: a growing copy of a log that proves itself, where those who run it cannot reach."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLR0913, PLR0917, PLC0415

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.audit_options import LogOption
from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration, Refused
from gateway.cli.log_folder import read_checkpoint, require_one
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import print_json, say
from gateway.cli.waiting import working
from gateway.counted import counted

if TYPE_CHECKING:
    from audit.checkpoint import LogVerifier
    from audit.tile_tree import TileSource
    from audit.verify_keys import Joined


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
    require_one(log, gateway)
    with _told_by_gateway(gateway, ca, token_file) if log is None else _told_by_folder(log) as of_log:
        _update(directory, key, of_log, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Told:
    """A log as it is read. `join_keys`: to given keys those that followed or went before, and the lines that say so;
    `keys_file`: where they stand, for who must mend them."""

    checkpoint: str
    tiles: TileSource
    join_keys: Callable[[Sequence[str]], Joined]
    keys_file: str


@contextmanager
def _told_by_gateway(gateway: str | None, ca: Path | None, token_file: Path | None) -> Iterator[_Told]:
    from audit.verify_keys import keys_joined_by
    from gateway.cli.proving import GatewayTiles
    from gateway.cli.record_source import connected

    with connected(gateway, ca, token_file) as client:
        # The checkpoint first: its key may be newer than what was said of the keys before it.
        text, lines = client.checkpoint(), client.log_keys()
        yield _Told(text, GatewayTiles(client), partial(keys_joined_by, lines), "the gateway's /v1/log/keys")


@contextmanager
def _told_by_folder(log: Path) -> Iterator[_Told]:
    from audit.log_keys import KEYS_FILE
    from audit.tile_tree import FolderTiles
    from audit.verify_keys import joined_keys

    yield _Told(read_checkpoint(log), FolderTiles(log), partial(joined_keys, log), str(log / KEYS_FILE))


def _joined(directory: Path, given: list[str], told: _Told) -> Joined:
    """All keys that the given ones lead to, by the archive and by the log; and the log's lines, which are kept."""
    from audit.checkpoint import LogVerifier
    from audit.errors import CheckpointError
    from audit.log_keys import KEYS_FILE
    from audit.verify_keys import Joined, joined_keys
    from gateway.cli.verification import read_keys

    try:
        vkeys = tuple(LogVerifier.parse(vkey).vkey for vkey in read_keys(given))
    except CheckpointError as error:
        raise BadConfiguration(f"--key: {error}", REQUESTER, "get it anew from where you trust it") from error
    where = f"{directory}/{KEYS_FILE}"
    try:
        archived = joined_keys(directory, vkeys)
        where = told.keys_file
        every = told.join_keys(archived.every)
        return Joined(every.every, told.join_keys(archived.heirs).heirs, every.lines)
    except (ValueError, OSError) as error:
        raise Refused(f"nothing was archived: {where}: {error}", OPERATOR, "restore that file") from error


def _verifiers(vkeys: Sequence[str]) -> list[LogVerifier]:
    from audit.checkpoint import LogVerifier

    return [LogVerifier.parse(vkey) for vkey in vkeys]


def _update(directory: Path, given: list[str], told: _Told, *, as_json: bool) -> None:
    from audit.archive import Archive
    from audit.checkpoint import open_checkpoint
    from audit.errors import AuditError

    joined = _joined(directory, given, told)
    try:
        # A former key that was stolen signs no more of it; what is archived may be older than the key that was given.
        open_checkpoint(told.checkpoint, _verifiers(joined.heirs))
        archived = Archive(directory, _verifiers(joined.every))
        before = archived.size
        with working(f"copying the log into {directory}, each entry verified"):
            new = archived.update(told.checkpoint, told.tiles, successors=joined.lines)
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
