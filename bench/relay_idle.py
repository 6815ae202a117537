"""What a relay costs its host while nothing moves: 50 guests to look at, a gateway to report to.

The relay is a process as it is installed, with its default intervals; the guests are real QEMUs that sleep. Counted
is its own CPU time alone, over whole recheck intervals, after its first look.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path

from bench.harness import Plan, cpu_seconds, peak_rss_bytes, wait_until
from bench.peers import free_port, running
from bench.permit_latency import gateway, vm_uuid
from bench.qemus import QEMU
from gateway.starter import HostPlan, VmPlan, lay_out_site

DOMAINS, QUICK_DOMAINS = 50, 10
MEASURED_SECONDS, QUICK_SECONDS = 90.0, 30.0  # the relay asks a running guest again after 30 s
SETTLE_SECONDS = 10.0


def measure(plan: Plan) -> dict[str, float]:
    """`relay_idle_percent` of one core, and the relay's resident memory."""
    domains, seconds = (QUICK_DOMAINS, QUICK_SECONDS) if plan.quick else (DOMAINS, MEASURED_SECONDS)
    with tempfile.TemporaryDirectory(prefix="sl") as name, ExitStack() as stack:
        folder = Path(name)
        template = f'kind = "qmp"\nqmp_socket = "{folder}/vms/{{uuid}}/qmp.sock"'
        host = HostPlan("host-a", f"127.0.0.1:{free_port()}", hypervisor=template)
        vms = [VmPlan(f"vm-{number}", vm_uuid(number), "host-a") for number in range(domains)]
        site = lay_out_site(folder / "site", hosts=[host], vms=vms, now=datetime.now(UTC))
        _, url = stack.enter_context(gateway(site, folder))
        for vm in vms:
            stack.enter_context(_guest(folder / "vms" / vm.uuid, vm.uuid))
        config = site.relay_config("host-a")
        lines = [f'url = "{url}"' if line.startswith("url = ") else line for line in config.read_text().splitlines()]
        config.write_text("\n".join(lines) + "\n")
        sealane = str(Path(sys.executable).with_name("sealane"))
        log = folder / "relay.log"
        relay = stack.enter_context(running([sealane, "relay", "serve", "--config", str(config)], log))
        wait_until(lambda: b'"ready": true' in log.read_bytes() or relay.poll() is not None, "the relay's start")
        time.sleep(SETTLE_SECONDS)
        before, began = cpu_seconds(relay.pid), time.perf_counter()
        time.sleep(seconds)
        used, elapsed = cpu_seconds(relay.pid) - before, time.perf_counter() - began
        return {
            "relay_idle_percent": 100 * used / elapsed,
            "relay_idle_domains": float(domains),
            "relay_idle_rss_mib": peak_rss_bytes(relay.pid) / (1 << 20),
        }


def _guest(folder: Path, uuid: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A QEMU that finds nothing to boot and sleeps."""
    folder.mkdir(parents=True)
    command = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-machine", "pc"]
    command += ["-m", "8M", "-uuid", uuid, "-qmp", f"unix:{folder / 'qmp.sock'},server=on,wait=off"]
    return running(command, folder / "qemu.log")
