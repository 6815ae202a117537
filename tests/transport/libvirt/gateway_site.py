"""A gateway on host a and relays on both hosts, from the files that `lay_out_site` writes; and a way from b to a."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.starter import HostPlan, Site, VmPlan, lay_out_site
from policy.identity.local import ScryptCost
from tests.transport.libvirt.hosts import Guest, Host, Pair, Relay, require_programs, two_hosts, wait_for

SEALANE = Path(sys.executable).with_name("sealane")
GATEWAY = "127.0.0.1:8443"
WEB = Guest("web", "11111111-2222-4333-8444-555555555555")
LEDGER = Guest("ledger", "99999999-2222-4333-8444-555555555555")


@dataclass
class Whole:
    """Two hosts, a gateway on host a, and what an operator there has."""

    pair: Pair
    site: Site
    home: Path

    def sealane(self, *arguments: str) -> dict[str, object]:
        """The object that a command on host a prints."""
        command = self.pair.a.inside("env", f"HOME={self.home}", str(SEALANE), *arguments, "--json")
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout, done.stderr
        answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def sign_in(self, username: str) -> None:
        password = self.site.directory / "passwords" / username
        said = self.sealane("login", "--user", username, "--password-file", str(password))
        assert said["outcome"] != "error", said

    def wait_settled(self) -> None:
        """Until the gateway waits no more for the receipt of host b, which cannot reach it."""
        asked = [str(SEALANE), "audit", "query", "kind:migration.decision outcome:allowed", "--log", str(self.site.log)]
        done = subprocess.run([*asked, "--format", "jsonl"], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            found = json.loads(line)
            migration = str(found.get("record", found)["migration_id"])
            is_over = lambda of=migration: self.sealane("migration", "show", of)["outcome"] is not None  # noqa: E731
            wait_for(is_over, "the end of an earlier migration")


def relay_toml(site: Site, host: Host) -> str:
    plain = site.relay_config(host.name).read_text()
    return (
        plain[: plain.index("[hypervisor]")]
        + f"""
[hypervisor]
kind = "libvirt"
socket_dir = "{host.base}/sessions"
domain_paths = ["{site.directory.parent}/", "/run/libvirt/"]

[placement]
libvirt_uri = "qemu:///system"
scan_seconds = 0.5
report_seconds = 0.5

[front]
folder = "{host.base}/front"
session_socket = "{host.base}/session.sock"
"""
        # Host b has no way to the gateway, and so no address book.
        + ('[[front.destinations]]\nhost = "a"\n' if host.name == "b" else "")
    )


@contextlib.contextmanager
def whole_site() -> Iterator[Whole]:
    require_programs()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slg")))
        pair = stack.enter_context(two_hosts(folder, with_relays=False))
        site = lay_out_site(
            folder / "site",
            hosts=[HostPlan(h.name, f"{h.address}:7443") for h in pair.hosts],
            vms=[VmPlan("web", WEB.uuid, "a"), VmPlan("ledger", LEDGER.uuid, "a", zone="production")],
            gateway_listen=GATEWAY,
            now=datetime.now(UTC),
            password_cost=ScryptCost(14, 8, 1),
        )
        start(stack, pair.a, folder / "gateway.log", "gateway", "serve", "--config", str(site.gateway_config))
        for host in pair.hosts:
            site.relay_config(host.name).write_text(relay_toml(site, host))
            log = folder / f"relay-{host.name}.log"
            process = start(stack, host, log, "relay", "serve", "--config", str(site.relay_config(host.name)))
            host.relay = Relay(process, log)
        home = folder / "home"
        settings = home / ".config" / "sealane"
        settings.mkdir(parents=True)
        (settings / "client.toml").write_text(f'gateway = "https://{GATEWAY}"\nca = "{site.ca}"\n')
        yield Whole(pair, site, home)


def start(stack: contextlib.ExitStack, host: Host, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A service on `host`, once it has said that it is ready."""
    return run_service(stack, host, log, [str(SEALANE), *arguments])


def run_service(stack: contextlib.ExitStack, host: Host, log: Path, command: list[str]) -> subprocess.Popen[bytes]:
    out = stack.enter_context(log.open("wb"))
    process = subprocess.Popen(host.inside(*command), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=host.base)
    stack.callback(Relay(process, log).stop)
    wait_for(lambda: b'"ready": true' in log.read_bytes() or process.poll() is not None, log.name)
    assert process.poll() is None, log.read_text()[-3000:]
    return process


def records_of(whole: Whole, kind: str) -> list[dict[str, Any]]:
    asked = [str(SEALANE), "audit", "query", f"kind:{kind}", "--log", str(whole.site.log), "--format", "jsonl"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [each.get("record", each) for each in found]


def lead_to_gateway(stack: contextlib.ExitStack, pair: Pair) -> None:
    """A way from host b to the gateway, which is on host a."""
    gate = pair.folder / "gateway.sock"
    gate.unlink(missing_ok=True)
    lead(stack, pair.a, f"UNIX-LISTEN:{gate},fork,mode=666", f"TCP:{GATEWAY}")
    lead(stack, pair.b, f"TCP-LISTEN:{GATEWAY.partition(':')[2]},bind=127.0.0.1,fork,reuseaddr", f"UNIX:{gate}")


def answers(whole: Whole, host: str) -> bool:
    known: Any = whole.sealane("hosts", host).get("hosts", [])
    return any(each["relay_reachable"] for each in known)


def lead(stack: contextlib.ExitStack, host: Host, listening: str, target: str) -> None:
    # Without `--pid`, for which nsenter would fork, and to be killed would leave socat behind.
    command = ("nsenter", "-t", str(host.pid), "-m", "-n", "socat", listening, target)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    stack.callback(process.wait, 20)
    stack.callback(process.kill)


def is_reported(whole: Whole, host: str) -> bool:
    vms = whole.sealane("vms", "web")
    known: Any = vms.get("vms", [])
    return any(vm["host"] == host and vm["by_libvirt"] for vm in known)
