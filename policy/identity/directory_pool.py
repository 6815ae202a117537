"""The site's domain controllers: connections that are kept, and which controller is asked when one fails. Blocking.

A connection belongs to one worker thread while it asks. One whose call failed or was abandoned is thrown away: an
answer that is still on its way must not be taken for the next question's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from policy.errors import AccountRefused, DirectoryCheck, DirectoryUnavailable
from policy.identity.directory_session import Session, make_tickets
from policy.identity.directory_settings import Credentials, DirectorySettings, Endpoint

MAX_SESSION_SECONDS: Final = 300.0  # so that a changed password, CA or DNS entry is noticed
# What says that the controller is ill, rather than the question: anything else must not take it from the others.
_ILL: Final[frozenset[DirectoryCheck]] = frozenset({"dns", "connect", "tls", "timeout", "kerberos", "bind"})

T = TypeVar("T")


@dataclass(slots=True)
class Call:
    """One look-up. `abandoned` is set when nobody waits for it any more; `controller` is the one that answered."""

    abandoned: bool = False
    controller: str = ""


@dataclass(slots=True)
class _Failure:
    until: float
    error: DirectoryUnavailable


class ControllerPool:
    """Thread-safe. `clock` is monotonic, in seconds."""

    def __init__(
        self, settings: DirectorySettings, credentials: Credentials, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises ValueError, naming the key of the settings. Connects nothing."""
        self._settings = settings
        self._credentials = credentials
        self._tickets = make_tickets(settings, credentials)
        self._clock = clock
        self._endpoints = settings.checked_controllers()
        self._lock = threading.Lock()
        self._idle: dict[Endpoint, list[Session]] = {endpoint: [] for endpoint in self._endpoints}
        self._failures: dict[Endpoint, _Failure] = {}
        self._closed = False

    def ask(self, operation: Callable[[Session], T], call: Call) -> T:
        """The answer of the first controller that gives one. Raises what `operation` does, DirectoryUnavailable.

        A controller that failed lately is left out for `retry_seconds`, also where there is no other: somebody who
        asks while all are down is denied at once, and does not keep a thread waiting.
        """
        errors: list[DirectoryUnavailable] = []
        for endpoint in self._endpoints:
            if call.abandoned:
                raise DirectoryUnavailable("timeout", "nobody waits for the answer any more")
            if (failure := self._failure_of(endpoint)) is not None:
                errors.append(failure.error)
                continue
            try:
                answer = self._ask_one(endpoint, operation, call)
            except DirectoryUnavailable as error:
                errors.append(error)
                self._note(endpoint, error)
            else:
                call.controller = str(endpoint)
                return answer
        raise DirectoryUnavailable(errors[-1].check, "; ".join(error.detail for error in errors))

    def use(self, credentials: Credentials) -> None:
        """Connections made with the former ones are closed, failures forgotten."""
        tickets = make_tickets(self._settings, credentials)
        with self._lock:
            self._credentials, self._tickets = credentials, tickets
            self._failures.clear()
        for endpoint in self._endpoints:
            self._drop(endpoint)

    def close(self) -> None:
        """Closes what is idle; what is in use is closed when its call ends."""
        with self._lock:
            self._closed = True
            sessions = [session for idle in self._idle.values() for session in idle]
            for idle in self._idle.values():
                idle.clear()
        for session in sessions:
            session.close()

    def _ask_one(self, endpoint: Endpoint, operation: Callable[[Session], T], call: Call) -> T:
        if (kept := self._take(endpoint)) is not None:
            try:
                return self._use(kept, operation, call)
            except DirectoryUnavailable as error:
                if error.check != "connect":
                    raise
                # The controller has closed it in the meantime (restarted, idle too long): that says nothing of now.
                self._drop(endpoint)
        with self._lock:
            credentials, tickets = self._credentials, self._tickets
        session = Session(endpoint, self._settings, credentials, self._clock(), tickets)
        session.open()
        return self._use(session, operation, call)

    def _use(self, session: Session, operation: Callable[[Session], T], call: Call) -> T:
        try:
            answer = operation(session)
        except AccountRefused:
            self._done_with(session, call)  # an answer like any other: made-up names must not cost a new bind each
            raise
        except BaseException:
            session.close()
            raise
        self._done_with(session, call)
        return answer

    def _done_with(self, session: Session, call: Call) -> None:
        if call.abandoned or not self._keep(session):
            session.close()

    def _take(self, endpoint: Endpoint) -> Session | None:
        with self._lock:
            idle = self._idle[endpoint]
            while idle:
                session = idle.pop()
                if self._clock() - session.opened < MAX_SESSION_SECONDS:
                    return session
                session.close()
        return None

    def _keep(self, session: Session) -> bool:
        with self._lock:
            idle = self._idle[session.endpoint]
            if self._closed or len(idle) >= self._settings.connections:
                return False
            idle.append(session)
            return True

    def _drop(self, endpoint: Endpoint) -> None:
        with self._lock:
            sessions = self._idle[endpoint][:]
            self._idle[endpoint].clear()
        for session in sessions:
            session.close()

    def _failure_of(self, endpoint: Endpoint) -> _Failure | None:
        with self._lock:
            failure = self._failures.get(endpoint)
            return failure if failure is not None and self._clock() < failure.until else None

    def _note(self, endpoint: Endpoint, error: DirectoryUnavailable) -> None:
        if error.check not in _ILL:
            return
        self._drop(endpoint)
        with self._lock:
            self._failures[endpoint] = _Failure(self._clock() + self._settings.retry_seconds, error)
