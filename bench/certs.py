"""What host identity costs, at a gateway process with HTTPS, register and log on disk.

enrolments_per_s              a host without a certificate shows its token on a new TLS connection: it is judged and
                              spent, the certificate issued, register and log durable
enrolment_cpu_ms              the gateway's CPU time for one
renewals_per_s                a host that shows its certificate, on a connection that is open, as its relay keeps one
renewals_anew_per_s           the same on a new connection for each
register_enrolments_per_s     of that, what is the register's and the CA's own
register_renewals_per_s
control_handshake_cpu_ms      both ends in this process: TLS 1.3 with hybrid exchange, each judging the other
crl_10000_load_s              a CRL of 10,000 entries from its file into a ready server context
admission_p50_ms, _p95_ms     a permit, one asked for every tenth of a second, while nobody renews
admission_while_renewing_…    the same while 1,000 relays renew within an hour that passes 36 times as fast

A site of 1,000 relays whose certificates live 24 hours renews about one in a minute.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL

from bench.gateway_callers import Call, Where, call_all, call_on_open, callers
from bench.harness import BenchError, Plan, cpu_seconds
from bench.peers import free_port
from bench.permit_latency import DISK, TIMEOUT_SECONDS, SourceRelay, gateway, sign_in, trust, vm_uuid
from certs.authority import Authority
from certs.credentials import HostCredentials
from certs.enrolment import SECRET_BYTES, EnrolmentToken, make_request, public_key_sha256, requested_key
from certs.files import write_atomically, write_private_key
from certs.tls import accept_peer, client_context, server_context, step_handshake
from gateway.enrolment.one_thread import OneThread
from gateway.enrolment.register import Issued, Note, Register, Spend, Token, issued
from gateway.enrolment.writer import Writer
from gateway.starter import PEOPLE, HostPlan, PersonPlan, Site, VmPlan, lay_out_site, write_inventory

HOSTS = 400
QUICK_HOSTS = 40
AT_ONCE = 32
HANDSHAKES = 100
REVOKED = 10_000
RELAYS = 1_000
HOUR_SECONDS = 100.0
QUICK_RELAYS = 120  # of them, for as long as it takes at that rate
ADMISSION_SECONDS = 0.1  # between one and the next
OFFICER = "olga"


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
            "register_enrolments_per_s": statistics.median(first for first, _ in rates),
            "register_renewals_per_s": statistics.median(again for _, again in rates),
            "control_handshake_cpu_ms": statistics.median(_handshakes(*ends) for _ in range(rounds)),
        }
        authority.revoke_all([x509.random_serial_number() for _ in range(REVOKED)], now)
        figures["crl_10000_load_s"] = statistics.median(_load(folder, now) for _ in range(rounds))
    return {**_at_a_gateway(hosts, rounds, QUICK_RELAYS if plan.quick else RELAYS), **figures}


# --- At a gateway ---------------------------------------------------------------------------------------------------


def _at_a_gateway(hosts: int, rounds: int, relays: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DISK) as name, ExitStack() as stack:
        folder = Path(name)
        each_seconds = HOUR_SECONDS / RELAYS
        admissions = int(relays * each_seconds / ADMISSION_SECONDS)
        site = _site(folder, max(hosts * rounds, relays), 2 * admissions)
        pid, url = stack.enter_context(gateway(site, folder))
        address, _, port = url.removeprefix("https://").rpartition(":")
        where = Where(address, int(port), site.ca)
        pool = stack.enter_context(callers())
        names = [_host(number) for number in range(hosts * rounds)]
        enrolling = [_enrolment(token) for token in _tokens(site, url, names)]
        renewing = _renewals(site, [_host(number) for number in range(relays)], folder)

        def rate(callings: Sequence[Sequence[Call]]) -> float:
            return len(callings) / pool.submit(call_all, where, callings, AT_ONCE).result()

        parts = [slice(number * hosts, (number + 1) * hosts) for number in range(rounds)]
        cpu_before = cpu_seconds(pid)
        enrolments_per_s = statistics.median(rate(enrolling[part]) for part in parts)
        figures = {
            "enrolments_per_s": enrolments_per_s,
            "enrolment_cpu_ms": (cpu_seconds(pid) - cpu_before) / len(names) * 1000,
            "renewals_per_s": statistics.median(
                hosts / pool.submit(call_on_open, where, [calls[0] for calls in renewing[:hosts]], AT_ONCE).result()
                for _ in parts
            ),
            "renewals_anew_per_s": rate(renewing[hosts : 2 * hosts]),
        }
        asking = stack.enter_context(_admissions(site, url))
        quiet = asking(admissions)
        storm = pool.submit(call_all, where, renewing, AT_ONCE, each_seconds)
        busy = asking(admissions)
        storm.result()
    for what, took in (("admission", quiet), ("admission_while_renewing", busy)):
        figures[f"{what}_p50_ms"] = statistics.median(took)
        figures[f"{what}_p95_ms"] = statistics.quantiles(took, n=20)[-1]
    return figures


def _host(number: int) -> str:
    return f"host-{number}"


def _site(folder: Path, hosts: int, vms: int) -> Site:
    """An inventory of that many hosts; two have certificates and run, for the admissions."""
    plans = [HostPlan(_host(number), f"10.0.{number // 250}.{number % 250 + 1}:7443") for number in range(hosts)]
    moved = [VmPlan(f"vm-{number}", vm_uuid(number), "host-a") for number in range(vms)]
    running = [HostPlan(name, f"127.0.0.1:{free_port()}") for name in ("host-a", "host-b")]
    officer = PersonPlan(OFFICER, "Olga Officer", ("platform-team",))
    now = datetime.now(UTC)
    site = lay_out_site(folder / "site", hosts=running, vms=moved, people=[*PEOPLE, officer], now=now)
    write_inventory(site, [*running, *plans], moved)
    with site.gateway_config.open("a") as config:
        config.write('\n[enrolment]\nauthority = "certs"\n')
    return site


def _tokens(site: Site, url: str, names: Sequence[str]) -> list[str]:
    bearer = {"Authorization": f"Bearer {sign_in(site, url, OFFICER)}"}
    with httpx.Client(base_url=url, headers=bearer, verify=trust(site), timeout=TIMEOUT_SECONDS) as client:
        answers = [client.post("/v1/enrolment/tokens", json={"host": name}) for name in names]
    return [str(answer.raise_for_status().json()["token"]) for answer in answers]


def _enrolment(token: str) -> list[Call]:
    request = make_request(ec.generate_private_key(ec.SECP256R1())).decode()
    return [Call("/v1/enrolment", {"token": token, "request": request})]


def _renewals(site: Site, names: Sequence[str], folder: Path) -> list[list[Call]]:
    authority, now = Authority.load(site.certs), datetime.now(UTC)
    callings = []
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        chain = authority.issue_host(name, key.public_key(), now, timedelta(hours=24))
        files = folder / f"{name}.pem", folder / f"{name}.key"
        files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))  # no fsync of each
        files[0].write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in chain))
        callings.append([Call("/v1/relay/renewal", {"request": make_request(key).decode()}, files)])
    return callings


@contextmanager
def _admissions(site: Site, url: str) -> Iterator[Callable[[int], list[float]]]:
    """Asks for so many permits, each for another VM, and gives the milliseconds that each took."""
    with ExitStack() as stack:
        relay = SourceRelay(site, url, stack)
        bearer = {"Authorization": f"Bearer {sign_in(site, url)}"}
        client = stack.enter_context(httpx.Client(base_url=url, headers=bearer, verify=trust(site), timeout=60.0))
        vms = iter(range(1 << 20))

        def ask() -> float:
            wish = {"vm": f"vm-{next(vms)}", "destination": "host-b", "reason": "measured by the bench"}
            began = time.perf_counter()
            answer = client.post("/v1/migrations", json=wish)
            took = (time.perf_counter() - began) * 1000
            if answer.status_code != 201:
                raise BenchError(f"the gateway answered {answer.status_code}: {answer.text[:500]}")
            relay.take()
            return took

        def ask_all(count: int) -> list[float]:
            began, took = time.perf_counter(), []
            for number in range(count):
                time.sleep(max(0.0, began + number * ADMISSION_SECONDS - time.perf_counter()))
                took.append(ask())
            return took

        yield ask_all


# --- Alone ----------------------------------------------------------------------------------------------------------


def _enrolments(authority: Authority, path: Path, hosts: int, now: datetime) -> tuple[float, float]:
    """A rack that is switched on: `AT_ONCE` requests under way."""
    register = Register(path)
    seconds = int(now.timestamp())
    requests = [make_request(ec.generate_private_key(ec.SECP256R1())) for _ in range(hosts)]
    tokens = [EnrolmentToken(f"host-{n}", b"\0" * 32, n.to_bytes(SECRET_BYTES)) for n in range(hosts)]
    for token in tokens:
        register.add_token(token.sha256(), Token(token.host, seconds + 3_600, "bench", None), seconds)

    async def main() -> tuple[float, float]:
        thread = OneThread()
        writer = Writer(register, thread)

        async def enrol(n: int) -> None:
            sha256 = EnrolmentToken.parse(tokens[n].text()).sha256()
            known = await thread.do(register.token, sha256)
            key = requested_key(requests[n])
            assert known is not None
            certificate = _issue(authority, known.host, key, now)
            assert await writer.write(Spend(sha256, public_key_sha256(key), certificate, seconds))

        async def renew(n: int) -> None:
            await writer.write(Note(_issue(authority, tokens[n].host, requested_key(requests[n]), now), seconds))

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
    return issued(host, authority.issue_host(host, key, now)[0])


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
