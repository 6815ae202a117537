"""`virsh migrate` of a guest with random memory, through the relays and over libvirt's own TLS in turn; and what the
gateway's answer adds to it.

Two hosts in namespaces of this machine, each with its libvirtd (tests/transport/libvirt/hosts.py). Timed is the whole
command, as an operator waits for it. The guest goes back and forth, so that each way is used by both alike.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import httpx

from bench.certificates import make_certificates
from bench.harness import BenchError, Plan
from bench.permit_latency import DISK, TIMEOUT_SECONDS, gateway, sign_in, site_with_vms, trust, vm_uuid
from tests.transport.libvirt.hosts import QEMU_UID, Guest, Host, Pair, require_programs, two_hosts

MEMORY_MIB = 1024
QUICK_MEMORY_MIB = 256
REQUESTS = 60
QUICK_REQUESTS = 20


def measure(plan: Plan) -> dict[str, float]:
    """Seconds of both, their ratio (more than 1: the relays are faster), and the milliseconds of an admission."""
    memory_mib = QUICK_MEMORY_MIB if plan.quick else MEMORY_MIB
    require_programs()
    seconds: dict[str, list[float]] = {"sealane": [], "tls": []}
    with tempfile.TemporaryDirectory(prefix="bl") as name, two_hosts(Path(name), memory_mib, hot_mib=1) as pair:
        _give_certificates(pair)
        guest = pair.guest(pair.a)
        here = pair.a
        for number in range(2 * plan.rounds_to_run):
            order = ("sealane", "tls") if number % 2 == 0 else ("tls", "sealane")
            for way in order:
                seconds[way].append(_move(pair, guest, here, way))
                here = pair.other(here)
    pairs = zip(seconds["tls"], seconds["sealane"], strict=True)
    return {
        "libvirt_sealane_s": statistics.median(seconds["sealane"]),
        "libvirt_tls_s": statistics.median(seconds["tls"]),
        "libvirt_vs_tls": statistics.median(tls / sealane for tls, sealane in pairs),
        "auto_admission_ms": _admission_ms(plan),
    }


def _move(pair: Pair, guest: Guest, source: Host, way: str) -> float:
    target = pair.other(source)
    options, uri = ["--live", "--p2p"], source.front_uri
    if way == "tls":
        options += ["--tls", "--tls-destination", "localhost", "--migrateuri", f"tcp://{target.address}"]
        uri = f"qemu+unix:///system?socket={target.socket}"
    started = time.perf_counter()
    code, said = source.migrate(guest, *options, uri=uri, seconds=300)
    ended = time.perf_counter()
    if code:
        raise BenchError(f"virsh migrate ({way}): {said}")
    pair.wait_runs_only(guest, target)
    return ended - started


def _give_certificates(pair: Pair) -> None:
    """One set for both hosts, in the folder that their qemu.conf names."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        make_certificates(Path(name) / "c")
        for host in pair.hosts:
            pki = host.base / "etc" / "pki"
            pki.mkdir(exist_ok=True)
            for file in (Path(name) / "c" / "qemu").iterdir():
                copy = pki / file.name
                copy.write_bytes(file.read_bytes())
                copy.chmod(0o600)
                os.chown(copy, QEMU_UID, QEMU_UID)
            pki.chmod(0o755)


def _admission_ms(plan: Plan) -> float:
    """The median of a relay's request for what libvirt's client wants, on a kept connection, up to the permit."""
    requests = QUICK_REQUESTS if plan.quick else REQUESTS
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DISK) as name, ExitStack() as stack:
        site = site_with_vms(Path(name), requests + 5)
        _, url = stack.enter_context(gateway(site, Path(name)))
        identity = trust(site)
        identity.load_cert_chain(site.host_folder("host-a") / "host.pem", site.host_folder("host-a") / "host.key")
        relay = stack.enter_context(httpx.Client(base_url=url, verify=identity, timeout=TIMEOUT_SECONDS))
        wish = {"destination": "host-b", "ports": ["libvirt", "memory"], "token": sign_in(site, url), "reason": "bench"}
        vms = count()
        taken = []
        for _ in range(requests + 5):
            started = time.perf_counter()
            answer = relay.post("/v1/relay/admission", json={**wish, "vm": vm_uuid(next(vms))})
            taken.append((time.perf_counter() - started) * 1000)
            if answer.json().get("kind") != "migrate":
                raise BenchError(f"no permit: {answer.text[:500]}")
        return statistics.median(taken[5:])
