"""How long a person waits for a permit: an HTTPS request to a real gateway process, up to its answer.

In that time the gateway verifies the token, evaluates the example bundle, appends the signed decision and the permit
entry, makes both durable (fdatasync) under a signed checkpoint, proves the entry's inclusion, signs the permit and
queues it for the source relay. Each request is for a VM of its own; here the bench stands in for the source relay.
"""

from __future__ import annotations

import os
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec

from audit.checkpoint import LogVerifier, open_checkpoint
from audit.proof import leaf_hash, verify_inclusion
from bench.harness import BenchError, Plan, cpu_seconds, wait_until
from bench.peers import free_port, running
from gateway.starter import HostPlan, Site, VmPlan, lay_out_site
from policy.permit import PermitKey, proof_entry, verify_permit

REQUESTS_PER_ROUND = 60
QUICK_REQUESTS = 20
WARM_UP_REQUESTS = 5
TIMEOUT_SECONDS = 60.0
DISK = "/var/tmp"  # noqa: S108 - a folder of our own is made in it; /tmp may be in memory, where durable means nothing


def measure(plan: Plan) -> dict[str, float]:
    """Figures for a person of the local directory in milliseconds, with the gateway's CPU time and a bare fdatasync."""
    requests = QUICK_REQUESTS if plan.quick else REQUESTS_PER_ROUND * plan.rounds
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DISK) as name:
        folder = Path(name)
        site = site_with_vms(folder, 2 * requests + WARM_UP_REQUESTS)
        vms = map(_vm_name, count())
        with gateway(site, folder) as (pid, url), ExitStack() as stack:
            relay = SourceRelay(site, url, stack)
            person = {"Authorization": f"Bearer {sign_in(site, url)}"}

            def ask(client: httpx.Client) -> float:
                """One request of a person, timed; then what the relay does with its permit, not timed."""
                body = {"vm": next(vms), "destination": "host-b", "reason": "measured by the bench"}
                started = time.perf_counter()
                answer = client.post(f"{url}/v1/migrations", json=body, headers=person)
                ended = time.perf_counter()
                if answer.status_code != 201:
                    raise BenchError(f"the gateway answered {answer.status_code}: {answer.text[:500]}")
                relay.take()
                return (ended - started) * 1000

            def ask_anew() -> float:
                with httpx.Client(verify=trust(site), timeout=TIMEOUT_SECONDS) as client:
                    return ask(client)

            with httpx.Client(verify=trust(site), timeout=TIMEOUT_SECONDS) as client:
                for _ in range(WARM_UP_REQUESTS):
                    ask(client)
                cpu_before = cpu_seconds(pid)
                kept = [ask(client) for _ in range(requests)]
                cpu = cpu_seconds(pid) - cpu_before
            anew = [ask_anew() for _ in range(requests)]
            _check(site, relay.permit)
        disk = [_append_durably(folder / "fdatasync") for _ in range(requests)]
    return {
        "permit_local_p50_ms": statistics.median(kept),
        "permit_local_p95_ms": statistics.quantiles(kept, n=20)[-1],
        "permit_new_connection_p50_ms": statistics.median(anew),
        "permit_cycle_cpu_ms": cpu / requests * 1000,  # of the gateway: request, the relay's poll and its report
        "fdatasync_p50_ms": statistics.median(disk),
    }


def _append_durably(path: Path) -> float:
    with path.open("ab", buffering=0) as file:
        started = time.perf_counter()
        file.write(bytes(2048))
        os.fdatasync(file.fileno())
        return (time.perf_counter() - started) * 1000


# --- The site -------------------------------------------------------------------------------------------------------


def _vm_name(number: int) -> str:
    return f"vm-{number}"


def vm_uuid(number: int) -> str:
    return str(UUID(int=number + 1))


def site_with_vms(folder: Path, vms: int, log_origin: str = "sealane.example/bench") -> Site:
    return lay_out_site(
        folder / "site",
        hosts=[HostPlan(name, f"127.0.0.1:{free_port()}") for name in ("host-a", "host-b")],
        vms=[VmPlan(_vm_name(number), vm_uuid(number), "host-a") for number in range(vms)],
        log_origin=log_origin,
        now=datetime.now(UTC),
    )


@contextmanager
def gateway(site: Site, folder: Path, start_seconds: float = 30.0) -> Iterator[tuple[int, str]]:
    program = str(Path(sys.executable).with_name("sealane"))
    # As its systemd unit starts it.
    command = ["env", "MALLOC_ARENA_MAX=2", program, "gateway", "serve", "--config", str(site.gateway_config)]
    log = folder / "gateway.log"
    with running(command, log) as process:
        wait_until(
            lambda: b'"ready": true' in log.read_bytes() or process.poll() is not None,
            "the gateway's start",
            start_seconds,
        )
        ready = [line for line in log.read_bytes().splitlines() if b'"ready": true' in line]
        if not ready:
            raise BenchError("the gateway did not start")
        yield process.pid, f"https://{msgspec.json.decode(ready[0])['listen']}"


def trust(site: Site) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(site.ca))


def sign_in(site: Site, url: str, username: str = "alice") -> str:
    body = {"username": username, "password": site.passwords[username]}
    answer = httpx.post(f"{url}/v1/token", json=body, verify=trust(site), timeout=TIMEOUT_SECONDS)
    if answer.status_code != 200:
        raise BenchError(f"signing in failed: {answer.text[:500]}")
    return str(answer.json()["access_token"])


class SourceRelay:
    """A stand-in for the source relay: takes its assignments, and reports that it has begun."""

    def __init__(self, site: Site, url: str, stack: ExitStack) -> None:
        identity = trust(site)
        identity.load_cert_chain(site.host_folder("host-a") / "host.pem", site.host_folder("host-a") / "host.key")
        self._client = stack.enter_context(httpx.Client(base_url=url, verify=identity, timeout=TIMEOUT_SECONDS))
        self.permit = ""
        self._poll(0)  # from here on the gateway counts this host as reachable

    def _poll(self, wait_seconds: int) -> list[dict[str, Any]]:
        answer = self._client.post("/v1/relay/poll", json={"wait_seconds": wait_seconds})
        assignments: list[dict[str, Any]] = answer.raise_for_status().json()["assignments"]
        return assignments

    def take(self) -> None:
        """Take the one permit that waits. Without the report the gateway would hand it out again."""
        (assignment,) = self._poll(10)
        self.permit = str(assignment["permit"])
        numbers = ("transferred_bytes", "remaining_bytes", "total_bytes", "rate_bytes_per_second", "pass")
        report = {"migration_id": assignment["migration_id"], "state": "running", **dict.fromkeys(numbers, 0)}
        self._client.post("/v1/relay/progress", json=report).raise_for_status()


def _check(site: Site, token: str) -> None:
    """A permit, checked as a relay would: what was measured must have been the real thing."""
    key = PermitKey.from_pem((site.certs / "gateway" / "permit.pub").read_bytes())
    permit = verify_permit(token, [key])
    checkpoint = open_checkpoint(permit.proof.checkpoint, [LogVerifier.parse(site.vkey)])
    path = permit.proof.path_hashes()
    verify_inclusion(leaf_hash(proof_entry(permit)), permit.proof.index, checkpoint.size, path, checkpoint.root)
