"""The answer to a question: the policy's decision, and what broken glass or an observed zone makes of it."""

from __future__ import annotations

from dataclasses import replace

from gateway.asking import Facts, decide, explain_unknown
from gateway.errors import RequestRefused
from gateway.gate import Gate
from gateway.observing import observe
from policy.engine import Decision


class NoBreakGlass(RequestRefused):
    code = "break_glass_off"
    next_step = "ask the operator: the gateway's configuration has no [break_glass]"

    def __init__(self) -> None:
        super().__init__("at this gateway no glass can be broken")


async def answer(gate: Gate, facts: Facts, *, recorded: bool = True) -> tuple[Facts, Decision]:
    """Decide; a move under a breaking of glass needs that to cover it, too. Errors: RequestRefused, LogUnavailable.

    `recorded`: it is a move and no mere check, so the use of the grant is recorded before anything comes of it.
    """
    decision = explain_unknown(gate, facts.asked, decide(gate.engine, facts.question))
    if gate.shadow is not None:
        decision = replace(decision, otherwise=gate.shadow.look(decision))
    if facts.asked.break_glass is None:
        return facts, observe(gate.observation, facts.question, decision, gate.time.now())
    if gate.break_glass is None:
        raise NoBreakGlass
    return await gate.break_glass.judge(facts, decision, recorded=recorded)
