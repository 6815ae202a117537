"""The engine: it holds the bundle in force, answers questions under it, and answers old ones under any bundle."""

from __future__ import annotations

from policy.bundle import Bundle
from policy.decision import Decision, PolicyReason, evaluate
from policy.facts import Question
from policy.many_groups import expand_entities
from policy.request import Json, entities_of, request_of

__all__ = ["Decision", "Engine", "PolicyReason", "decide", "replay"]


class Engine:
    """The bundle in force. A decision takes about 1 ms of CPU and holds the GIL: call it inline, not in a thread."""

    __slots__ = ("_bundle",)

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    @property
    def bundle(self) -> Bundle:
        return self._bundle

    def decide(self, question: Question) -> Decision:
        """Answer under one bundle: the one in force when the call began."""
        return decide(self._bundle, question)

    def swap(self, bundle: Bundle) -> Bundle:
        """Put another bundle in force; returns the one it replaces. One assignment: no decision sees half of each."""
        replaced, self._bundle = self._bundle, bundle
        return replaced


def decide(bundle: Bundle, question: Question) -> Decision:
    """Answer a question. Never raises for what a question can hold; the `Decision` is complete in itself."""
    return replay(bundle, request_of(question), entities_of(question))


def replay(bundle: Bundle, request: Json, entities: list[Json]) -> Decision:
    """Decide what a record holds, under this bundle or another: the same code path as `decide`."""
    try:
        entities = expand_entities(entities)
    except ValueError:
        pass  # left as they are, they are refused by `evaluate` in its own words
    return evaluate(bundle.rules, bundle.digest, request, entities)
