"""How far a rollover is: which hosts hold what a step needs of them. In memory: relays say it anew with each poll."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_NAMED: Final = 50  # hosts that an answer or a record names


class Holdings:
    """By SPIFFE id the names of all that the host believes, as of its last poll (`certs.introduction`)."""

    def __init__(self) -> None:
        self._by_host: dict[str, frozenset[str]] = {}

    def note(self, host: str, names: Sequence[str]) -> None:
        self._by_host[host] = frozenset(names)

    def of(self, host: str) -> frozenset[str] | None:
        """None for a host that was not heard since this gateway started."""
        return self._by_host.get(host)


@dataclass(frozen=True, slots=True)
class Progress:
    """`lacking`: why each of those hosts is not ready, by SPIFFE id."""

    hosts: int
    lacking: Mapping[str, str]

    @property
    def is_complete(self) -> bool:
        return not self.lacking

    def document(self) -> dict[str, Any]:
        named = dict(sorted(self.lacking.items())[:MAX_NAMED])
        return {"hosts": self.hosts, "ready": self.hosts - len(self.lacking), "lacking": named}

    def __str__(self) -> str:
        return f"{self.hosts - len(self.lacking)} of {self.hosts} hosts"


def who_holds(hosts: Iterable[str], holdings: Holdings, needed: frozenset[str]) -> Progress:
    """Whether each of `hosts` holds all of `needed`."""
    lacking, count = {}, 0
    for host in hosts:
        count += 1
        held = holdings.of(host)
        if held is None:
            lacking[host] = "was not heard since this gateway started"
        elif missing := needed - held:
            lacking[host] = f"lacks {', '.join(sorted(missing))}"
    return Progress(count, lacking)
