"""A real libvirtd: in a mount namespace with folders, users and a socket of its own; QEMU as root, by TCG."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

_QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
"""
_START = """\
set -eu
cp /etc/passwd /etc/group "$1"
grep -q ^libvirt-qemu: "$1/passwd" || echo libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin >>"$1/passwd"
for group in libvirt-qemu:64055 kvm:64056; do
    grep -q "^${group%:*}:" "$1/group" || echo "${group%:*}:x:${group#*:}:" >>"$1/group"
done
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
for pair in etc:/etc/libvirt lib:/var/lib/libvirt run:/run/libvirt cache:/var/cache/libvirt log:/var/log/libvirt; do
    mkdir -p "$1/${pair%%:*}" "${pair#*:}"
    mount --bind "$1/${pair%%:*}" "${pair#*:}"
done
exec libvirtd --pid-file /run/libvirt/libvirtd.pid
"""


@dataclass(frozen=True)
class Libvirtd:
    folder: Path

    @property
    def uri(self) -> str:
        return f"qemu:///system?socket={self.folder}/run/libvirt-sock"

    @property
    def read_only_uri(self) -> str:
        """What a relay is given: it changes nothing."""
        return f"qemu:///system?socket={self.folder}/run/libvirt-sock-ro"

    async def virsh(self, *arguments: str) -> str:
        done = await trio.run_process(
            ["virsh", "--quiet", "--connect", self.uri, *arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    async def start(self, name: str, domain_uuid: str, devices: str = "", cpu: str = "") -> None:
        xml = self.folder / "domain.xml"
        xml.write_text(domain_xml(name, domain_uuid, devices, cpu))
        await self.virsh("create", str(xml))


def domain_xml(name: str, domain_uuid: str, devices: str = "", cpu: str = "") -> str:
    return (
        f"<domain type='qemu'><name>{name}</name><uuid>{domain_uuid}</uuid><memory unit='MiB'>16</memory>"
        f"<vcpu>1</vcpu>{cpu}<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>"
        f"<emulator>/usr/bin/qemu-system-x86_64</emulator><memballoon model='none'/>{devices}</devices></domain>"
    )


@asynccontextmanager
async def running_libvirtd(folder: Path) -> AsyncIterator[Libvirtd]:
    """Answers when the block begins; its domains and it are gone after it."""
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "qemu.conf").write_text(_QEMU_CONF)
    (folder / "etc" / "libvirtd.conf").write_text(
        f'host_uuid = "{uuid.uuid4()}"\nauth_unix_ro = "none"\nauth_unix_rw = "none"\nunix_sock_dir = "/run/libvirt"\n'
        f'log_outputs = "3:file:{folder}/libvirtd.log"\n'
    )
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            ["unshare", "-m", "bash", "-c", _START, "libvirtd", str(folder)], stdout=out, stderr=out, cwd="/"
        )
    libvirtd = Libvirtd(folder)
    try:
        with trio.fail_after(30):
            while not (folder / "run" / "libvirt-sock").is_socket():
                assert process.poll() is None, (folder / "out").read_text()
                await trio.sleep(0.02)
        yield libvirtd
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(20):
            for name in (await libvirtd.virsh("list", "--name")).splitlines():
                if name:
                    await libvirtd.virsh("destroy", name)
        process.terminate()
        await trio.to_thread.run_sync(process.wait)
