"""`sealane audit prune`: takes what is old, and proven to be archived, out of a gateway's log."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.errors import OPERATOR, BadConfiguration, Refused
from gateway.cli.options import JsonOption
from gateway.cli.output import print_json, say

if TYPE_CHECKING:
    from audit.checkpoint import LogSigner
    from audit.pruning import Plan, RecordOf
    from gateway.config import GatewayConfig


def prune(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="The gateway's configuration.")],
    check: Annotated[bool, typer.Option("--check", help="Say what would go, and change nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take entries older than [log.retention] says out of the log's folder, if its archive has them. On record.

    Every entry that goes is read from the log and from the archive and held against the log's tree before. Hash tiles
    stay, so that proofs, witnesses and `audit verify` go on; old entries are read from the archive where it is mounted.
    Stop the gateway first. Killed at any moment it loses nothing: run it again.

    \b
    Examples:
      sealane audit prune --config /etc/sealane/gateway.toml --check
      sealane audit prune --config /etc/sealane/gateway.toml
    """
    from gateway.cli.serve import needs_gateway_extra

    with needs_gateway_extra(), _errors():
        planned = _prune(config, check=check)
    document: dict[str, Any] = {
        "outcome": "would_prune" if check else "pruned",
        "first_entry": planned.first,
        "end_entry": planned.end,
        "before": planned.before.isoformat(),
        "archive": str(planned.archive),
        "left_over_bundles": planned.left_over,
    }
    if as_json:
        print_json(document)
        return
    verb = "would go" if check else "are gone"
    what = f"entries {planned.first} to {planned.end - 1} {verb}" if planned.entries else "no entry is to go"
    say(f"{what}: older than {planned.before:%Y-%m-%d %H:%M} UTC, and in {planned.archive}")


def _prune(path: Path, *, check: bool) -> Plan:
    import gateway.config as configuration
    from audit.archive import Archive
    from audit.checkpoint import LogSigner
    from audit.log import Log
    from audit.pruning import plan
    from audit.pruning import prune as do_prune
    from gateway.log_keeping import read_log_key

    config = configuration.load(path)
    retention = config.log.retention
    if retention is None:
        raise BadConfiguration("[log.retention] is not set: nothing is ever pruned", OPERATOR, "set `archive` there")
    signer = LogSigner(config.log.origin, read_log_key(config))
    directory = config.path(config.log.directory)
    if not (directory / "checkpoint").is_file():
        raise BadConfiguration(f"{directory} is no log", OPERATOR, "check log.directory")
    archive_folder = config.path(retention.archive).absolute()
    if not (archive_folder / "checkpoint").is_file():
        raise BadConfiguration(f"{archive_folder} is no archive", OPERATOR, "make it by `sealane audit archive`")
    before = months_before(datetime.now(UTC), retention.months)
    with Log.open(directory, signer) as log:
        planned = plan(log, Archive(archive_folder, [signer.verifier]), before)
        if not check:
            do_prune(log, planned, _record_of(config, signer))
    return planned


def months_before(now: datetime, months: int) -> datetime:
    """The same day so many months ago, or the last day of that month."""
    year, month = divmod(now.year * 12 + now.month - 1 - months, 12)
    for day in range(now.day, 27, -1):
        try:
            return now.replace(year=year, month=month + 1, day=day)
        except ValueError:
            continue
    return now.replace(year=year, month=month + 1)


def _record_of(config: GatewayConfig, signer: LogSigner) -> RecordOf:
    from audit.pruned import PRUNED_KIND
    from audit.record import Record, encode_entry, format_time
    from gateway.clocks import system_clock

    clock, boot_id = system_clock(), secrets.token_hex(16)

    def record_of(index: int, details: Any) -> bytes:
        record = Record(
            version=2,
            clock_error_us=clock.error_us(),
            kind=PRUNED_KIND,
            origin=config.log.origin,
            sequence=index,
            boot_id=boot_id,
            time=format_time(clock.wall()),
            monotonic_ns=clock.monotonic_ns(),
            details={**details, "months": config.log.retention.months if config.log.retention else None},
        )
        return encode_entry(record, signer.sign, signer.key_id)

    return record_of


@contextmanager
def _errors() -> Iterator[None]:
    from audit.errors import AuditError
    from gateway.errors import GatewayError

    try:
        yield
    except GatewayError as error:
        raise BadConfiguration(error.detail, OPERATOR, error.next_step) from error
    except AuditError as error:
        raise Refused(
            str(error), OPERATOR, "stop the gateway if it runs; compare log and archive by audit verify"
        ) from error
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror}", OPERATOR, "mend that and run it again") from error
