"""How long `sealane drain HOST --check` takes for a host of 1,000 VMs and 20 destinations, and what others notice.

A gateway as it is installed, with the example bundle; the destinations' relays are played by their certificates.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.harness import Plan
from bench.permit_latency import gateway, vm_uuid
from gateway.cli.client import GatewayClient
from gateway.cli.settings import resolve
from gateway.starter import HostPlan, VmPlan, lay_out_site

VMS, HOSTS = 1_000, 20
QUICK_VMS = 100


def measure(plan: Plan) -> dict[str, float]:
    """`drain_check_s`, and `drain_health_p99_ms`: an answer to somebody else meanwhile."""
    count = QUICK_VMS if plan.quick else VMS
    with tempfile.TemporaryDirectory(prefix="sl") as name:
        folder = Path(name)
        hosts = [HostPlan(f"host-{number}", f"127.0.{number}.1:7443") for number in range(HOSTS + 1)]
        vms = [VmPlan(f"vm-{number}", vm_uuid(number), "host-0") for number in range(count)]
        site = lay_out_site(folder / "site", hosts=hosts, vms=vms, now=datetime.now(UTC))
        with gateway(site, folder) as (_, url):
            settings = resolve(url, site.ca, None, folder)
            with GatewayClient(settings) as stranger:
                token = stranger.login("alice", site.passwords["alice"]).access_token
            taken, waits = [], []
            for _ in range(plan.rounds_to_run):
                seconds, waited = _check(settings, token)
                taken.append(seconds)
                waits += waited
    return {
        "drain_check_s": statistics.median(taken),
        "drain_check_pairs": float(count * HOSTS),
        "drain_health_p99_ms": 1000 * statistics.quantiles(waits, n=100)[98],
    }


def _check(settings: object, token: str) -> tuple[float, list[float]]:
    done, waits = threading.Event(), []

    def ask() -> None:
        with GatewayClient(settings) as other:  # type: ignore[arg-type]
            while not done.is_set():
                began = time.perf_counter()
                other.identity()
                waits.append(time.perf_counter() - began)
                time.sleep(0.02)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with GatewayClient(settings, token) as client:  # type: ignore[arg-type]
            began = time.perf_counter()
            client.check_drain({"host": "host-0"})
            return time.perf_counter() - began, waits
    finally:
        done.set()
        asking.join()
