"""People of the sealed file: for the night in which the directory is down. Whatever they do is an alarm.

Signing in, trying to, and a file that is not the sealed one are records of kinds of their own, so that a SIEM needs one
rule to wake somebody. What they may do beyond that, `policy.decision` limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric import ec

from audit.record import Actor
from gateway.errors import OperatorError
from gateway.recording import Event
from policy.facts import Person, group_id
from policy.identity.local import LocalDirectory, LocalPerson, issue_token
from policy.identity.sealed import SealedFile

SIGNED_IN = "breakglass.sealed_sign_in"
SEAL_BROKEN = "breakglass.seal_broken"

log = structlog.get_logger("gateway.alarm")


class SealBroken(OperatorError):
    """The sealed file is another than the one of the configuration: nobody of it is believed."""

    code = "seal_broken"
    next_step = "find out who changed the sealed file; put the sealed one back, or seal it anew and restart the gateway"


@dataclass(frozen=True, slots=True)
class SealedIssuer:
    """The issuer of their tokens."""

    issuer: str
    audience: str
    private_key: ec.EllipticCurvePrivateKey
    token_seconds: int
    file: SealedFile

    async def people(self) -> LocalDirectory:
        """As the file says now. Errors: DirectoryRefused."""
        return await trio.to_thread.run_sync(self.file.read)

    def issue(self, person: LocalPerson, now: int) -> str:
        return issue_token(person, self.private_key, self.issuer, self.audience, now, self.token_seconds)

    def groups_of(self, person: LocalPerson) -> frozenset[str]:
        return frozenset(group_id(self.issuer, group) for group in person.groups)

    def find(self, directory: LocalDirectory, person: Person) -> LocalPerson | None:
        return directory.people.get(person.id.partition("#")[2])

    def signed_in(self, person: LocalPerson, address: str) -> Event:
        """The record, which must be durable before the token is handed out."""
        log.critical("a sealed person has signed in", alarm=True, who=person.username, address=address)
        groups = tuple(sorted(self.groups_of(person)))
        actor = Actor(f"{self.issuer}#{person.username}", person.name, "sealed", self.issuer, groups)
        details: dict[str, Any] = {"client_address": address, "expires_in": self.token_seconds}
        return Event(SIGNED_IN, "allowed", actor=actor, details={**details, "sha256": self.file.sha256})
