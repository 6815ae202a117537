"""A backlog of a million entries at a real gateway: what its memory is while every receiver is down, and what people
who ask for a permit notice while it drains to a real rsyslog by RELP.

The log is made beforehand (`audit_log_maker.py`), the gateway is a process of its own, and another one before it has
looked at the log for the first time and made the index: that costs memory once, and has nothing to do with receivers.
Gateway and rsyslog share the machine.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

import httpx
import msgspec

from audit.siem.cursor import Cursor
from bench.audit_log import BIG
from bench.audit_log_maker import CHUNK, ORIGIN, bench_signer, make_log
from bench.harness import BenchError, Plan, forget_peak_rss, peak_rss_bytes, tell, wait_until
from bench.peers import free_port
from bench.permit_latency import DISK, TIMEOUT_SECONDS, SourceRelay, gateway, sign_in, site_with_vms, trust
from certs.files import write_private_key
from gateway.starter import Site
from tests.audit.siem.certificates import CLIENT_NAME, TestAuthority
from tests.audit.siem.rsyslog import SERVER_NAME, Rsyslog

ENTRIES = 1_000_000
QUICK_ENTRIES = 10 * CHUNK
REQUESTS = 200
QUICK_REQUESTS = 40
# Deadlines, for a machine that has much else to do.
DRAIN_SECONDS = 1800.0
START_SECONDS = 1800.0
INDEX_SECONDS = 1800.0
PAUSE_SECONDS = 0.1  # between two requests, in each phase: people do not ask without one, and the VMs must last


def measure(plan: Plan) -> dict[str, float]:
    """`siem_down_rss_mib` with eleven sinks down; permits without and with the drain; `siem_drain_per_s`.

    `siem_down_mapped_index_mib` of that memory are pages of the query index, which the kernel takes back when it needs
    them and which grow with the log: no delivery's.
    """
    entries, requests = (QUICK_ENTRIES, QUICK_REQUESTS) if plan.quick else (ENTRIES, REQUESTS)
    big = make_log(BIG / ("siem-quick" if plan.quick else "siem"), entries)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DISK) as name, ExitStack() as stack:
        folder = Path(name)
        site = site_with_vms(folder, 3 * requests + 5_000, log_origin=ORIGIN)
        _take_log(site, big)
        authority = TestAuthority(_made(folder / "receivers"))
        server = Rsyslog(authority.folder, authority)
        client = authority.issue(CLIENT_NAME)
        base = site.gateway_config.read_text()
        vms = (f"vm-{number}" for number in count())

        figures: dict[str, float] = {}
        with gateway(site, folder, START_SECONDS) as (_, url):
            _until_looked_at(site, entries)
            _until_indexed(site, url)
        site.gateway_config.write_text(base + _down(site))
        with gateway(site, folder, START_SECONDS) as (pid, url), ExitStack() as requests_end:
            figures["siem_down_entries"] = entries
            figures["siem_permit_down_p50_ms"], figures["siem_permit_down_p95_ms"] = _permits(
                # Hashing a password takes 32 MiB for a moment, and is no delivery.
                *(site, url, requests_end, vms, lambda asked: asked < requests, partial(forget_peak_rss, pid))
            )
            figures["siem_down_rss_mib"] = peak_rss_bytes(pid) / 2**20
            figures["siem_down_mapped_index_mib"] = _mapped_bytes(pid, "index.sqlite") / 2**20
        down, index = figures["siem_down_rss_mib"], figures["siem_down_mapped_index_mib"]
        tell(f"every sink down: {down:.0f} MiB, and afterwards {index:.0f} MiB of the query index are mapped")

        server.start()
        stack.callback(server.stop)
        site.gateway_config.write_text(base + _relp(server, authority, client.certificate, client.key))
        cursor = site.directory / "state" / "siem" / "rsyslog.cursor"
        with gateway(site, folder, START_SECONDS) as (pid, url), ExitStack() as requests_end:
            began = time.monotonic()

            def drains(_asked: int) -> bool:
                if time.monotonic() - began > DRAIN_SECONDS:
                    raise BenchError(f"rsyslog has not got {entries} entries within {DRAIN_SECONDS:.0f} s")
                return _position(cursor) < entries

            figures["siem_permit_draining_p50_ms"], figures["siem_permit_draining_p95_ms"] = _permits(
                site, url, requests_end, vms, drains
            )
            figures["siem_drain_per_s"] = entries / (time.monotonic() - began)
            figures["siem_draining_rss_mib"] = peak_rss_bytes(pid) / 2**20
            figures["siem_permit_drained_p50_ms"], figures["siem_permit_drained_p95_ms"] = _permits(
                site, url, requests_end, vms, lambda asked: asked < requests
            )
    return figures


def _take_log(site: Site, big: Path) -> None:
    """The made log becomes the site's, with the key that it was signed with."""
    shutil.copytree(big, site.log, ignore=shutil.ignore_patterns("*.lock"), dirs_exist_ok=True)
    keys = site.certs / "gateway"
    (keys / "log.key").unlink()
    write_private_key(keys / "log.key", bench_signer().private_key)
    (keys / "log.vkey").write_text(f"{bench_signer().vkey}\n")


def _permits(
    site: Site,
    url: str,
    stack: ExitStack,
    vms: Iterator[str],
    goes_on: Callable[[int], bool],
    signed_in: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Median and 95th percentile, milliseconds. `signed_in` is called once the person is."""
    relay = SourceRelay(site, url, stack)
    person = {"Authorization": f"Bearer {sign_in(site, url)}"}
    signed_in()
    took: list[float] = []
    with httpx.Client(verify=trust(site), timeout=TIMEOUT_SECONDS) as client:
        while goes_on(len(took)) or len(took) < QUICK_REQUESTS:
            body = {"vm": next(vms), "destination": "host-b", "reason": "measured by the bench"}
            started = time.perf_counter()
            answer = client.post(f"{url}/v1/migrations", json=body, headers=person)
            took.append((time.perf_counter() - started) * 1000)
            if answer.status_code != 201:
                raise BenchError(f"the gateway answered {answer.status_code}: {answer.text[:500]}")
            relay.take()
            time.sleep(PAUSE_SECONDS)
    return statistics.median(took), statistics.quantiles(took, n=20)[-1]


def _mapped_bytes(pid: int, name: str) -> int:
    """What of the files of that name is resident by being mapped."""
    found, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        if not line.partition(" ")[0].endswith(":"):  # the head of a mapping
            counts = line.endswith(f"/{name}")
        elif counts and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def _position(cursor: Path) -> int:
    try:
        return msgspec.json.decode(cursor.read_bytes(), type=Cursor).position
    except FileNotFoundError:
        return 0


def _until_looked_at(site: Site, entries: int) -> None:
    """The first look at all files of a log that is new to a gateway: once, and not what is measured here."""
    seen = site.directory / "state" / "log-seen"

    def is_done() -> bool:
        return seen.exists() and len(msgspec.json.decode(seen.read_bytes())["bundle_sizes"]) >= entries // 256 - 1

    wait_until(is_done, "the first look at all files", INDEX_SECONDS)


def _until_indexed(site: Site, url: str) -> None:
    """Until a question about all of the log is answered; the index is kept for the second gateway."""
    carol = {"Authorization": f"Bearer {sign_in(site, url, 'carol')}"}
    with httpx.Client(verify=trust(site), timeout=TIMEOUT_SECONDS) as client:
        wait_until(
            lambda: client.get(f"{url}/v1/records?limit=1", headers=carol).status_code == 200,
            "the index",
            INDEX_SECONDS,
        )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _table(kind: str, name: str, **values: object) -> str:
    lines = [
        f'kind = "{kind}"',
        f'name = "{name}"',
        *(f"{key} = {msgspec.json.encode(value).decode()}" for key, value in values.items()),
    ]
    return "\n[[siem.sinks]]\n" + "\n".join(lines) + "\n"


def _secret(site: Site, name: str, text: str) -> str:
    path = site.directory / name
    path.touch(mode=0o600)
    path.write_text(text)
    return name


def _down(site: Site) -> str:
    """Two of each network kind, of which nobody listens, and a file whose folder is not there."""
    key = _secret(site, "hook.key", "whsec_" + "A" * 43 + "=\n")
    token = _secret(site, "hec.token", "00000000-0000-4000-8000-000000000000\n")
    api = _secret(site, "elastic.key", "bm90OmFrZXk=\n")
    trusted = {"trust_bundle": "certs/ca.pem"}
    tables = [_table("file", "file", path=str(site.directory / "none" / "audit.jsonl"), format="ecs")]
    for number in range(2):
        port = free_port()
        url = f"https://127.0.0.1:{port}"
        tables += [
            _table("syslog", f"syslog-{number}", address=f"127.0.0.1:{port}", **trusted),
            _table("relp", f"relp-{number}", address=f"127.0.0.1:{port}", format="ocsf", **trusted),
            _table("splunk", f"splunk-{number}", url=url, token_file=token, **trusted),
            _table("webhook", f"webhook-{number}", url=url, key_file=key, **trusted),
            _table("elasticsearch", f"elastic-{number}", url=url, api_key_file=api, **trusted),
        ]
    return "".join(tables)


def _relp(server: Rsyslog, authority: TestAuthority, certificate: Path, key: Path) -> str:
    return _table(
        "relp",
        "rsyslog",
        address=f"127.0.0.1:{server.relp_port}",
        server_name=SERVER_NAME,
        trust_bundle=str(authority.bundle),
        certificate=str(certificate),
        private_key=str(key),
        max_message_bytes=65_536,
        batch_entries=1_000,
    )
