"""The answer to a question: the policy's decision, and what broken glass or an observed zone makes of it."""

from __future__ import annotations

from dataclasses import replace

from gateway.asking import Facts, decide, explain_unknown
from gateway.errors import NotSetUp
from gateway.gate import Gate
from gateway.observing import observe
from policy.engine import Decision


def no_break_glass() -> NotSetUp:
    return NotSetUp("at this gateway no glass can be broken", "[break_glass]")


async def answer(gate: Gate, facts: Facts, *, recorded: bool = True) -> tuple[Facts, Decision]:
    """Decide; a move under a breaking of glass needs that to cover it, too.

    Nothing is observed where another site takes part: its zones are not ours, whatever it calls them.

    Errors: NotSetUp, RequestRefused, LogUnavailable.
    `recorded`: it is a move and no mere check, so the use of the grant is recorded before anything comes of it.
    """
    decision = explain_unknown(gate, facts.asked, decide(gate.engine, facts.question))
    if gate.shadow is not None:
        decision = replace(decision, otherwise=gate.shadow.look(decision))
    if facts.site is not None:
        return facts, decision
    if facts.asked.break_glass is None:
        return facts, observe(gate.observation, facts.question, decision, gate.time.now())
    if gate.break_glass is None:
        raise no_break_glass()
    return await gate.break_glass.judge(facts, decision, recorded=recorded)
