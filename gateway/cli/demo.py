"""`sealane demo`: the main job on this machine, end to end."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.options import JsonOption
from gateway.cli.serve import needs_gateway_extra


def demo(
    as_json: JsonOption = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the demo's folder (keys, log, output of every process).")
    ] = False,
) -> None:
    """Run a gateway, two relays and two QEMUs here: one migration allowed, one denied, the log verified.

    \b
    Examples:
      sealane demo
      sealane demo --json | tail -n 1
    """
    with needs_gateway_extra():
        from gateway.demo import run_demo
    raise typer.Exit(run_demo(json=as_json, keep=keep))
