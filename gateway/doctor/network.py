"""What is reached from here, and whether clocks agree: a permit lives for a minute."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import httpx

from gateway.deadline import Deadline
from gateway.doctor.finding import Finding
from gateway.network_words import words_of_failure

SECONDS: Final = 3.0
SKEW_WRONG_SECONDS: Final = 30  # what permits allow
SKEW_ATTENTION_SECONDS: Final = 5
MAX_PEERS: Final = 32


def gateway_findings(url: str, trust_bundle: Path, client: tuple[Path, Path] | None = None) -> Iterator[Finding]:
    """The gateway answers under a trusted certificate, and its clock agrees with ours. `client`: ours, and its key."""
    try:
        context = _context(trust_bundle, client)
    except OSError as error:
        message = f"{', '.join(map(str, (trust_bundle, *(client or ()))))} cannot be used: {error}"
        yield Finding("gateway", "wrong", message, "mend them: sealane certs check shows which")
        return
    try:
        answer = _health(url, context)
    except (OSError, httpx.HTTPError) as error:
        if client is not None and (date := _date_for_anyone(url, trust_bundle)) is not None:
            which = f"{url} answers, but not to this host's certificate ({words_of_failure(error)})"
            message = f"{which}: it is revoked, expired, or of another CA"
            yield Finding("gateway", "wrong", message, "look at the clock; then enrol again: sealane certs token HOST")
            yield clock_finding(date, datetime.now(UTC))
            return
        remedy = "see that it runs; compare gateway.url, gateway.trust_bundle and this machine's clock"
        yield Finding("gateway", "wrong", f"{url} does not answer: {words_of_failure(error)}", remedy)
        return
    is_well = answer.status_code == 200
    yield Finding(
        "gateway",
        "ok" if is_well else "wrong",
        f"{url} answers" if is_well else f"{url} answers {answer.status_code}: it permits nothing now",
        "" if is_well else "look at the gateway: sealane doctor on its host",
    )
    yield clock_finding(answer.headers.get("date", ""), datetime.now(UTC))  # as it answers: to look takes seconds


def _context(trust_bundle: Path, client: tuple[Path, Path] | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(trust_bundle))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if client is not None:
        context.load_cert_chain(*client)
    return context


def _health(url: str, context: ssl.SSLContext) -> httpx.Response:
    """The head of the answer: a body could have no end."""
    with (
        httpx.Client(verify=context, timeout=SECONDS, trust_env=False) as http,
        Deadline(context).within(2 * SECONDS),
        http.stream("GET", f"{url}/v1/health") as answer,
    ):
        return answer


def _date_for_anyone(url: str, trust_bundle: Path) -> str | None:
    """What the gateway says of its clock to whoever shows no certificate; None if it does not answer that either."""
    try:
        return str(_health(url, _context(trust_bundle, None)).headers.get("date", ""))
    except (OSError, httpx.HTTPError):
        return None


def clock_finding(date: str, now: datetime) -> Finding:
    """From the answer's Date, which has a resolution of a second."""
    try:
        skew = abs((parsedate_to_datetime(date) - now).total_seconds())
    except (TypeError, ValueError):
        return Finding("clock", "unknown", "the gateway does not tell its time")
    message = f"this clock and the gateway's differ by {skew:.0f} s"
    if skew > SKEW_WRONG_SECONDS:
        return Finding(
            "clock", "wrong", f"{message}; permits are refused beyond {SKEW_WRONG_SECONDS} s", "run NTP on both"
        )
    if skew > SKEW_ATTENTION_SECONDS:
        return Finding("clock", "attention", message, "run NTP on both")
    return Finding("clock", "ok", message)


def peer_findings(peers: Sequence[tuple[str, str, int]]) -> Iterator[Finding]:
    """Other relays: (name, address, port). A TCP connection, nothing more."""
    for name, address, port in peers[:MAX_PEERS]:
        try:
            with socket.create_connection((address, port), timeout=SECONDS):
                pass
        except OSError as error:
            where = f"{name} at {address} port {port}"
            yield Finding(
                "peer",
                "attention",
                f"{where}: {error.strerror or error}",
                "start that relay, or open this port between the hosts",
            )
        else:
            yield Finding("peer", "ok", f"{name} at {address} port {port} is reached")
    if len(peers) > MAX_PEERS:
        yield Finding("peer", "unknown", f"{len(peers) - MAX_PEERS} further hosts were not tried")


def _is_here(host: str) -> bool:
    """Whether a service could listen on one of the addresses of `host`; not known is yes."""
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return True  # listening fails by the same words, and so does the connection below
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as tried:
                tried.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                continue
        return True
    return False


def listen_finding(host: str, port: int) -> Finding:
    """Something listens on the service's own port of this machine; what, is not known here."""
    if not _is_here(host):
        # It would answer, too: the file was copied from that machine, and its service runs.
        return Finding(
            "listen", "wrong", f"{host} is no address of this machine", "set `listen` to one that it has: ip address"
        )
    address = "127.0.0.1" if host in {"0.0.0.0", ""} else "::1" if host == "::" else host  # noqa: S104 - compared
    try:
        with socket.create_connection((address, port), timeout=SECONDS):
            pass
    except OSError as error:
        return Finding(
            "listen", "attention", f"nothing listens on {host}:{port} ({error.strerror or error})", "start the service"
        )
    return Finding("listen", "ok", f"{host}:{port} is listened on")
