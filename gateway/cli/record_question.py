"""What is asked of a log's records, wherever they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.cli.errors import REQUESTER, BadConfiguration


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: a text in the query language, and terms by the names of the API. All of it must hold.

    Times of the text that name no zone are of `timezone`, None for UTC.
    """

    terms: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    timezone: str | None = None
    on: str | None = None  # the SIEM that is asked

    def parameters(self) -> dict[str, str | int]:
        """As the API takes it. Raises BadConfiguration: what is too long for a query is so for HTTP, too."""
        from audit.query.parse import MAX_CHARS  # noqa: PLC0415 - a relay's host lacks the [gateway] extra

        if len(self.text) > MAX_CHARS:
            what = f"the query is longer than {MAX_CHARS} characters (at character {MAX_CHARS + 1})"
            raise BadConfiguration(what, REQUESTER, "ask for less at once")
        texts = {"query": self.text, "timezone": self.timezone or "", "on": self.on or ""}
        return {**self.terms, **{name: text for name, text in texts.items() if text}}
