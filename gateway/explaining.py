"""Why a check was decided as it was, in the words of `sealane policy explain`: for whoever may ask for decisions.

All of it happens in a thread, one at a time: with a thousand policies it takes longer than others should wait.
"""

from __future__ import annotations

from typing import Final

import trio

from gateway.turns import Turns
from policy.authoring.explain import explain
from policy.authoring.pieces import Pieces
from policy.bundle import Bundle
from policy.decision import Decision

MAX_LINES: Final = 400
MAX_LINE: Final = 1_000  # characters


class Explaining:
    """Holds the parts of the newest bundle that was asked about."""

    def __init__(self) -> None:
        self._made: tuple[str, Pieces] | None = None
        self._turns = Turns(1, 1)

    async def lines(self, bundle: Bundle, decision: Decision) -> list[str]:
        """The explanation; empty for a decision of another bundle, which was replaced meanwhile. Errors: Overloaded."""
        if decision.bundle_digest != bundle.digest:
            return []
        async with self._turns.of(""):
            if self._made is None or self._made[0] != bundle.digest:
                pieces = await trio.to_thread.run_sync(Pieces, bundle.rules, bundle.policy_texts)
                self._made = (bundle.digest, pieces)
            return await trio.to_thread.run_sync(_lines, self._made[1], decision)


def _lines(pieces: Pieces, decision: Decision) -> list[str]:
    lines = [line[:MAX_LINE] for line in explain(pieces, decision).lines()]
    if len(lines) <= MAX_LINES:
        return lines
    return [*lines[:MAX_LINES], f"{len(lines) - MAX_LINES} more lines: see `sealane policy explain`"]
