"""Guests moved by nova's own libvirt driver, through the front: `make nova`.

`make test` does not fetch nova (250 MB): where it has been fetched it runs this, too, and else it says that it was left
out. What of nova runs, and what stands in for the cloud around it: `nova_step.py`.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.demo.guest import count_passes
from tests.transport.libvirt.hosts import ROOT, Guest, Host, Pair, require_programs, two_hosts, wait_for

pytestmark = [pytest.mark.real, pytest.mark.whole, pytest.mark.fetched("nova")]

NOVA = ROOT / ".nova"
STEP = Path(__file__).with_name("nova_step.py")
INSTANCES = "/var/lib/libvirt/nova/instances"  # on each host its own
CONF = f"""
[DEFAULT]
compute_driver = libvirt.LibvirtDriver
state_path = /var/lib/libvirt/nova
instances_path = {INSTANCES}
my_ip = ADDRESS
host = host-NAME
reserved_host_disk_mb = 0
log_file = /var/log/libvirt/nova.log
[database]
connection = sqlite:////var/lib/libvirt/nova/nova.db
[libvirt]
virt_type = qemu
cpu_mode = none
images_type = raw
live_migration_inbound_addr = NAME.sealane
live_migration_scheme = tcp
[vnc]
server_listen = 127.0.0.1
"""


@dataclass
class Cloud:
    """Two compute hosts of nova's, configured as docs/libvirt.md says, and one instance."""

    pair: Pair
    vm: Guest
    state: Path

    def step(self, host: Host, name: str) -> tuple[int, str]:
        command = host.inside(str(NOVA / "bin" / "python"), str(STEP), name, f"{host.base}/nova.conf", str(self.state))
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, cwd="/")
        return done.returncode, done.stderr

    def do(self, host: Host, name: str) -> None:
        code, said = self.step(host, name)
        assert code == 0, said

    def kept(self) -> dict[str, Any]:
        kept: dict[str, Any] = json.loads(self.state.read_text())
        return kept

    def printed(self, host: Host) -> bytes:
        path = host.base / "lib" / "nova" / "instances" / self.vm.uuid / "console.log"
        return path.read_bytes() if path.exists() else b""


def configure(host: Host) -> None:
    (host.base / "lib" / "nova" / "instances").mkdir(parents=True)
    (host.base / "nova.conf").write_text(CONF.replace("NAME", host.name).replace("ADDRESS", host.address))
    (host.base / "hosts").write_text(f"127.0.0.1 localhost\n127.77.0.2 {host.peer}.sealane\n")
    subprocess.run(host.inside("mount", "--bind", str(host.base / "hosts"), "/etc/hosts"), check=True, timeout=20)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    require_programs()
    with tempfile.TemporaryDirectory(prefix="slno") as folder, two_hosts(Path(folder)) as pair:
        for host in pair.hosts:
            configure(host)
        made = Cloud(pair, Guest("instance-00000001", str(uuid.uuid4())), Path(folder, "state.json"))
        image_id = str(uuid.uuid4())
        made.state.write_text(json.dumps({"uuid": made.vm.uuid, "image": str(pair.image), "image_id": image_id}))
        yield made


def test_nova_starts_its_instance_goes_on_with_it_after_a_refusal_and_moves_it_with_its_disk(cloud: Cloud) -> None:
    start(cloud)
    be_refused(cloud)
    move(cloud)


def start(cloud: Cloud) -> None:
    """Its own checks find no fault, either."""
    pair = cloud.pair
    cloud.do(pair.a, "spawn")
    wait_for(lambda: cloud.printed(pair.a).count(b"\n") > 3, "the instance counts")
    cloud.do(pair.b, "check_destination")
    cloud.do(pair.a, "check_source")
    cloud.do(pair.b, "prepare")


def be_refused(cloud: Cloud) -> None:
    """What the policy says is in nova's log, and the instance goes on where it was."""
    pair = cloud.pair
    pair.deny("denied by policy zone-of-production: VMs of zone production stay in it (record 17)")
    try:
        code, said = cloud.step(pair.a, "migrate")
    finally:
        pair.allow()
    assert code != 0
    assert "denied by policy zone-of-production" in said
    assert cloud.kept()["called"] == ["recover"]  # its way of rolling back
    before = cloud.printed(pair.a)
    wait_for(lambda: cloud.printed(pair.a) != before, "the instance goes on where it was")
    assert not pair.b.qemus(cloud.vm)


def move(cloud: Cloud) -> None:
    pair = cloud.pair
    cloud.do(pair.a, "migrate")
    assert cloud.kept()["called"] == ["post"]
    cloud.do(pair.a, "finish_source")
    cloud.do(pair.b, "finish_destination")
    assert cloud.kept()["is_running"]
    wait_for(lambda: not pair.a.qemus(cloud.vm), "no QEMU of it is left on host a")
    wait_for(lambda: cloud.printed(pair.b).count(b"\n") > 3, "the instance counts on host b")
    count_passes(cloud.printed(pair.a) + cloud.printed(pair.b))
    image = Path(INSTANCES).relative_to("/var/lib/libvirt") / cloud.vm.uuid / "disk"
    assert (pair.b.base / "lib" / image).read_bytes() == pair.image.read_bytes()
    assert cloud.vm.name in pair.b.virsh("list", "--persistent", "--name")[1].split()
    assert cloud.vm.name not in pair.a.virsh("list", "--all", "--name")[1].split()
    pair.b.virsh("destroy", cloud.vm.name)
