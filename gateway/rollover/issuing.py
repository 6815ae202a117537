"""The CA that certifies hosts, with the root above it: the steps of its rollover.

begin    relays are told of the next CA's CRL, and of its root if that is new
switch   certificates come from the next one; relays renew theirs within a minute
retire   the former one's hosts are not believed any more
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from certs.introduction import authority_key_id, crl_id, root_id
from gateway.enrolment.office import Office
from gateway.gate import Gate
from gateway.hosts_seen import HostsSeen
from gateway.rollover.authorities import Authorities
from gateway.rollover.kinds import NotNow
from gateway.rollover.places import Places, Stage
from gateway.rollover.progress import Holdings, Progress, migrations_since_before, own_hosts, who_holds
from gateway.rollover.telling import authority_name, names_needed, root_of
from gateway.times import rfc3339

ChangeTls = Callable[[Callable[[], None]], Awaitable[None]]


class IssuingCa:
    """`change_tls`: do something to the files of TLS and put the outcome in force. `tls`: the gateway's certificate.

    `with_root`: whether it is the root that changes, and the issuing CA with it.
    """

    def __init__(  # noqa: PLR0913 - its pieces
        self,
        *,
        with_root: bool,
        gate: Gate,
        office: Office,
        seen: HostsSeen,
        holdings: Holdings,
        change_tls: ChangeTls,
        tls: Path,
    ) -> None:
        self._with_root = with_root
        self._gate = gate
        self._office = office
        self._seen = seen
        self._holdings = holdings
        self._change_tls = change_tls
        self._tls = tls

    @property
    def stage(self) -> Stage:
        """Idle for a root where only the CA below it changes, and the other way round."""
        stage = self._places.stage
        return stage if stage is Stage.IDLE or self._is_mine() else Stage.IDLE

    @property
    def breaks(self) -> str:
        return "hosts that do not believe the new CA refuse every peer that has its certificate, and the gateway too"

    def facts(self) -> dict[str, Any]:
        return {place: _described(folder) for place, folder in self._folders()}

    def check_begin(self) -> None:
        self._places.require_writable()
        following = self._authorities.look_at_next()
        if not self._is_mine():
            what = "is below a new root" if not self._with_root else "is below the same root"
            other = "root" if not self._with_root else "issuing"
            raise NotNow(f"{following.directory} {what}", next_step=f"sealane certs rollover begin {other}")

    def ready_to_switch(self) -> Progress:
        return who_holds(own_hosts(self._gate), self._gate.dispatch, self._holdings, names_needed(self._places.next))

    def ready_to_retire(self) -> Progress:
        """Every host shows a certificate of the new CA; what began before that may still sign receipts with the old."""
        former, lacking = authority_name(self._places.former), dict[str, str]()
        latest = 0.0
        for host in (hosts := own_hosts(self._gate)):
            shown = self._seen.certificate(host)
            if shown is None:
                lacking[host] = "was not heard since this gateway started"
            elif crl_id(authority_key_id(shown)) == former:
                lacking[host] = "has a certificate of the old CA"
            latest = max(latest, self._seen.shown_since(host))
        return Progress(len(hosts), lacking, tuple(migrations_since_before(self._gate, latest)))

    async def begin(self) -> None:
        now, at_least = self._gate.clock.wall(), self._gate.minimum_crl_number
        await self._change(partial(self._authorities.begin, now, at_least))

    async def switch(self) -> None:
        await self._change(partial(self._authorities.switch, self._tls))

    async def retire(self) -> str:
        where: list[Path] = []
        await self._change(lambda: where.append(self._authorities.retire()))
        root = ", and the old root's wherever it is" if self._with_root else ""
        return f"destroy {where[0]}/ca.key{root}; keep the rest of the folder until every host has let go of it"

    async def _change(self, change: Callable[[], None]) -> None:
        """In the CAs' own thread of order: nothing is issued or revoked while folders are renamed."""
        async with self._office.thread.kept():
            await self._change_tls(change)
        self._gate.dispatch.wake_all()

    def _is_mine(self) -> bool:
        """Whether the root changes is to be seen from the folders."""
        other = next((folder for place, folder in self._folders() if place != "current"), None)
        return other is None or (root_of(other) != root_of(self._places.current)) == self._with_root

    def _folders(self) -> Iterator[tuple[str, Path]]:
        places = self._places
        yield "current", places.current
        if places.next.exists():
            yield "next", places.next
        if places.former.exists():
            yield "former", places.former

    @property
    def _authorities(self) -> Authorities:
        return self._office.authorities

    @property
    def _places(self) -> Places:
        return self._authorities.places


def _described(folder: Path) -> dict[str, str]:
    root, authority = root_of(folder), authority_name(folder)
    return {"authority": authority, "root": root_id(root), "ends": rfc3339(root.not_valid_after_utc)}
