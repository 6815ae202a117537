"""Groups and state of people from Active Directory: the trio shell around a pool of ldap3 connections.

Groups are cached for at most 60 seconds; the state of the account is read at each decision. What cannot be had within
the deadline raises: unknown groups are never empty ones, and an old answer is never used in place of a new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import trio

from policy.errors import AccountCheck, AccountRefused, DirectoryUnavailable, PolicyError
from policy.facts import DirectoryFacts, Person
from policy.identity.directory_account import Account, AccountAttribute, AccountName, from_claim
from policy.identity.directory_cache import DirectoryCache
from policy.identity.directory_pool import Call, ControllerPool
from policy.identity.directory_session import Session
from policy.identity.directory_settings import Credentials, DirectorySettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the directory told for one decision. `problem`: why the account may do nothing; None if it may.

    `groups_age_seconds`: how long ago the look-up of the groups began; the state was read for this decision.
    """

    account: Account
    controller: str
    groups_age_seconds: float
    problem: AccountCheck | None


class ActiveDirectory:
    """Share one among all tasks; no task of its own. `clock` is monotonic, in seconds."""

    def __init__(
        self, settings: DirectorySettings, credentials: Credentials, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises ValueError, naming the key of the settings. Connects nothing."""
        self.settings = settings
        self._clock = clock
        self._pool = ControllerPool(settings, credentials, clock)
        self._cache = DirectoryCache(clock)
        # Of its own: a directory that hangs must not keep threads from the log, or from password checks.
        self._limiter = trio.CapacityLimiter(settings.connections)

    async def look_up(self, name: AccountName, now: datetime, *, fresh: bool = False) -> Snapshot:
        """The account with its state and groups; `fresh` reads the groups anew, for privileged actions.

        Raises AccountRefused (unknown, ambiguous), DirectoryUnavailable; both within `deadline_seconds`.
        Cancelling leaves a thread behind that ends by its own time-outs and throws its connection away.
        """
        try:
            with trio.fail_after(self.settings.deadline_seconds):
                return await self._look_up(name, now, fresh)
        except trio.TooSlowError as error:
            detail = f"no answer within {self.settings.deadline_seconds} s"
            raise DirectoryUnavailable("timeout", detail) from error

    def use(self, credentials: Credentials) -> None:
        """From now on bind with these: the operator has changed the password or the trust bundle."""
        self._pool.use(credentials)

    def close(self) -> None:
        """Close the connections that are kept."""
        self._pool.close()

    async def _look_up(self, name: AccountName, now: datetime, fresh: bool) -> Snapshot:
        arrived = self._clock()
        not_before = arrived if fresh else arrived - self.settings.cache_seconds
        name.filter()  # refuses what no account can be called, before it costs a thread
        cached = await self._cache.get(name, not_before, partial(self._ask, lambda session: session.find(name)))
        account, controller = cached.account, cached.controller
        if cached.read_at < arrived:
            # A bound connection, and a cached answer, would go on working after the account was disabled.
            try:
                state, controller = await self._ask(lambda session: session.state_of(account.guid))
            except AccountRefused:
                self._cache.forget(name)
                raise
            account = replace(account, state=state)
        return Snapshot(account, controller, self._clock() - cached.read_at, account.state.problem(now))

    async def _ask(self, operation: Callable[[Session], T]) -> tuple[T, str]:
        call = Call()
        try:
            answer = await trio.to_thread.run_sync(
                self._pool.ask, operation, call, limiter=self._limiter, abandon_on_cancel=True
            )
        except trio.Cancelled:
            call.abandoned = True
            raise
        return answer, call.controller


async def resolve(
    directory: ActiveDirectory,
    person: Person,
    attribute: AccountAttribute,
    now: datetime,
    *,
    fresh: bool = False,
    report: Callable[[DirectoryUnavailable], None] | None = None,
) -> Person:
    """The person with the groups that the directory tells of `person.account`, whatever their token said.

    Never raises for what is wrong with account or directory: then the groups are unknown, which denies, and
    `directory.problem` says why. `report` is told what the operator must correct.
    """
    try:
        if person.account is None:
            raise AccountRefused("unknown", "the token does not say which account it is for: correct `account_claim`")
        name = from_claim(attribute, person.account, directory.settings.domain)
        found = await directory.look_up(name, now, fresh=fresh)
    except (AccountRefused, DirectoryUnavailable) as error:
        if report is not None and isinstance(error, DirectoryUnavailable):
            report(error)
        return replace(person, groups=None, directory=DirectoryFacts(problem=explain(error)))
    account = found.account
    facts = DirectoryFacts(
        problem=None if found.problem is None else f"the account is {found.problem} in Active Directory",
        controller=found.controller,
        account=account.name,
        account_sid=account.sid,
        account_guid=account.guid,
        groups=tuple(sorted(account.groups)),
        groups_age_ms=int(found.groups_age_seconds * 1000),
        read_at=now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    )
    return replace(person, groups=account.groups if found.problem is None else None, directory=facts)


def explain(error: PolicyError) -> str:
    """For the record and the requester: which step failed. Details of the network are for the operator's log only."""
    match error:
        case AccountRefused():
            return f"the account is {error.check} in Active Directory"
        case DirectoryUnavailable():
            return f"Active Directory is unavailable ({error.check})"
        case _:
            return "Active Directory gave no answer"
