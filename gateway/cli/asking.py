"""How a command comes to its gateway: by its options, client.toml, and the token of whoever is signed in."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.credentials import token_of
from gateway.cli.settings import resolve

if TYPE_CHECKING:
    from gateway.cli.client import GatewayClient


def signed_in(
    gateway: str | None,
    ca: Path | None,
    token_file: Path | None,
    *,
    seconds: int | None = None,
    at_least_seconds: int = 0,
) -> GatewayClient:
    """To be used as a context manager. `seconds`: of patience, if it is less than client.toml's; `at_least_seconds`: if
    it is more, for what a gateway waits for itself before it answers. BadConfiguration."""
    from gateway.cli.client import GatewayClient  # noqa: PLC0415 - it loads an HTTP client, which most commands lack

    settings = resolve(gateway, ca, token_file, Path.home())
    if seconds is not None:
        settings = replace(settings, timeout_seconds=min(seconds, settings.timeout_seconds))
    settings = replace(settings, timeout_seconds=max(at_least_seconds, settings.timeout_seconds))
    return GatewayClient(settings, token_of(settings, int(time.time())))
