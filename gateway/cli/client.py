"""The client of the gateway's API: HTTPS with a verified certificate, bounded in time and size.

Every refusal becomes one of the three errors of `gateway.cli.errors`. No redirect is followed and no
proxy of the environment is used: the bearer token goes to the configured gateway and nowhere else.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from gateway.cli.credentials import read_secret
from gateway.cli.errors import DEVELOPERS, OPERATOR, REQUESTER, BadConfiguration, CommandError, Refused, Unreachable
from gateway.cli.replies import (
    CheckpointReply,
    DecisionReply,
    DrainReply,
    EnrolmentTokenReply,
    ErrorReply,
    GrantReply,
    GrantsReply,
    HistogramReply,
    HostsReply,
    IdentityReply,
    InventoryReply,
    MigrationReply,
    NamedReply,
    QuarantineReply,
    RecordedReply,
    RecordsReply,
    RolloverReply,
    RolloversReply,
    SiemJob,
    SinkReply,
    SinksReply,
    TokenReply,
    VmsReply,
    WhoamiReply,
)
from gateway.cli.settings import ClientSettings

CONNECT_TIMEOUT_SECONDS = 10
MAX_ANSWER_BYTES = 16 * 1024 * 1024  # a page of 200 records of 60 KiB each fits

Reply = TypeVar("Reply")


class GatewayClient:
    """One connection pool to one gateway; use it as a context manager."""

    def __init__(self, settings: ClientSettings, token: str | None = None) -> None:
        self._settings = settings
        headers = {"accept": "application/json"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        timeout = httpx.Timeout(settings.timeout_seconds, connect=CONNECT_TIMEOUT_SECONDS)
        self._all = [
            httpx.Client(
                base_url=url,
                verify=_tls_context(settings),
                headers=headers,
                timeout=timeout,
                trust_env=False,
                follow_redirects=False,
            )
            for url in (settings.gateway, *settings.others)
        ]
        self._current = 0

    def __enter__(self) -> GatewayClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._all:
            each.close()

    def identity(self) -> IdentityReply:
        """Where people sign in."""
        return _decode(self._ask("GET", "/v1/identity"), IdentityReply)

    def site(self) -> dict[str, Any]:
        """What other sites pin and trust of the gateway's."""
        return _decode(self._ask("GET", "/v1/site"), dict[str, Any])

    def whoami(self) -> WhoamiReply:
        """Who the token's holder is to the gateway."""
        return _decode(self._ask("GET", "/v1/whoami"), WhoamiReply)

    def login(self, username: str, password: str, *, sealed: bool = False) -> TokenReply:
        """A token of the gateway's local issuer, or of the issuer of its sealed people."""
        body: dict[str, Any] = {"username": username, "password": password}
        if sealed:
            body["sealed"] = True
        return _decode(self._ask("POST", "/v1/token", body=body), TokenReply)

    def request_migration(self, body: Mapping[str, Any]) -> DecisionReply:
        """Ask to move a VM. A denial is an answer, not an error: look at `.decision.allowed`."""
        return _decode(self._ask("POST", "/v1/migrations", body=body, denial_is_answer=True), DecisionReply)

    def check(self, body: Mapping[str, Any]) -> DecisionReply:
        """The decision alone: no permit, nothing moves, but the question is recorded."""
        return _decode(self._ask("POST", "/v1/decisions", body=body), DecisionReply)

    def check_drain(self, body: Mapping[str, Any]) -> DrainReply:
        """Which VMs of a host may go where; nothing moves."""
        return _decode(self._ask("POST", "/v1/drain/check", body=body), DrainReply)

    def migration(self, migration_id: str) -> MigrationReply:
        """State, progress and receipts."""
        return _decode(self._ask("GET", f"/v1/migrations/{quote(migration_id, safe='')}", stays=True), MigrationReply)

    def cancel(self, migration_id: str) -> None:
        """Ask the gateway to cancel; the outcome shows in `migration`."""
        self._ask("POST", f"/v1/migrations/{quote(migration_id, safe='')}/cancel", stays=True)

    def hosts(self, prefix: str, limit: int) -> HostsReply:
        """The hosts whose names begin so, and what their relays report."""
        return _decode(self._ask("GET", "/v1/hosts", parameters={"prefix": prefix, "limit": limit}), HostsReply)

    def vms(self, prefix: str, limit: int) -> VmsReply:
        """The VMs whose names begin so, and where each runs."""
        return _decode(self._ask("GET", "/v1/vms", parameters={"prefix": prefix, "limit": limit}), VmsReply)

    def inventory(self) -> InventoryReply:
        """The sources of the inventory and what is wrong in them."""
        return _decode(self._ask("GET", "/v1/inventory"), InventoryReply)

    def named(self, name: str) -> NamedReply:
        """What is known of a VM or host."""
        return _decode(self._ask("GET", "/v1/inventory/named", parameters={"name": name}), NamedReply)

    def enrolment_token(self, host: str, minutes: int | None) -> EnrolmentTokenReply:
        """Shown this once."""
        body: dict[str, Any] = {"host": host} if minutes is None else {"host": host, "minutes": minutes}
        return _decode(self._ask("POST", "/v1/enrolment/tokens", body=body), EnrolmentTokenReply)

    def revoke_host(self, host: str, reason: str) -> dict[str, Any]:
        """In force at the gateway once it returns."""
        path = f"/v1/hosts/{quote(host, safe='')}/revocation"
        return _decode(self._ask("POST", path, body={"reason": reason}), dict[str, Any])

    def rollovers(self) -> list[RolloverReply]:
        """Of each key that this gateway can roll over."""
        return _decode(self._ask("GET", "/v1/rollovers"), RolloversReply).rollovers

    def roll_over(self, what: str, step: str, reason: str, force: bool) -> RolloverReply:
        """In force at the gateway once it returns."""
        path = f"/v1/rollovers/{quote(what, safe='')}/{quote(step, safe='')}"
        return _decode(self._ask("POST", path, body={"reason": reason, "force": force}), RolloverReply)

    def ask_to_break_glass(self, body: Mapping[str, Any]) -> GrantReply:
        """Recorded, and waiting for a second person."""
        return _decode(self._ask("POST", "/v1/break-glass", body=body), GrantReply)

    def break_glass(self) -> tuple[GrantReply, ...]:
        """What one may see of it, newest first."""
        return _decode(self._ask("GET", "/v1/break-glass"), GrantsReply).break_glass

    def approve_break_glass(self, grant_id: str, reason: str | None) -> GrantReply:
        """The second person's yes; in force once this returns."""
        return self._step_of_break_glass(grant_id, "approve", reason)

    def end_break_glass(self, grant_id: str, reason: str | None) -> GrantReply:
        """End, refuse or take back."""
        return self._step_of_break_glass(grant_id, "end", reason)

    def _step_of_break_glass(self, grant_id: str, step: str, reason: str | None) -> GrantReply:
        body = {} if reason is None else {"reason": reason}
        path = f"/v1/break-glass/{quote(grant_id, safe='')}/{step}"
        return _decode(self._ask("POST", path, body=body), GrantReply)

    def records(self, parameters: Mapping[str, str | int]) -> RecordsReply:
        """One page of records."""
        return _decode(self._ask("GET", "/v1/records", parameters=parameters), RecordsReply)

    def histogram(self, parameters: Mapping[str, str | int]) -> HistogramReply:
        """How many records there are, by time and outcome."""
        return _decode(self._ask("GET", "/v1/records/histogram", parameters=parameters), HistogramReply)

    def sinks(self) -> SinksReply:
        """Every sink of the log."""
        return _decode(self._ask("GET", "/v1/siem"), SinksReply)

    def sink(self, name: str) -> SinkReply:
        """One sink, and what is under way there."""
        return _decode(self._ask("GET", f"/v1/siem/{quote(name, safe='')}"), SinkReply)

    def begin_siem(self, name: str, what: str, body: Mapping[str, Any]) -> SiemJob:
        """Begin `reconcile` or `resend`; its state shows in `sink`."""
        return _decode(self._ask("POST", f"/v1/siem/{quote(name, safe='')}/{what}", body=body), SiemJob)

    def record_file_findings(self, name: str, found: Mapping[str, Any]) -> int:
        """Put into the log what the receiver's files were found to hold; the record's index."""
        path = f"/v1/siem/{quote(name, safe='')}/file-findings"
        return _decode(self._ask("POST", path, body=found), RecordedReply).index

    def quarantine(self, name: str, after: int) -> QuarantineReply:
        """What the sink's receiver refuses for ever."""
        path = f"/v1/siem/{quote(name, safe='')}/quarantine"
        return _decode(self._ask("GET", path, parameters={"after": after}), QuarantineReply)

    def record(self, index: int) -> dict[str, Any]:
        """The answer about one record, whole."""
        return _decode(self._ask("GET", f"/v1/records/{index}"), dict[str, Any])

    def begin_pruning(self, *, check: bool) -> dict[str, Any]:
        """Have the gateway prune its log, or say what it would; it goes on in the background."""
        return _decode(self._ask("POST", "/v1/log/prune", body={"check": check}), dict[str, Any])

    def pruning(self) -> dict[str, Any]:
        """What the latest pruning did, so far."""
        return _decode(self._ask("GET", "/v1/log/prune"), dict[str, Any])

    def reconcile_hosts(self, since: str) -> dict[str, Any]:
        """What the receipts of both hosts say of each migration since then; the gateway records it."""
        return _decode(self._ask("POST", "/v1/reconcile/hosts", body={"since": since}), dict[str, Any])

    def reconcile_sites(self, site: str, since: str) -> dict[str, Any]:
        """What this gateway's log and another site's say of the migrations between both; recorded."""
        return _decode(self._ask("POST", "/v1/reconcile/sites", body={"site": site, "since": since}), dict[str, Any])

    def prepare_evacuation(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Decided, logged, and held by the host's relay once it returns."""
        return _decode(self._ask("POST", "/v1/evacuations", body=body), dict[str, Any])

    def withdraw_evacuation(self, evacuation_id: str, host: str) -> dict[str, Any]:
        """Recorded, and on its way to the host."""
        path = f"/v1/evacuations/{quote(evacuation_id, safe='')}/withdraw"
        return _decode(self._ask("POST", path, body={"host": host}), dict[str, Any])

    def policy(self) -> dict[str, Any]:
        """The policy in force, earlier versions, and the candidate that is tried."""
        return _decode(self._ask("GET", "/v1/policy"), dict[str, Any])

    def policy_version(self, version: int) -> bytes:
        """A publication that was in force."""
        return self._ask("GET", f"/v1/policy/versions/{version}")

    def publish_policy(self, publication: bytes) -> dict[str, Any]:
        """In force once this returns."""
        return _decode(self._ask("POST", "/v1/policy/publications", content=publication), dict[str, Any])

    def begin_policy_shadow(self, publication: bytes) -> dict[str, Any]:
        """Tried from now on."""
        return _decode(self._ask("POST", "/v1/policy/shadow", content=publication), dict[str, Any])

    def end_policy_shadow(self) -> dict[str, Any]:
        """What was counted."""
        return _decode(self._ask("DELETE", "/v1/policy/shadow"), dict[str, Any])

    def checkpoint(self) -> str:
        """The signed note of the log: the published one, with cosignatures, where there is one."""
        return self._ask("GET", "/v1/log/checkpoint").decode()

    def tile(self, path: str) -> bytes:
        """A tile or entry bundle of the log, by its C2SP path without `tile/`."""
        return self._ask("GET", f"/v1/log/tile/{path}")

    def log_size(self) -> int:
        """How many entries the log has, by its newest checkpoint (a signed note: origin, size, root)."""
        note = _decode(self._ask("GET", "/v1/checkpoint"), CheckpointReply).checkpoint
        lines = note.split("\n", 3)
        if len(lines) < 3 or not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]):
            raise self._no_sense("its checkpoint is none")
        return int(lines[1])

    def _ask(  # noqa: PLR0913 - what a request says
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        parameters: Mapping[str, str | int] | None = None,
        denial_is_answer: bool = False,
        stays: bool = False,
    ) -> bytes:
        """The body of a 2xx answer (or of a 403 that carries a decision).

        While a gateway is away the next one is asked, and keeps being asked; not with `stays`: about what only that
        gateway knows.
        """
        if body is not None:
            content = msgspec.json.encode(body)
        headers = {} if content is None else {"content-type": "application/json"}
        for _ in self._all if not stays else self._all[:1]:
            try:
                with self._all[self._current].stream(
                    method, path, content=content, headers=headers, params=parameters
                ) as answer:
                    data = self._read(answer)
                break
            except httpx.TransportError as error:
                unreachable = self._unreachable(error)
                if stays or not _may_ask_again(method, path, error):
                    raise unreachable from error
                self._current = (self._current + 1) % len(self._all)
            except httpx.HTTPError as error:
                raise self._no_sense(str(error)) from error
        else:
            raise unreachable
        if answer.is_success:
            return data
        if denial_is_answer and answer.status_code == 403 and _carries_decision(data):
            return data
        raise _refusal(answer.status_code, data, self._url)

    @property
    def _url(self) -> str:
        return (self._settings.gateway, *self._settings.others)[self._current]

    def _read(self, answer: httpx.Response) -> bytes:
        # A server that trickles a byte at a time must not hold the command: the whole answer has a deadline.
        deadline = time.monotonic() + self._settings.timeout_seconds
        data = bytearray()
        for part in answer.iter_bytes():
            data += part
            if len(data) > MAX_ANSWER_BYTES:
                raise self._no_sense("the answer is larger than 16 MiB")
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("the answer took too long")
        return bytes(data)

    def _unreachable(self, error: httpx.TransportError) -> CommandError:
        gateway = self._url
        untrusted = _certificate_error(error)
        if untrusted is not None:
            return Unreachable(
                f"the certificate of {gateway} is not trusted: {untrusted.verify_message}",
                OPERATOR,
                "check the URL and --ca; if both are right, somebody else is answering",
                "certificate_not_trusted",
            )
        reason = str(error) or type(error).__name__
        return Unreachable(
            f"the gateway {gateway} did not answer: {reason}", OPERATOR, "check the URL and that the gateway runs"
        )

    def _no_sense(self, reason: str) -> Unreachable:
        return _no_sense(self._url, reason)


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


def _decode(data: bytes, shape: type[Reply]) -> Reply:
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _no_sense("the gateway", str(error)) from error


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
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
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
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _without_words(status, kind, gateway)
    error = reply.error
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
    if 300 <= status < 400 or status == 404:
        return _no_sense(gateway, f"status {status}")
    who = DEVELOPERS if status == 500 else OPERATOR
    return kind(f"{gateway} answered with status {status} and no reason", who, "look at the gateway's log")
