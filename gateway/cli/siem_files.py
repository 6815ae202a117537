"""`sealane siem reconcile-file`: a receiver that cannot be asked, by what it stored."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLR0913, PLR0917, PLC0415

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.asking import signed_in
from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration
from gateway.cli.options import CaOption, GatewayOption, JsonOption, ServeConfigOption, TokenFileOption
from gateway.cli.output import print_json, say
from gateway.cli.serve import needs_gateway_extra
from gateway.cli.waiting import working
from gateway.counted import counted

EXIT_DIFFERS = 1
_SHOWN = 20
_PLACE_CHARS = 512


def reconcile_file(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The sink's name in the gateway's configuration.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="What the receiver stored; .gz as well.")],
    config: ServeConfigOption,
    start: Annotated[int, typer.Option("--from", metavar="N", min=0, help="First entry.")] = 0,
    end: Annotated[
        int | None, typer.Option("--to", metavar="M", min=0, help="Entry after the last. Default: all of the log.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Put the result into the log, by the gateway: sign in before.")
    ] = False,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a receiver's own files (rsyslog's output, JSON lines) with the log's folder, line by line.

    Runs where the log is; the gateway may be running or not. Each line says which entry it is; that entry's line is
    made again and compared whole. With --record the gateway logs the result as yours. Exit code 0: they agree; 1: they
    do not.

    \b
    Examples:
      sealane siem reconcile-file rsyslog /var/log/sealane.log* --config /etc/sealane/gateway.toml
      sealane siem reconcile-file lines audit.jsonl --config gateway.toml --from 1000 --to 2000 --json
      sealane siem reconcile-file rsyslog sealane.log --config gateway.toml --record
    """
    with needs_gateway_extra():
        from audit.errors import AuditError
        from gateway.config import load
        from gateway.errors import GatewayError
        from gateway.siem.stored_lines import reconcile_files
    try:
        settings = load(config)
        with working("comparing each line with the log"):
            found = reconcile_files(settings, name, files, start, end)
    except GatewayError as error:
        raise BadConfiguration(str(error), error.who_must_act, error.next_step) from error
    except AuditError as error:
        raise BadConfiguration(str(error), OPERATOR, "run `sealane audit verify` on the log's folder") from error
    except (OSError, EOFError) as error:
        what = f"{getattr(error, 'filename', None) or 'a file'} cannot be read: {error}"
        raise BadConfiguration(what, REQUESTER, "name files of the receiver that can be read") from error
    result = found.document()
    recorded = _recorded(name, result, gateway, ca, token_file) if record else None
    if as_json:
        outcome = "agrees" if found.findings.agrees else "differs"
        print_json({"outcome": outcome, **result} | ({"recorded": recorded} if record else {}))
    else:
        say(f"{'AGREES' if found.findings.agrees else 'DIFFERS'}: {counted(result['compared'], 'entry')} compared")
        for what in ("missing", "altered", "added"):
            if count := result[f"{what}_count"]:
                say(f"  {what}: {count}")
                for one in result[what][:_SHOWN]:
                    say(f"    {one['index']} at {one['place']}" if isinstance(one, dict) else f"    {one}")
        say(f"  lines that came more than once: {found.repeated}; lines of others: {found.others}")
        if record:
            say(f"  recorded as entry {recorded}")
    raise typer.Exit(0 if found.findings.agrees else EXIT_DIFFERS)


def _recorded(
    name: str, result: Mapping[str, Any], gateway: str | None, ca: Path | None, token_file: Path | None
) -> int:
    """The index of the record. The log keeps the first of each kind, as it does of other comparisons."""
    counts = ("from", "to", "compared", "missing_count", "altered_count", "added_count")
    found = {each: result[each] for each in counts} | {
        "missing": result["missing"][:_SHOWN],
        "altered": [each["index"] for each in result["altered"][:_SHOWN]],
        "added": [str(each)[:_PLACE_CHARS] for each in result["added"][:_SHOWN]],
    }
    with signed_in(gateway, ca, token_file) as client:
        return client.record_file_findings(name, found)
