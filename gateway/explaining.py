"""Why a check was decided as it was, in the words of `sealane policy explain`: for whoever may ask for decisions.

The bundle is taken apart in a thread, once for each that is in force.
"""

from __future__ import annotations

import trio

from policy.authoring.explain import explain
from policy.authoring.pieces import Pieces
from policy.bundle import Bundle
from policy.decision import Decision


class Explaining:
    """Holds the parts of the newest bundle that was asked about."""

    def __init__(self) -> None:
        self._made: tuple[str, Pieces] | None = None
        self._lock = trio.Lock()

    async def lines(self, bundle: Bundle, decision: Decision) -> list[str]:
        """The explanation; empty for a decision of another bundle, which was replaced meanwhile."""
        if decision.bundle_digest != bundle.digest:
            return []
        async with self._lock:
            if self._made is None or self._made[0] != bundle.digest:
                pieces = await trio.to_thread.run_sync(Pieces, bundle.rules, bundle.policy_texts)
                self._made = (bundle.digest, pieces)
            made = self._made[1]
        return list(explain(made, decision).lines())
