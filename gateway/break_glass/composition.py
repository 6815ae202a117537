"""From the `[break_glass]` table of the configuration to the pieces."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from gateway.break_glass.glass import BreakGlass
from gateway.break_glass.wish import WishRules
from gateway.config import GatewayConfig, SealedTable
from gateway.errors import StartRefused
from gateway.gate import Gate
from gateway.people_sources import PinnedIssuer
from gateway.recording import History
from gateway.sealed_people import SealedIssuer
from policy.errors import DirectoryRefused
from policy.facts import SEALED
from policy.identity.local import local_verifier
from policy.identity.sealed import SealedFile


def make_break_glass(config: GatewayConfig, gate: Gate, history: History) -> BreakGlass | None:
    """None where the site does not have it. It knows the log once `restore` has run."""
    table = config.break_glass
    if table is None:
        return None
    rules = WishRules(
        table.max_minutes, table.answer_minutes, table.max_pending, table.max_pending_per_person, table.ticket()
    )
    return BreakGlass(gate, rules, history)


def make_sealed_issuer(
    config: GatewayConfig, table: SealedTable, key: ec.EllipticCurvePrivateKey
) -> tuple[SealedIssuer, PinnedIssuer]:
    """The issuer for sealed people, and what verifies its tokens. Errors: StartRefused, also for another file."""
    file = SealedFile(config.path(table.people), table.people_sha256)
    try:
        file.read()
        verifier = local_verifier(key.public_key(), table.issuer, table.audience, table.token_seconds, SEALED)
    except (DirectoryRefused, ValueError) as error:
        raise StartRefused(f"break_glass.sealed: {error}") from error
    issuer = SealedIssuer(table.issuer, table.audience, key, table.token_seconds, file)
    return issuer, PinnedIssuer(verifier)
