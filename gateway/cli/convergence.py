"""Whether pre-copy comes to an end, by what `sealane migrate` hears of it; else what can be done, said once.

A pass begins with what the guest has changed during the one before. Where that grows no smaller over some passes, the
guest changes memory as fast as it is sent, and the migration goes on until its permit ends. Of some passes and not of
one: who asks once a second meets a short pass at its beginning, or at its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.cli.replies import MigrationReply

PASSES: Final = 3  # are compared with as many before them; the first one sends all of the memory and is none of them
_SMALLER: Final = 0.9  # of what the passes before had to send: less than that is progress
_SETTLING: Final = frozenset({"post_copy_after_passes", "post_copy_after_seconds", "converge_within_seconds"})
_AUTO_CONVERGE: Final = "--auto-converge, which slows the guest down"
_REMEDIES: Final = (
    "a higher --bandwidth-bytes-per-second, if it or the site's limit holds it back",
    "a higher --downtime-limit-ms",
    _AUTO_CONVERGE,
    "--post-copy-after-passes, after which the guest goes on there and its memory follows",
)


class Convergence:
    """Of one migration. `how`: what was asked for, by the API's names."""

    def __init__(self, how: Mapping[str, Any]) -> None:
        self._how = how
        self._pass = self._most = 0
        self._begins: list[int] = []  # with how much, of the passes that are over
        self._is_said = bool(_SETTLING & how.keys())  # it ends by itself

    def advice(self, reply: MigrationReply) -> str | None:
        """In words, once it is seen not to converge; None before, and ever after."""
        numbers = reply.progress
        if self._is_said or reply.state != "running" or numbers is None or not numbers.pass_number:
            return None
        if numbers.pass_number != self._pass:
            if self._pass > 1:
                self._begins = [*self._begins, self._most][-2 * PASSES :]
            self._pass, self._most = numbers.pass_number, 0
        self._most = max(self._most, numbers.remaining_bytes)
        before, lately = self._begins[:PASSES], self._begins[PASSES:]
        if len(lately) < PASSES or max(lately) < max(1, _SMALLER * max(before)):
            return None
        self._is_said = True
        remedies = [words for words in _REMEDIES if words != _AUTO_CONVERGE or "auto_converge" not in self._how]
        return (
            f"It does not converge: {PASSES} passes had as much to send as those before, since the guest changes "
            "memory as fast as it is sent. Ctrl-C gives it up, and the guest stays where it is. Then ask again with "
            f"{'; '.join(remedies)} (docs/moving.md)."
        )
