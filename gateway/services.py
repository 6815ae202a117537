"""Programs that ask by client certificate: `[[identity.services]]`, by the SPIFFE id of the certificate.

A service is a principal like a person, never a host: its id has another form, its certificate another key usage, and
neither passes where the other is wanted. Which ids are accepted, and the groups of each, stands in the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated

import msgspec
import structlog
from cryptography import x509
from msgspec import Meta

from certs.errors import UNREADABLE, CertificateError
from certs.identity import ServiceId
from gateway.relays import HostTrust
from policy.errors import FactRefused
from policy.facts import CLIENT_CERTIFICATE, Person, group_id

log = structlog.get_logger("gateway.services")

Text = Annotated[str, Meta(min_length=1, max_length=255)]


class ServiceTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`groups` are `spiffe://<trust domain>#<name>` in policies. `name` is shown to people."""

    spiffe_id: Text
    groups: Annotated[tuple[Text, ...], Meta(max_length=100)] = ()
    name: Text | None = None


class ServiceRefused(Exception):
    """Why a certificate is not taken as that of a service; for our own log and record."""


class Services:
    """Who may ask by certificate. `trust`: the anchors and CRLs of now."""

    def __init__(self, tables: tuple[ServiceTable, ...], trust: Callable[[], HostTrust]) -> None:
        """Raises ValueError, naming the service."""
        self._people: Mapping[str, Person] = people_of(tables)
        self._trust = trust

    def person_of(self, certificate_der: bytes, now: datetime) -> Person:
        """The service whose certificate it is, judged anew at each call. Raises ServiceRefused."""
        try:
            certificate = x509.load_der_x509_certificate(certificate_der)
            service = str(self._trust().service_of((certificate,), now))
        except (CertificateError, *UNREADABLE) as error:
            raise ServiceRefused(str(error)) from error
        if (person := self._people.get(service)) is None:
            raise ServiceRefused(f"{service} is not among the services of the configuration")
        return person

    def known(self, service: str) -> Person | None:
        """The service as the configuration has it now."""
        return self._people.get(service)


def people_of(tables: tuple[ServiceTable, ...]) -> dict[str, Person]:
    """By SPIFFE id. Raises ValueError, naming the service."""
    people: dict[str, Person] = {}
    for table in tables:
        try:
            issuer = ServiceId.parse(table.spiffe_id).issuer
            groups = frozenset(group_id(issuer, name) for name in table.groups)
            person = Person(table.spiffe_id, issuer, table.name or table.spiffe_id, groups, CLIENT_CERTIFICATE)
        except (CertificateError, FactRefused) as error:
            raise ValueError(f"{table.spiffe_id}: {error}") from error
        if person.id in people:
            raise ValueError(f"{table.spiffe_id}: stands twice")
        people[person.id] = person
    return people
