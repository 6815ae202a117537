"""How many cuts of the network one migration survives: real QEMUs, connections reset at random moments.

One migration, 100 cuts, each fifth of them packets that are dropped for up to 4 s without a reset; the guest must count
on at the destination without a gap, with its memory as it was.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace
from pathlib import Path

import trio

from bench.harness import BenchError, Plan
from tests.transport.cuts import cuts_survived
from tests.transport.kinds import KINDS, WrongGuest

CUTS, QUICK_CUTS = 100, 10
SEED = 20261126


def measure(plan: Plan) -> dict[str, float]:
    """`cuts_made` and `cuts_survived`, of one migration that came to its end; a `BenchError` if it did not."""
    cuts = QUICK_CUTS if plan.quick else CUTS
    kind = replace(KINDS[0], bandwidth=0)
    with tempfile.TemporaryDirectory(prefix="sl") as folder:
        try:
            survived = trio.run(cuts_survived, Path(folder), kind, cuts, random.Random(SEED))
        except (WrongGuest, BaseExceptionGroup) as error:
            raise BenchError(f"the migration did not survive its cuts: {error}") from error
    if survived.cuts < cuts:
        raise BenchError(f"the migration was over after {survived.cuts} cuts: it must last longer")
    return {
        "cuts_made": float(survived.cuts),
        "cuts_survived": float(survived.cuts),
        "cuts_holes": float(survived.holes),
        "cuts_resumptions": float(survived.resumptions),
    }
