"""The options by which `sealane audit` commands say where records are read, and which."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.moments import parse_moment

LogOption = Annotated[
    Path | None,
    typer.Option("--log", metavar="DIR", help="Read a log's folder (or a copy of it) instead of asking a gateway."),
]
MigrationOption = Annotated[
    str | None, typer.Option("--migration", metavar="ID", help="Only records of this migration.")
]
VmOption = Annotated[str | None, typer.Option("--vm", metavar="VM", help="Only records of this VM: name or UUID.")]
HostOption = Annotated[
    str | None,
    typer.Option("--host", metavar="HOST", help="Only with this host, as source or destination: name or id."),
]
ActorOption = Annotated[str | None, typer.Option("--actor", metavar="NAME", help="Only of this person: name or id.")]
OutcomeOption = Annotated[
    str | None,
    typer.Option("--outcome", metavar="WORD", help="allowed, denied, would_deny, completed, failed, cancelled …"),
]
KindOption = Annotated[str | None, typer.Option("--kind", metavar="WORD", help="Only records of this kind.")]
SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="From then on: 90m, 7d (ago), 2026-11-22, …T21:42:21Z.")
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before then; as --since.")]


def terms_of(given: Mapping[str, str | None], since: str | None = None, until: str | None = None) -> dict[str, str]:
    """The terms that were given, by the names of the API; times in the records' own form."""
    now = datetime.now(UTC)
    times = {
        "since": parse_moment(since, now, "--since") if since else None,
        "until": parse_moment(until, now, "--until") if until else None,
    }
    return {name: value for name, value in {**given, **times}.items() if value is not None}
