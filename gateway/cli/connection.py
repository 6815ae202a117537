"""One connection to one of the gateways: HTTPS with a verified certificate, bounded in time and size.

Every refusal becomes one of the three errors of `gateway.cli.errors`. No redirect is followed and no
proxy of the environment is used: the bearer token goes to the configured gateways and nowhere else.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgspec

from gateway.cli.credentials import newer_token, read_secret
from gateway.cli.errors import DEVELOPERS, OPERATOR, REQUESTER, BadConfiguration, CommandError, Refused, Unreachable
from gateway.cli.interruption import note_change_asked
from gateway.cli.replies import DecisionReply, ErrorReply
from gateway.cli.settings import ClientSettings
from gateway.cli.waiting import waiting_for
from gateway.deadline import Deadline
from gateway.network_words import words_of_failure
from transport.errors import UNDECODABLE

CONNECT_TIMEOUT_SECONDS = 10
ITS_OWN = "its own"  # log and deliveries: each gateway has others
_CHANGES_NOTHING = frozenset({"/v1/decisions", "/v1/drain/check", "/v1/token"})
MAX_ANSWER_BYTES = 16 * 1024 * 1024  # a page of 200 records of 60 KiB each fits

Reply = TypeVar("Reply")


class Connection:
    """A connection pool to each gateway; use it as a context manager."""

    def __init__(self, settings: ClientSettings, token: str | None = None) -> None:
        self._settings = settings
        self._token = token
        self._refused: CommandError | None = None  # what was said of this token: it is not shown again and again
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        timeout = httpx.Timeout(settings.timeout_seconds, connect=CONNECT_TIMEOUT_SECONDS)
        context = _tls_context(settings)
        self._deadline = Deadline(context)
        self._all = [
            httpx.Client(
                base_url=url,
                verify=context,
                headers=headers,
                timeout=timeout,
                trust_env=False,
                follow_redirects=False,
            )
            for url in (settings.gateway, *settings.others)
        ]
        self._current = self._asked = 0
        self._known_by: dict[str, int] = {}  # which gateway alone can answer, by what is asked about

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._all:
            each.close()

    def ask(  # noqa: PLR0913 - what a request says
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        parameters: Mapping[str, str | int] | None = None,
        denial_is_answer: bool = False,
        about: str | None = None,
    ) -> bytes:
        """The body of a 2xx answer (or of a 403 that carries a decision).

        Where the token is not taken any more, and the same person has signed in meanwhile, it is asked once more. While
        a gateway is away the next one is asked, and keeps being asked. `about`: what only one gateway knows (the id of
        a migration, or ITS_OWN): whichever answered first is asked on.
        """
        if body is not None:
            content = msgspec.json.encode(body)
        if self._refused is not None and not self._takes_newer_token():
            raise self._refused
        status, data = self._answer(method, path, content, parameters, about)
        if status == 401 and self._takes_newer_token():  # what is refused so was not begun
            status, data = self._answer(method, path, content, parameters, about)
        if 200 <= status < 300:
            return data
        if denial_is_answer and status == 403 and _carries_decision(data):
            return data
        refusal = _refusal(status, data, self.url)
        if status == 401:
            self._refused = refusal
        raise refusal

    def _takes_newer_token(self) -> bool:
        if self._token is None or (found := newer_token(self._settings, int(time.time()), self._token)) is None:
            return False
        self._token, self._refused = found, None
        for each in self._all:
            each.headers["authorization"] = f"Bearer {found}"
        return True

    def _answer(
        self,
        method: str,
        path: str,
        content: bytes | None,
        parameters: Mapping[str, str | int] | None,
        about: str | None,
    ) -> tuple[int, bytes]:
        """Status and body, of whichever gateway answers."""
        headers = {} if content is None else {"content-type": "application/json"}
        if method != "GET" and path not in _CHANGES_NOTHING:
            note_change_asked("the gateway")
        at_most = CONNECT_TIMEOUT_SECONDS + self._settings.timeout_seconds
        only = None if about is None else self._known_by.get(about)
        for _ in self._all if only is None else self._all[:1]:
            self._asked = self._current if only is None else only
            try:
                with (
                    waiting_for(self.url, at_most),
                    self._deadline.within(at_most),
                    self._all[self._asked].stream(
                        method, path, content=content, headers=headers, params=parameters
                    ) as answer,
                ):
                    data = self._read(answer)
                break
            except httpx.TransportError as error:
                unreachable = self._unreachable(error)
                if only is not None or not _may_ask_again(method, path, error):
                    raise unreachable from error
                self._current = (self._current + 1) % len(self._all)
            except httpx.HTTPError as error:
                raise self.no_sense(str(error)) from error
        else:
            raise unreachable
        if about is not None:
            self._known_by[about] = self._asked
        return answer.status_code, data

    @property
    def url(self) -> str:
        """Of the gateway that is asked now, or was last."""
        return (self._settings.gateway, *self._settings.others)[self._asked]

    def _read(self, answer: httpx.Response) -> bytes:
        data = bytearray()
        for part in answer.iter_raw():  # as it came: a small answer must not unpack into one without a bound
            data += part
            if len(data) > MAX_ANSWER_BYTES:
                raise self.no_sense("the answer is larger than 16 MiB")
        return bytes(data)

    def _unreachable(self, error: httpx.TransportError) -> CommandError:
        gateway = self.url
        untrusted = _certificate_error(error)
        if untrusted is not None:
            return Unreachable(
                f"the certificate of {gateway} is not trusted: {untrusted.verify_message}",
                OPERATOR,
                "check the URL and --ca; if both are right, somebody else is answering",
                "certificate_not_trusted",
            )
        return Unreachable(
            f"the gateway {gateway} did not answer: {self._why(error)}",
            OPERATOR,
            "check the URL and that the gateway runs",
        )

    def _why(self, error: httpx.TransportError) -> str:
        match error:
            case httpx.ConnectTimeout():
                return f"no connection, or no TLS handshake, within {CONNECT_TIMEOUT_SECONDS} s"
            case httpx.TimeoutException():
                return f"no whole answer within {self._settings.timeout_seconds} s"
        return words_of_failure(error)

    def no_sense(self, reason: str) -> Unreachable:
        return _no_sense(self.url, reason)


def _may_ask_again(method: str, path: str, error: httpx.TransportError) -> bool:
    """Whether the same request may go to another gateway. What never left may; so may what changes nothing twice.

    A VM for which both gateways gave a permit moves by one of them: its relay and the destination's take no second.
    """
    never_left = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    return never_left or method == "GET" or path in {"/v1/migrations", "/v1/decisions", "/v1/drain/check"}


def _tls_context(settings: ClientSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if settings.ca is None else str(settings.ca))
    except OSError as error:  # ssl.SSLError is one: a file that holds no certificate
        raise BadConfiguration(
            f"the CA file {settings.ca} cannot be used: {error.strerror or error}",
            REQUESTER,
            "name the PEM file of the gateway's CA with --ca",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if settings.certificate is not None and settings.private_key is not None:
        _load_own(context, settings.certificate, settings.private_key)
    return context


def _load_own(context: ssl.SSLContext, certificate: Path, private_key: Path) -> None:
    """The program's own certificate; a key file that others can read is refused."""
    read_secret(private_key, "private key")
    try:
        context.load_cert_chain(certificate, private_key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError: not PEM, or not a pair
        raise BadConfiguration(
            f"{certificate} and {private_key} cannot be used: {error}",
            REQUESTER,
            "name certificate and key of one pair in client.toml",
        ) from error


def _certificate_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _no_sense(gateway: str, reason: str) -> Unreachable:
    return Unreachable(
        f"{gateway} gave an answer that is not a gateway's: {reason}",
        OPERATOR,
        "check the URL and that gateway and command are of the same version",
        "unexpected_answer",
    )


def _carries_decision(data: bytes) -> bool:
    try:
        msgspec.json.decode(data, type=DecisionReply)
    except UNDECODABLE:
        return False
    return True


def _refusal(status: int, data: bytes, gateway: str) -> CommandError:
    """The API's error object in one of our kinds; without one, the words for its status."""
    kind: type[CommandError] = Refused
    if status in {400, 413, 415, 422}:
        kind = BadConfiguration
    elif status in {502, 503, 504}:
        kind = Unreachable
    try:
        reply = msgspec.json.decode(data, type=ErrorReply)
    except UNDECODABLE:
        return _without_words(status, kind, gateway)
    error = reply.error
    if error.code == "not_set_up":
        kind = BadConfiguration
    recorded = "" if reply.record_index is None else f" (record {reply.record_index})"
    return kind(
        (error.message or f"the gateway answered {status}") + recorded,
        error.who_must_act or OPERATOR,
        error.next_step or "ask the operator of the gateway",
        error.code,
    )


def _without_words(status: int, kind: type[CommandError], gateway: str) -> CommandError:
    if status == 401:
        return Refused("the gateway does not accept the token", REQUESTER, "run `sealane login`", "not_authenticated")
    if status in {414, 431}:
        return BadConfiguration("the request is longer than the gateway takes", REQUESTER, "ask for less at once")
    if 300 <= status < 400 or status == 404:
        return _no_sense(gateway, f"status {status}")
    who = DEVELOPERS if status == 500 else OPERATOR
    return kind(f"{gateway} answered with status {status} and no reason", who, "look at the gateway's log")


def decode(data: bytes, shape: type[Reply]) -> Reply:
    try:
        return msgspec.json.decode(data, type=shape)
    except UNDECODABLE as error:
        raise _no_sense("the gateway", str(error)) from error
