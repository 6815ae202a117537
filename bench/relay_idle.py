"""What a relay costs its host while nothing moves: 50 guests to look at, a gateway to report to.

The relay is a process as it is installed, with its default intervals; the guests are real QEMUs that sleep, once behind
monitors of their own and once as domains of a libvirtd. Counted is its own CPU time and that of the virsh that it runs,
over whole recheck intervals, after its first look.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path

from bench.harness import BenchError, Plan, children_of, cpu_seconds, peak_rss_bytes, wait_until
from bench.peers import free_port, running
from bench.permit_latency import gateway, vm_uuid
from bench.qemus import QEMU
from gateway.starter import HostPlan, VmPlan, lay_out_site
from tests.transport.libvirt.hosts import require_programs, start_host, stop_host

DOMAINS, QUICK_DOMAINS = 50, 10
MEASURED_SECONDS, QUICK_SECONDS = 90.0, 30.0  # the relay asks a running guest again after 30 s
SETTLE_SECONDS = 10.0
DOMAIN = """
<domain type='qemu'><name>vm-{number}</name><uuid>{uuid}</uuid><memory unit='MiB'>8</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/><memballoon model='none'/></devices>
</domain>
"""


def measure(plan: Plan) -> dict[str, float]:
    """Percent of one core, with monitors and with libvirt, and the relay's resident memory."""
    domains, seconds = (QUICK_DOMAINS, QUICK_SECONDS) if plan.quick else (DOMAINS, MEASURED_SECONDS)
    with tempfile.TemporaryDirectory(prefix="sl") as name, ExitStack() as stack:
        by_qmp = _with_monitors(stack, Path(name), domains, seconds)
    with tempfile.TemporaryDirectory(prefix="sl") as name, ExitStack() as stack:
        by_libvirt = _with_libvirt(stack, Path(name), domains, seconds)
    return {
        "relay_idle_percent": by_qmp[0],
        "relay_idle_libvirt_percent": by_libvirt[0],
        "relay_idle_domains": float(domains),
        "relay_idle_rss_mib": by_qmp[1],
        "relay_idle_libvirt_rss_mib": by_libvirt[1],
    }


def _with_monitors(stack: ExitStack, folder: Path, domains: int, seconds: float) -> tuple[float, float]:
    template = f'kind = "qmp"\nqmp_socket = "{folder}/vms/{{uuid}}/qmp.sock"'
    config = _site(stack, folder, template, domains)
    for number in range(domains):
        stack.enter_context(_guest(folder / "vms" / vm_uuid(number), vm_uuid(number)))
    return _idle(stack, folder, [], config, seconds)


def _with_libvirt(stack: ExitStack, folder: Path, domains: int, seconds: float) -> tuple[float, float]:
    require_programs()
    folder.chmod(0o755)  # QEMU runs as another user
    host = start_host(folder, "a", "10.77.0.1", "b", "libvirt-qemu")
    stack.callback(stop_host, host)
    sections = (
        f'kind = "libvirt"\nsocket_dir = "{folder}/sessions"\n[placement]\nlibvirt_uri = "qemu:///system"\n'
        f'[front]\nfolder = "{folder}/front"\nsession_socket = "{folder}/session.sock"'
    )
    config = _site(stack, folder, sections, domains)
    for number in range(domains):
        xml = folder / "domain.xml"
        xml.write_text(DOMAIN.format(number=number, uuid=vm_uuid(number)))
        code, said = host.virsh("create", "--paused", str(xml))
        if code:
            raise BenchError(f"virsh create: {said}")
    # In the host's own mounts, where its libvirtd is, and on this machine's network, where the gateway is.
    return _idle(stack, folder, ["nsenter", "-t", str(host.pid), "-m", "-u", "-p"], config, seconds)


def _site(stack: ExitStack, folder: Path, hypervisor: str, domains: int) -> Path:
    """A gateway that runs and knows the VMs; the relay's configuration."""
    hosts = [HostPlan("host-a", f"127.0.0.1:{free_port()}", hypervisor=hypervisor), HostPlan("host-b", "127.0.0.2:1")]
    vms = [VmPlan(f"vm-{number}", vm_uuid(number), "host-a") for number in range(domains)]
    site = lay_out_site(folder / "site", hosts=hosts, vms=vms, now=datetime.now(UTC))
    _, url = stack.enter_context(gateway(site, folder))
    config = site.relay_config("host-a")
    lines = [f'url = "{url}"' if line.startswith("url = ") else line for line in config.read_text().splitlines()]
    config.write_text("\n".join(lines) + "\n")
    return config


def _idle(stack: ExitStack, folder: Path, within: list[str], config: Path, seconds: float) -> tuple[float, float]:
    """Percent of a core that a relay takes, and its memory in MiB."""
    sealane = str(Path(sys.executable).with_name("sealane"))
    log = folder / "relay.log"
    relay = stack.enter_context(running([*within, sealane, "relay", "serve", "--config", str(config)], log))
    wait_until(lambda: b'"ready": true' in log.read_bytes() or relay.poll() is not None, "the relay's start")
    time.sleep(SETTLE_SECONDS)
    before, began = cpu_seconds(relay.pid), time.perf_counter()
    time.sleep(seconds)
    used, elapsed = cpu_seconds(relay.pid) - before, time.perf_counter() - began
    process = next(iter(children_of(relay.pid)), relay.pid) if within else relay.pid
    return 100 * used / elapsed, peak_rss_bytes(process) / (1 << 20)


def _guest(folder: Path, uuid: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A QEMU that finds nothing to boot and sleeps."""
    folder.mkdir(parents=True)
    command = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-machine", "pc"]
    command += ["-m", "8M", "-uuid", uuid, "-qmp", f"unix:{folder / 'qmp.sock'},server=on,wait=off"]
    return running(command, folder / "qemu.log")
