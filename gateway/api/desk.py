"""What every call needs: the pieces of the gateway, and who is on the other end of the connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from audit.checkpoint import LogVerifier
from certs.identity import SpiffeId
from gateway.elsewhere import Elsewhere
from gateway.enrolment.office import Office
from gateway.errors import NotSetUp, RelayRefused
from gateway.evacuating import Evacuating
from gateway.explaining import Explaining
from gateway.gate import Gate
from gateway.issuers import Issuers
from gateway.link_versions import note_version
from gateway.metrics import Metrics
from gateway.people import People, Presented
from gateway.placement_watching import PlacementWatching
from gateway.pruning import Pruning
from gateway.publishing import Publishing
from gateway.reading import Reading
from gateway.refused_calls import RefusedCallsOnRecord
from gateway.relays import relay_of
from gateway.reporting import Reporting
from gateway.rollover.steps import Rollovers
from gateway.siem.oversight import Oversight
from gateway.tile_reading import TileReading
from policy.facts import Person
from transport.link_version import HEADER


@dataclass(frozen=True, slots=True)
class Desk:
    """The pieces, put together by `gateway.composition`. `health` answers for anyone, so it tells little."""

    gate: Gate
    office: Office | None
    evacuating: Evacuating | None
    rollovers: Rollovers
    elsewhere: Elsewhere
    people: People
    issuers: Issuers
    reading: Reading
    tile_reading: TileReading
    published_checkpoint: Callable[[], Awaitable[str]]
    reporting: Reporting
    placement: PlacementWatching
    publishing: Publishing
    explaining: Explaining
    refused_calls: RefusedCallsOnRecord
    oversight: Oversight
    pruning: Pruning
    metrics: Metrics
    log_verifier: LogVerifier
    health: Callable[[], dict[str, Any]]
    long_answer_seconds: float
    poll_seconds: int

    def now(self) -> datetime:
        return self.gate.clock.wall()


def office_of(desk: Desk) -> Office:
    """Errors: NotSetUp where this gateway enrols no hosts."""
    if desk.office is None:
        raise NotSetUp("this gateway enrols no hosts", "[enrolment]")
    return desk.office


# All dependencies are coroutines: FastAPI runs a plain function in a thread, which costs more than any of them does.
async def desk_of(request: Request) -> Desk:
    desk = request.app.state.desk
    assert isinstance(desk, Desk)
    return desk


async def address_of(request: Request) -> str:
    """Where the connection comes from; headers about it are not believed."""
    return request.client.host if request.client is not None else "unknown"


# auto_error=False: a missing token is refused, and recorded, by `People.authenticate` like any other.
_bearer = HTTPBearer(auto_error=False, description="An access token: of the identity provider, or from POST /v1/token")


async def presented_of(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Presented:
    state = request.scope.get("state", {})
    bearer = credentials.credentials if credentials is not None else None
    if bearer is None and "authorization" in request.headers:
        bearer = ""  # no token, and refused as one: a certificate's owner who passed it on did not ask for themself
    return Presented(bearer, state.get("peer_certificate"), partial(_keep_place, state))


def _keep_place(state: Mapping[str, Any]) -> None:
    """For this call: it must not be ended for a newcomer between a record and what that says."""
    if (place := state.get("place")) is not None:
        place.keep()


AtDesk = Annotated[Desk, Depends(desk_of)]
Bearer = Annotated[Presented, Depends(presented_of)]
Address = Annotated[str, Depends(address_of)]


async def authenticated_of(desk: AtDesk, bearer: Bearer, address: Address) -> Person:
    """Groups are not asked for yet. Errors: Unauthenticated, IdentityUnavailable."""
    return await desk.people.authenticate(bearer, desk.now(), address)


Authenticated = Annotated[Person, Depends(authenticated_of)]


async def person_of(desk: AtDesk, person: Authenticated, address: Address) -> Person:
    """Authenticated, with the groups of now. Errors: Unauthenticated, IdentityUnavailable."""
    return await desk.people.resolve_groups(person, desk.now(), address)


async def known_person_of(desk: AtDesk, bearer: Bearer, address: Address) -> Person:
    """As `person_of`, also of whoever has to wait: for their own migrations, which they can see and end at any time.

    What would be a denial asks `People.patience` before it is recorded.
    """
    now = desk.now()
    person = await desk.people.identify(bearer, now, address)
    return await desk.people.resolve_groups(person, now, address)


async def privileged_person_of(desk: AtDesk, person: Authenticated, address: Address) -> Person:
    """As `person_of`, with nothing cached: for what must not be decided on groups that are a minute old."""
    return await desk.people.resolve_groups(person, desk.now(), address, fresh=True)


async def host_of(desk: AtDesk, request: Request) -> SpiffeId:
    """The host of the connection's client certificate. Errors: RelayRefused, UpgradeNeeded."""
    certificate = request.scope.get("state", {}).get("peer_certificate")
    now = desk.now()
    try:
        host = relay_of(certificate, desk.reporting.trust, desk.gate.inventory, now)
    except RelayRefused as error:
        if certificate is not None:
            desk.reporting.say_refused("relay refused", cause=str(error.__cause__ or error.detail))
        raise
    desk.reporting.seen.note(str(host), certificate, now.timestamp())
    note_version(desk.gate.dispatch, str(host), request.headers.get(HEADER))
    return host


Asking = Annotated[Person, Depends(person_of)]
AskingOfOwn = Annotated[Person, Depends(known_person_of)]
AskingPrivileged = Annotated[Person, Depends(privileged_person_of)]
Relay = Annotated[SpiffeId, Depends(host_of)]
