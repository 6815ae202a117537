"""Options of `sealane migrate` that say how a VM is to be moved; docs/moving.md explains them.

`wishes` makes of them what the API takes: only what was given, so that the gateway's [moving] says the rest.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

DowntimeOption = Annotated[
    int | None,
    typer.Option("--downtime-limit-ms", min=1, max=60_000, help="Stop the guest for the rest when it takes no longer."),
]
ConvergeOption = Annotated[
    int | None,
    typer.Option("--converge-within-seconds", min=1, max=86_400, help="How long pre-copy may take; see --at-deadline."),
]
AtDeadlineOption = Annotated[
    str | None,
    typer.Option("--at-deadline", metavar="cancel|post-copy|pause", help="What then: give up, switch, pause it."),
]
AutoConvergeOption = Annotated[
    bool, typer.Option("--auto-converge", help="Slow the guest down as far as it takes to converge.")
]
XbzrleOption = Annotated[bool, typer.Option("--xbzrle", help="Send pages that changed as differences.")]
MultifdOption = Annotated[
    int | None, typer.Option("--multifd", metavar="CHANNELS", min=0, max=64, help="Memory over so many connections.")
]
CompressionOption = Annotated[
    str | None, typer.Option("--compression", metavar="none|zlib|zstd", help="Compression of multifd connections.")
]
PassesOption = Annotated[
    int | None, typer.Option("--post-copy-after-passes", min=1, max=1_000, help="Then run it there, memory follows.")
]
SecondsOption = Annotated[
    int | None, typer.Option("--post-copy-after-seconds", min=0, max=86_400, help="Or after so many seconds.")
]
PreemptOption = Annotated[
    bool, typer.Option("--preempt", help="In post-copy: pages that the guest waits for go on their own connection.")
]
PostCopyRateOption = Annotated[
    int | None, typer.Option("--post-copy-bytes-per-second", min=0, help="Limit of what follows unasked in post-copy.")
]
BandwidthOption = Annotated[
    int | None,
    typer.Option("--bandwidth-bytes-per-second", min=0, help="Limit of the whole migration; never above the site's."),
]


def wishes(**options: Any) -> dict[str, Any]:
    """By their names in the API. What was not given (None, False) is left out."""
    return {name: value for name, value in options.items() if value is not None and value is not False}
