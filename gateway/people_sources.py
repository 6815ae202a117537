"""Where people come from: issuers with their keys, the local directory, Active Directory for the groups of either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from policy.errors import DirectoryUnavailable
from policy.facts import Person
from policy.identity.active_directory import ActiveDirectory, resolve
from policy.identity.directory_account import AccountAttribute
from policy.identity.local import LocalDirectory
from policy.identity.oidc import TokenVerifier

log = structlog.get_logger("gateway.people")


class KeySource(Protocol):
    """An issuer with its keys: `policy.identity.jwks.IssuerKeys`, or `PinnedIssuer`."""

    async def verify(self, token: str, now: int, certificate: bytes | None = None) -> Person:
        """The person. Errors: TokenRefused, IssuerUnavailable."""


@dataclass(frozen=True, slots=True)
class PinnedIssuer:
    """An issuer whose keys are in a file (or are our own): nothing is fetched."""

    verifier: TokenVerifier

    async def verify(self, token: str, now: int, certificate: bytes | None = None) -> Person:
        return self.verifier.verify(token, now, certificate)


@dataclass(slots=True)
class LocalIssuer:
    """The embedded default. `directory` is replaced as a whole at a reload."""

    issuer: str
    audience: str
    private_key: ec.EllipticCurvePrivateKey
    token_seconds: int
    directory: LocalDirectory


@dataclass(frozen=True, slots=True)
class DirectoryGroups:
    """Active Directory, and the issuers whose people's groups it tells.

    `attributes`: by issuer, what its account claim is in the directory. `services`: by issuer, the subjects that are
    programs with groups of their own in the configuration, and no account.
    """

    directory: ActiveDirectory
    attributes: Mapping[str, AccountAttribute]
    services: Mapping[str, frozenset[str]]

    def knows(self, person: Person) -> bool:
        """Is it the directory that tells this person's groups?"""
        subject = person.id.removeprefix(person.issuer + "#")
        return person.issuer in self.attributes and subject not in self.services.get(person.issuer, frozenset())

    async def resolve(self, person: Person, now: datetime, *, fresh: bool) -> Person:
        """The person with the directory's groups, or with unknown ones and the reason."""
        attribute = self.attributes[person.issuer]
        return await resolve(self.directory, person, attribute, now, fresh=fresh, report=_report)

    async def reconsider(self, person: Person, now: datetime) -> Person:
        """The same, but a directory that does not answer is no answer. Errors: DirectoryUnavailable."""
        failures: list[DirectoryUnavailable] = []
        attribute = self.attributes[person.issuer]
        found = await resolve(self.directory, person, attribute, now, fresh=True, report=failures.append)
        if failures:
            raise failures[0]
        return found


def _report(error: DirectoryUnavailable) -> None:
    log.warning("active directory unavailable", check=error.check, error=error.detail)
