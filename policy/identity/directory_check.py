"""What works with a site's Active Directory and what does not, step by step, for an administrator. Blocking.

The steps are those of a decision, with the same code: what passes here works in the gateway. No secret is told.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from policy.errors import AccountRefused, DirectoryCheck, DirectoryUnavailable
from policy.identity.directory_account import Account, AccountName
from policy.identity.directory_session import Session, make_tickets
from policy.identity.directory_settings import Credentials, DirectorySettings, Endpoint

StepName = Literal["dns", "connect", "tls", "ticket", "bind", "base", "user", "groups", "state"]

_REMEDIES: Final[dict[DirectoryCheck, str]] = {
    "dns": "correct the name in `controllers`, or give the controller's address in `addresses`",
    "connect": "start the controller, and let this machine reach its port for LDAPS",
    "tls": "put the CA that signed the controllers' certificates in `trust_bundle`, and name each controller as its"
    " certificate does; an expired certificate must be renewed on the controller",
    "timeout": "look at the controller: it accepts connections and does not answer in time",
    "kerberos": "let this machine reach a KDC of the realm (krb5.conf or DNS name it) and set its clock; after a new"
    " password of `bind_user`, export `bind_keytab` anew; the controller must have the service principal ldap/NAME",
    "bind": "correct `bind_user` and `bind_password_file` or `bind_keytab`, or let the service account in again",
    "base": "correct `base`: the DN under which people are",
    "answer": "let the service account read the attribute: members of Pre-Windows 2000 Compatible Access may",
}


@dataclass(frozen=True, slots=True)
class Step:
    """`remedy`: what to do, None where the step passed. `account`: what was found, with the steps about it."""

    controller: str
    name: StepName
    passed: bool
    detail: str
    remedy: str | None = None
    account: Account | None = None
    group_names: tuple[tuple[str, str], ...] = ()  # (SID, name)


def check_directory(
    settings: DirectorySettings, credentials: Credentials, user: AccountName | None, now: datetime
) -> Iterator[Step]:
    """Each controller in turn, up to its first step that fails. Raises ValueError for bad settings."""
    for endpoint in settings.checked_controllers():
        yield from _check_controller(endpoint, settings, credentials, user, now)


def _check_controller(
    endpoint: Endpoint, settings: DirectorySettings, credentials: Credentials, user: AccountName | None, now: datetime
) -> Iterator[Step]:
    where = str(endpoint)
    try:
        address = endpoint.address or socket.getaddrinfo(endpoint.name, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        yield _failed(where, "dns", DirectoryUnavailable("dns", "its name cannot be resolved"))
        return
    yield Step(where, "dns", True, f"{address}{' (from `addresses`)' if endpoint.address else ''}")
    try:
        socket.create_connection((str(address), endpoint.port), settings.connect_seconds).close()
    except OSError as error:
        yield _failed(where, "connect", DirectoryUnavailable("connect", error.strerror or "no connection in time"))
        return
    yield Step(where, "connect", True, f"port {endpoint.port} accepts")
    session = _open(endpoint, settings, credentials)
    if isinstance(session, DirectoryUnavailable):
        yield _failed(where, "tls", session)
        return
    try:
        yield Step(where, "tls", True, session.describe_tls())
        yield from _check_session(where, session, settings, user, now)
    finally:
        session.close()


def _open(endpoint: Endpoint, settings: DirectorySettings, credentials: Credentials) -> Session | DirectoryUnavailable:
    try:
        session = Session(endpoint, settings, credentials, 0, make_tickets(settings, credentials))
        session.connect()
    except DirectoryUnavailable as error:
        return error
    return session


def _check_session(
    where: str, session: Session, settings: DirectorySettings, user: AccountName | None, now: datetime
) -> Iterator[Step]:
    name: StepName = "ticket"
    try:
        if (ticket := session.obtain_ticket()) is not None:
            yield Step(where, "ticket", True, ticket)
        name = "bind"
        session.bind()
        yield Step(where, "bind", True, f"as {settings.bind_user}")
        name = "base"
        session.check_base()
        yield Step(where, "base", True, settings.base)
        if user is not None:
            name = "user"
            yield from _check_account(where, session, user, now)
    except DirectoryUnavailable as error:
        yield _failed(where, name, error)


def _check_account(where: str, session: Session, user: AccountName, now: datetime) -> Iterator[Step]:
    try:
        account = session.find(user)
    except AccountRefused as error:
        remedy = "name an account as user@domain, DOMAIN\\user, SID or GUID; is it under `base`?"
        yield Step(where, "user", False, error.detail, remedy)
        return
    yield Step(where, "user", True, f"{account.name}, {account.sid}", account=account)
    names = session.names_of(sorted(account.groups))
    yield Step(
        where,
        "groups",
        True,
        f"{len(account.groups)} in all, nested ones and the primary one included",
        account=account,
        group_names=tuple((sid, names.get(sid, "")) for sid in sorted(account.groups)),
    )
    problem = account.state.problem(now)
    if problem is None:
        yield Step(where, "state", True, "enabled", account=account)
    else:
        yield Step(where, "state", False, f"the account is {problem}", "change that in Active Directory", account)


def _failed(where: str, name: StepName, error: DirectoryUnavailable) -> Step:
    return Step(where, name, False, error.detail.removeprefix(f"{where}: "), _REMEDIES[error.check])
