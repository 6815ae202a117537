"""What host identity costs: enrolments and renewals, a control handshake, a long CRL.

enrolments_per_s              token judged and spent, request judged, certificate issued, durable in the register
renewals_per_s                the same without a token
control_handshake_cpu_ms      both ends in this process: TLS 1.3 with hybrid exchange, each judging the other
crl_10000_load_s              a CRL of 10,000 entries from its file into a ready server context

Without HTTPS and the log's own commit, which is a group commit as well.

A site of 1,000 relays whose certificates live 24 hours renews about one in a minute.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from bench.harness import Plan
from certs.authority import Authority
from certs.credentials import HostCredentials
from certs.enrolment import SECRET_BYTES, EnrolmentToken, make_request, public_key_sha256, requested_key
from certs.files import write_atomically, write_private_key
from certs.tls import accept_peer, client_context, server_context, step_handshake
from gateway.enrolment.register import Issued, Note, Register, Spend, Token
from gateway.enrolment.writer import Writer

HOSTS = 400
QUICK_HOSTS = 40
AT_ONCE = 32
HANDSHAKES = 100
REVOKED = 10_000


def measure(plan: Plan) -> dict[str, float]:
    rounds = 1 if plan.quick else plan.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        now = datetime.now(UTC)
        authority = Authority.create(folder, "bench.example", now)
        hosts = QUICK_HOSTS if plan.quick else HOSTS
        rates = [_enrolments(authority, folder / f"hosts-{number}.sqlite", hosts, now) for number in range(rounds)]
        ends = [_credentials(authority, folder, end, now) for end in ("a", "b")]
        figures = {
            "enrolments_per_s": statistics.median(first for first, _ in rates),
            "renewals_per_s": statistics.median(again for _, again in rates),
            "control_handshake_cpu_ms": statistics.median(_handshakes(*ends) for _ in range(rounds)),
        }
        authority.revoke_all([x509.random_serial_number() for _ in range(REVOKED)], now)
        figures["crl_10000_load_s"] = statistics.median(_load(folder, now) for _ in range(rounds))
    return figures


def _enrolments(authority: Authority, path: Path, hosts: int, now: datetime) -> tuple[float, float]:
    """A rack that is switched on: `AT_ONCE` requests under way."""
    register = Register(path)
    seconds = int(now.timestamp())
    requests = [make_request(ec.generate_private_key(ec.SECP256R1())) for _ in range(hosts)]
    tokens = [EnrolmentToken(f"host-{n}", b"\0" * 32, n.to_bytes(SECRET_BYTES)) for n in range(hosts)]
    for token in tokens:
        register.add_token(token.sha256(), Token(token.host, seconds + 3_600, "bench", None), seconds)

    async def main() -> tuple[float, float]:
        thread = trio.CapacityLimiter(1)
        writer = Writer(register, thread)

        async def enrol(n: int) -> None:
            sha256 = EnrolmentToken.parse(tokens[n].text()).sha256()
            known = await trio.to_thread.run_sync(register.token, sha256, limiter=thread)
            key = requested_key(requests[n])
            assert known is not None
            issued = _issue(authority, known.host, key, now)
            assert await writer.write(Spend(sha256, public_key_sha256(key), issued, seconds))

        async def renew(n: int) -> None:
            await writer.write(Note(_issue(authority, tokens[n].host, requested_key(requests[n]), now)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            rates = await _rate(enrol, hosts), await _rate(renew, hosts)
            nursery.cancel_scope.cancel()
        return rates

    rates = trio.run(main)
    register.close()
    return rates


async def _rate(work: Callable[[int], Awaitable[None]], count: int) -> float:
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(worker)
    return count / (time.perf_counter() - began)


def _issue(authority: Authority, host: str, key: ec.EllipticCurvePublicKey, now: datetime) -> Issued:
    leaf = authority.issue_host(host, key, now)[0]
    return Issued(f"{leaf.serial_number:x}", host, int(leaf.not_valid_after_utc.timestamp()))


def _credentials(authority: Authority, folder: Path, name: str, now: datetime) -> HostCredentials:
    key = ec.generate_private_key(ec.SECP256R1())
    write_private_key(folder / f"{name}.key", key)
    chain = authority.issue_host(name, key.public_key(), now, timedelta(hours=24))
    write_atomically(folder / f"{name}.pem", b"".join(each.public_bytes(Encoding.PEM) for each in chain))
    return _loaded(folder, name)


def _loaded(folder: Path, name: str) -> HostCredentials:
    return HostCredentials.load(folder / f"{name}.pem", folder / f"{name}.key", folder / "ca.pem", [folder / "crl.pem"])


def _handshakes(client: HostCredentials, server: HostCredentials) -> float:
    """Milliseconds of CPU for both ends, contexts made once as relays do on the accepting side."""
    accepting = server_context(server)
    began = time.process_time()
    for _ in range(HANDSHAKES):
        ends = SSL.Connection(client_context(client)), SSL.Connection(accepting)
        ends[0].set_connect_state()
        ends[1].set_accept_state()
        done = [False, False]
        while not all(done):
            for this, other in ((0, 1), (1, 0)):
                done[this] = done[this] or step_handshake(ends[this])
                _carry(ends[this], ends[other])
        for end, credentials in zip(ends, (client, server), strict=True):
            accept_peer(end, credentials, datetime.now(UTC))
    return (time.process_time() - began) * 1000 / HANDSHAKES


def _carry(giver: SSL.Connection, taker: SSL.Connection) -> None:
    try:
        while data := giver.bio_read(65536):
            taker.bio_write(data)
    except SSL.WantReadError:
        pass


def _load(folder: Path, now: datetime) -> float:
    began = time.perf_counter()
    credentials = _loaded(folder, "a")
    credentials.require_usable(now)
    server_context(credentials)
    return time.perf_counter() - began
