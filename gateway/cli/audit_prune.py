"""`sealane audit prune`: takes what is old, and proven to be archived, out of a gateway's log."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.asking import signed_in
from gateway.cli.errors import OPERATOR, BadConfiguration, Refused
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import print_json, say
from gateway.cli.terminal import harmless
from gateway.cli.waiting import working
from gateway.times import rfc3339, to_the_minute

_FIRST_WAIT_SECONDS = 0.1
_MAX_WAIT_SECONDS = 2.0

if TYPE_CHECKING:
    from audit.checkpoint import LogSigner
    from audit.pruning import Plan, RecordOf
    from gateway.config import GatewayConfig


def prune(
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Prune the log of a gateway that is stopped: its configuration."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what would go, and change nothing.")] = False,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take entries older than [log.retention] says out of the log's folder, if its archive has them. On record.

    Every entry that goes is read from the log and from the archive and held against the log's tree before. Hash tiles
    stay, so that proofs, witnesses and `audit verify` go on; old entries are read from the archive where it is mounted.
    A gateway that runs is asked (policies say who may: PruneLog); a stopped one's log is opened with its key. Killed
    at any moment it loses nothing: run it again.

    \b
    Examples:
      sealane audit prune --check
      sealane audit prune
      sealane audit prune --config /etc/sealane/gateway.toml
    """
    document = _by_gateway(gateway, ca, token_file, check=check) if config is None else _by_key(config, check=check)
    if as_json:
        print_json(document)
        return
    first, end = document["first_entry"], document["end_entry"]
    verb = "would go" if check else "are gone"
    what = f"entries {first} to {end - 1} {verb}" if end > first else "no entry is to go"
    before = datetime.fromisoformat(document["before"])
    say(f"{what}: older than {to_the_minute(before)}, and in {harmless(document['archive'])}")


def _by_gateway(gateway: str | None, ca: Path | None, token_file: Path | None, *, check: bool) -> dict[str, Any]:
    """Ask, and wait for the end."""
    from msgspec import to_builtins

    with signed_in(gateway, ca, token_file) as client:
        run = client.begin_pruning(check=check)
        asked, wait = run.asked, _FIRST_WAIT_SECONDS
        with working("the gateway holds log and archive against each other; Ctrl-C ends the waiting alone"):
            while run.state == "running":
                time.sleep(wait)
                wait = min(2 * wait, _MAX_WAIT_SECONDS)
                latest = client.pruning()
                if latest is None:
                    raise Refused("the gateway was started again meanwhile", OPERATOR, "run it again: nothing is lost")
                run = latest
                if run.asked != asked:
                    raise Refused(
                        "another run has begun since",
                        OPERATOR,
                        "`sealane audit query kind:log.pruned` says what became of it",
                    )
        if run.state == "done" and None in {run.first_entry, run.end_entry, run.before, run.archive}:
            raise client.no_sense("it does not say what went")
    if run.state != "done":
        because = harmless(run.because or f"the run is {run.state}", limit=1000)
        raise Refused(because, OPERATOR, "compare log and archive by audit verify; mount the archive")
    return {**to_builtins(run), "outcome": "would_prune" if check else "pruned"}


def _by_key(config: Path, *, check: bool) -> dict[str, Any]:
    from gateway.cli.serve import needs_gateway_extra

    with needs_gateway_extra(), _errors(), working("log and archive are held against each other"):
        planned = _prune(config, check=check)
    return {
        "outcome": "would_prune" if check else "pruned",
        "first_entry": planned.first,
        "end_entry": planned.end,
        "before": rfc3339(planned.before),
        "archive": str(planned.archive),
        "left_over_bundles": planned.left_over,
    }


def _prune(path: Path, *, check: bool) -> Plan:
    import gateway.config as configuration
    from audit.archive import Archive
    from audit.log import Log
    from audit.pruning import months_before, plan
    from audit.pruning import prune as do_prune
    from gateway.log_keeping import every_key, log_signer

    config = configuration.load(path)
    retention = config.log.retention
    if retention is None:
        raise BadConfiguration("[log.retention] is not set: nothing is ever pruned", OPERATOR, "set `archive` there")
    signer = log_signer(config)
    directory = config.path(config.log.directory)
    if not (directory / "checkpoint").is_file():
        raise BadConfiguration(f"{directory} is no log", OPERATOR, "check log.directory")
    archive_folder = config.path(retention.archive).absolute()
    if not (archive_folder / "checkpoint").is_file():
        raise BadConfiguration(f"{archive_folder} is no archive", OPERATOR, "make it by `sealane audit archive`")
    before = months_before(datetime.now(UTC), retention.months)
    # The archive may be older than the log's key.
    verifiers = every_key(directory, signer)
    with Log.open(directory, signer) as log:
        planned = plan(log, Archive(archive_folder, verifiers), before)
        if not check:
            do_prune(log, planned, _record_of(config, signer))
    return planned


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
