"""What knows the hosts of its own site only says so of another site's, and what to do instead."""

from __future__ import annotations

from gateway.errors import RequestRefused
from gateway.gate import Gate


def another_sites(gate: Gate, host: str, what: str) -> RequestRefused | None:
    """Of a host that is named by its SPIFFE id. `what`: as the subject of a sentence. None for a host of our own."""
    site = gate.sites.of_host(host) if gate.sites is not None else None
    if site is None:
        return None
    return RequestRefused(
        f"{host} is a host of site {site.name}, and {what} the hosts of this site only",
        code="other_site",
        next_step=f"ask for the migration itself: sealane migrate VM --to {host}; both gateways decide then, and "
        "nothing moves unless both allow it",
    )


def require_own(gate: Gate, host: str, what: str) -> None:
    """Errors: RequestRefused."""
    if (refused := another_sites(gate, host, what)) is not None:
        raise refused
