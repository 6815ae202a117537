"""How far a rollover is: which hosts hold what a step needs of them. In memory: relays say it anew with each poll."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from certs.identity import SpiffeId
from gateway.dispatch import Dispatch
from gateway.gate import Gate
from transport.link_version import ROLLOVERS

MAX_NAMED: Final = 50  # hosts that an answer or a record names
_FEW: Final = 3


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
    """`lacking`: why each of those hosts is not ready, by SPIFFE id. `waits`: what else the step waits for."""

    hosts: int
    lacking: Mapping[str, str]
    waits: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        return not self.lacking and not self.waits

    def document(self) -> dict[str, Any]:
        named = dict(sorted(self.lacking.items())[:MAX_NAMED])
        waits = list(self.waits[:MAX_NAMED])
        return {"hosts": self.hosts, "ready": self.hosts - len(self.lacking), "lacking": named, "waits": waits}

    def __str__(self) -> str:
        """One line of why it is not complete."""
        few = [f"{host} {why}" for host, why in sorted(self.lacking.items())[:_FEW]] + list(self.waits[:_FEW])
        more = "; …" if len(self.lacking) > _FEW or len(self.waits) > _FEW else ""
        return f"{self.hosts - len(self.lacking)} of {self.hosts} hosts are ready: {'; '.join(few)}{more}"


def own_hosts(gate: Gate) -> list[str]:
    """Those of the inventory that ask this gateway, and no other site's."""
    others = frozenset() if gate.sites is None else gate.sites.by_domain.keys()
    return [host for host in gate.inventory.hosts if SpiffeId.parse(host).trust_domain not in others]


def migrations_since_before(gate: Gate, moment: float) -> list[str]:
    """What runs now and was decided before `moment` (Unix seconds)."""
    active = gate.migrations.active(int(gate.clock.wall().timestamp()))
    return [f"migration {each.migration_id} runs since before" for each in active if each.decided <= moment]


def who_holds(hosts: Iterable[str], dispatch: Dispatch, holdings: Holdings, needed: frozenset[str]) -> Progress:
    """Whether each of `hosts` holds all of `needed`."""
    lacking, count = {}, 0
    for host in hosts:
        count += 1
        held = holdings.of(host)
        if held is None:
            lacking[host] = "was not heard since this gateway started"
        elif (dispatch.link(host) or 0) < ROLLOVERS:
            lacking[host] = "has a relay of an earlier version, which follows no rollover: upgrade it"
        elif missing := needed - held:
            lacking[host] = f"lacks {', '.join(sorted(missing))}"
    return Progress(count, lacking)
