"""Two hypervisor hosts on one machine: each a real libvirtd with its own mounts, processes, host name and network.

What one host sees of the other is a network link between them, and the folder of the test, which stands for shared
storage. Needs root. See `init.py` for why a host has a process 1 of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gateway.demo.guest import GuestLayout, build_boot_image
from tests.processes import killed_after
from tests.transport.site import Site

ROOT = Path(__file__).parents[3]
QEMU_UID = 64055


def _as_the_unit() -> list[str]:
    """A prefix that takes from root what systemd takes from the relay: its unit's capabilities are left, no others."""
    unit = (ROOT / "deploy" / "systemd" / "sealane-relay.service").read_text()
    kept = re.search(r"^CapabilityBoundingSet=(.+)$", unit, re.MULTILINE)
    assert kept is not None
    names = [name.removeprefix("CAP_").lower() for name in kept[1].split()]
    return ["setpriv", "--no-new-privs", "--bounding-set", ",".join(["-all", *(f"+{name}" for name in names)])]


AS_THE_UNIT = _as_the_unit()
PATIENCE_SECONDS = 60.0
MEMORY_MIB = 64
_LIBVIRTD_CONF = 'host_uuid = "{uuid}"\nunix_sock_dir = "/run/libvirt"\nauth_unix_rw = "none"\n'
_QEMU_CONF = (
    'user = "{user}"\ngroup = "{user}"\ncgroup_controllers = []\n'
    'stdio_handler = "file"\nmigrate_tls_x509_cert_dir = "/etc/libvirt/pki"\n'
)
_ENTER = """
hostname host-{name}
ip link set lo up
mount --bind {base}/passwd /etc/passwd
mount --bind {base}/group /etc/group
# Where QEMU's user may not open /dev/kvm, libvirt asks QEMU for its capabilities at every start: 12 s each.
if [ -e /dev/kvm ]; then
    mknod -m 666 {base}/kvm c 10 232
    mount --bind {base}/kvm /dev/kvm
fi
mkdir -p /etc/libvirt /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
mount --bind {base}/etc /etc/libvirt
mount --bind {base}/run /run/libvirt
for which in lib cache log; do mount --bind {base}/$which /var/$which/libvirt; done
{more}
exec {python} {init} /usr/sbin/libvirtd -p /run/libvirt/libvirtd.pid
"""


def wait_for(holds: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Look again and again, until the deadline."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{what} within {seconds:.0f} s"
        time.sleep(0.02)


@dataclass
class Host:
    """One host. `base`: its own folders; `pid`: its process 1, as the test sees it."""

    name: str
    base: Path
    address: str
    peer: str
    process: subprocess.Popen[bytes]
    pid: int = 0
    relay: Relay | None = None

    @property
    def socket(self) -> Path:
        return self.base / "run" / "libvirt-sock"

    @property
    def front(self) -> Path:
        """Where clients of libvirt on this host find the other one."""
        return self.base / "front" / self.peer / "libvirt.sock"

    @property
    def front_uri(self) -> str:
        return f"qemu+unix:///system?socket={self.front}"

    def at(self, over_ipv6: bool) -> str:
        """Its address on the network of the two, as it stands before a port."""
        return f"[fd77::{self.address.rpartition('.')[2]}]" if over_ipv6 else self.address

    def inside(self, *command: str) -> list[str]:
        """A command line that runs in this host."""
        return ["nsenter", "-t", str(self.pid), "-m", "-u", "-n", "-p", *command]

    def arrived_mib_per_second(self, guest: Guest) -> float:
        """How fast the guest's memory came here, by libvirt's account of the migration that is over."""
        said = self.virsh("domjobinfo", "--completed", guest.name)[1]
        found = re.search(r"Memory bandwidth: +([0-9.]+) MiB/s", said)
        assert found is not None, said
        return float(found[1])

    def virsh(self, *arguments: str, seconds: float = PATIENCE_SECONDS) -> tuple[int, str]:
        """Exit code and output of `virsh` at this host's libvirtd, run as an operator there would."""
        command = self.inside("virsh", "-c", "qemu:///system", *arguments)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=False, env={**os.environ, "LC_ALL": "C"}
            )
        except subprocess.TimeoutExpired:
            return 124, "virsh timed out"
        return done.returncode, (done.stdout + done.stderr).strip()

    def migrate(self, vm: Guest, *options: str, uri: str = "", seconds: float = PATIENCE_SECONDS) -> tuple[int, str]:
        """`virsh migrate` through this host's front."""
        target = ["--desturi", uri or self.front_uri]
        return self.virsh("migrate", *options, vm.name, *target, seconds=seconds)

    def state(self, vm: Guest) -> str:
        """libvirt's word: running, paused, shut off, or nothing for a VM that it does not know."""
        code, said = self.virsh("domstate", vm.name)
        return said if code == 0 else ""

    def qemus(self, vm: Guest) -> list[int]:
        """Processes of this VM's QEMU here, as the test sees them."""
        space = Path(f"/proc/{self.pid}/ns/pid").stat().st_ino
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if vm.uuid.encode() in words and (entry / "ns" / "pid").stat().st_ino == space:
                    found.append(int(entry.name))
        return found

    def libvirtd(self) -> int:
        """The process of libvirtd, as the test sees it."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a QEMU, say, that has just ended
                if Path(f"/proc/{child}/comm").read_text().strip() == "libvirtd":
                    return int(child)
        raise AssertionError(f"no libvirtd runs on host {self.name}")

    def start_libvirtd(self) -> None:
        """After it was killed."""
        command = self.inside("/usr/sbin/libvirtd", "-d", "-p", "/run/libvirt/libvirtd.pid")
        subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL)
        wait_for(lambda: self.virsh("uri")[0] == 0, f"libvirtd on host {self.name} answers")


@dataclass
class Relay:
    """A relay's process on a host."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Of the relay itself: `nsenter` is its parent."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else self.process.pid

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has ended
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait(20)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(self.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass(frozen=True)
class Guest:
    """One VM of the tests: it counts, and prints how far, on the host where it runs."""

    name: str
    uuid: str
    memory_mib: int = MEMORY_MIB

    def xml(self, image: Path, *, devices: str = "", qemu: str = "") -> str:
        return f"""
<domain type='qemu'{" xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'" if qemu else ""}>
  <name>{self.name}</name><uuid>{self.uuid}</uuid><memory unit='MiB'>{self.memory_mib}</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='fd'/></os><features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='floppy'><driver name='qemu' type='raw'/><source file='{image}'/>
      <target dev='fda' bus='fdc'/><readonly/></disk>
    <serial type='file'><source path='/run/libvirt/{self.name}.txt'/><target port='0'/></serial>
    <controller type='usb' model='none'/><memballoon model='none'/>{devices}
  </devices>{qemu}
</domain>"""

    def printed(self, host: Host) -> bytes:
        path = host.base / "run" / f"{self.name}.txt"
        return path.read_bytes() if path.exists() else b""


@dataclass
class Pair:
    """Hosts a and b, their relays, and the site's keys."""

    folder: Path
    image: Path
    a: Host
    b: Host
    memory_mib: int = MEMORY_MIB
    qemu_user: str = "libvirt-qemu"
    guests: list[Guest] = field(default_factory=list)

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.a, self.b

    def host(self, name: str) -> Host:
        return self.a if name == "a" else self.b

    def other(self, host: Host) -> Host:
        return self.b if host is self.a else self.a

    def guest(
        self, host: Host, *, devices: str = "", qemu: str = "", persistent: bool = False, known: Guest | None = None
    ) -> Guest:
        """A new guest, or the `known` one, that runs on `host` and has begun to count."""
        guest = known or Guest(f"vm{len(self.guests)}", str(uuid.uuid4()), self.memory_mib)
        self.guests.append(guest)
        path = self.folder / f"{guest.name}.xml"
        path.write_text(guest.xml(self.image, devices=devices, qemu=qemu))
        if persistent:
            code, said = host.virsh("define", str(path))
            assert code == 0, said
            code, said = host.virsh("start", guest.name)
        else:
            code, said = host.virsh("create", str(path))
        assert code == 0, said
        wait_for(lambda: guest.printed(host).count(b"\n") > 3, f"{guest.name} counts on host {host.name}")
        return guest

    def running(self, guest: Guest) -> list[str]:
        """Names of the hosts on which the guest counts now: a guest that runs twice would print on both.

        On a busy machine one that runs prints nothing for a while; of one that runs nowhere it takes the longer.
        """
        before = {host.name: guest.printed(host) for host in self.hosts}
        counts: list[str] = []
        least = time.monotonic() + 0.5
        most = least + 4.5
        while time.monotonic() < (least if counts else most):
            time.sleep(0.05)
            counts = [host.name for host in self.hosts if guest.printed(host) != before[host.name]]
        return counts

    def wait_runs_only(self, guest: Guest, host: Host, seconds: float = PATIENCE_SECONDS) -> None:
        """The guest counts on `host`, and no QEMU of it is left on the other."""
        other = self.other(host)
        wait_for(lambda: host.state(guest) == "running", f"{guest.name} runs on host {host.name}", seconds)
        wait_for(lambda: not other.qemus(guest), f"{guest.name} is gone from host {other.name}", seconds)
        before = guest.printed(host)
        wait_for(lambda: len(guest.printed(host)) > len(before) + 4, f"{guest.name} counts", seconds)

    def start_relay(self, host: Host, pause: str = "", *, over_ipv6: bool = False, **limits: float) -> None:
        """`pause`: a moment at which this relay waits; see `permitting_relay.pause_at`."""
        sections = {
            "hypervisor": {
                "kind": "libvirt",
                "socket_dir": str(host.base / "sessions"),
                "qemu_user": self.qemu_user,
                "domain_paths": [f"{self.folder}/", "/run/libvirt/", "/var/lib/libvirt/"],
            },
            "front": {
                "folder": str(host.base / "front"),
                "session_socket": str(host.base / "session.sock"),
                "destinations": [{"host": host.peer, "loopback": "127.77.0.2"}],
            },
            # As in the field: a lost connection is made again (docs/failures.md).
            "limits": {"hypervisor_seconds": 10.0, "resume_seconds": 60.0, **limits},
        }
        peer = self.other(host)
        addresses = [f"{each.at(over_ipv6)}:7443" for each in (peer, host)]
        log = self.folder / f"relay-{host.name}.log"
        with log.open("ab") as errors:
            process = subprocess.Popen(
                host.inside(
                    *AS_THE_UNIT, sys.executable, "-m", "tests.transport.libvirt.permitting_relay",
                    str(self.folder), host.name, *addresses, json.dumps(sections),
                ),
                cwd=ROOT, env={**os.environ, "PAUSE_AT": pause},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        host.relay = Relay(process, log)
        assert process.stdout is not None
        with killed_after(process):
            line = process.stdout.readline()
        process.stdout.close()
        assert line, log.read_text()[-2000:]

    def deny(self, words: str) -> None:
        (self.folder / "deny.txt").write_text(words)

    def allow(self) -> None:
        (self.folder / "deny.txt").unlink(missing_ok=True)


def make_disk(host: Host, name: str, fill: bytes | None) -> str:
    """A disk image on `host`'s own storage, and the device that uses it: the same path on both hosts."""
    path = host.base / "lib" / f"{name}.img"  # /var/lib/libvirt there
    size = 4 << 20
    path.write_bytes((fill * (size // len(fill))) if fill else bytes(size))
    os.chown(path, QEMU_UID, QEMU_UID)
    return (
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/>"
        f"<source file='/var/lib/libvirt/{name}.img'/><target dev='vda' bus='virtio'/></disk>"
    )


def start_host(folder: Path, name: str, address: str, peer: str, qemu_user: str, usr: Path | None = None) -> Host:
    """`usr`: what stands in the place of this machine's /usr, another Debian's (`deploy/other-libvirt.sh`)."""
    base = folder / name
    for part in ("etc", "etc/pki", "run", "lib", "cache", "log"):
        (base / part).mkdir(parents=True)
        (base / part).chmod(0o755)
    base.chmod(0o755)
    (base / "etc" / "libvirtd.conf").write_text(_LIBVIRTD_CONF.format(uuid=uuid.uuid4()))
    (base / "etc" / "qemu.conf").write_text(_QEMU_CONF.format(user=qemu_user))
    for table, line in (
        ("passwd", "libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin"),
        ("group", "libvirt-qemu:x:64055:"),
    ):
        known = Path("/etc") / table
        lines = [old for old in known.read_text().splitlines() if not old.startswith("libvirt-qemu:")]
        extra = ["kvm:x:64056:"] if table == "group" and not any(old.startswith("kvm:") for old in lines) else []
        (base / table).write_text("\n".join([*lines, line, *extra]) + "\n")
    more = f"mount --bind {usr} /usr" if usr is not None else ""
    init = Path(__file__).with_name("init.py")
    script = _ENTER.format(name=name, base=base, python=sys.executable, init=init, more=more)
    with (base / "out.txt").open("wb") as out:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL",  # a test run that is killed leaves no host behind
             "unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
             "--propagation", "private", "/bin/sh", "-ec", script],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip
    host = Host(name, base, address, peer, process)
    try:
        wait_for(host.socket.exists, f"libvirtd of host {name} listens: {(base / 'out.txt').read_text()}")
        host.pid = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        wait_for(lambda: host.virsh("uri")[0] == 0, f"libvirtd of host {name} answers")
    except BaseException:
        stop_host(host)
        raise
    return host


def stop_host(host: Host) -> None:
    """Its process 1 takes everything in it along."""
    try:
        if host.relay is not None:
            host.relay.stop()
    finally:
        host.process.kill()
        host.process.wait(20)


def join(a: Host, b: Host) -> None:
    """A network of the two alone."""
    commands = [
        ["ip", "link", "add", "lane", "netns", str(a.pid), "type", "veth", "peer", "name", "lane", "netns", str(b.pid)],
        *(a.inside(*f"ip addr add {a.address}/24 dev lane".split()), a.inside(*["ip", "link", "set", "lane", "up"])),
        *(b.inside(*f"ip addr add {b.address}/24 dev lane".split()), b.inside(*["ip", "link", "set", "lane", "up"])),
    ]
    for host in (a, b):  # at once, without asking whether anybody has it
        add = f"ip -6 addr add {host.at(True)[1:-1]}/64 dev lane nodad"
        commands.append(host.inside(*add.split()))
    for command in commands:
        subprocess.run(command, check=True, timeout=20, stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def two_hosts(
    folder: Path,
    memory_mib: int = MEMORY_MIB,
    hot_mib: int = 8,
    *,
    with_relays: bool = True,
    qemu_user: str = "libvirt-qemu",
    usr_b: Path | None = None,
) -> Iterator[Pair]:
    """Hosts with libvirtd and a relay each; `folder`'s path must leave room for unix sockets. `usr_b`: b's /usr."""
    folder.chmod(0o755)  # QEMU runs as another user
    Site.lay_out(folder).log.close()
    image = build_boot_image(GuestLayout.for_memory(memory_mib, hot_mib), folder)
    image.chmod(0o644)
    with contextlib.ExitStack() as ending:
        a = start_host(folder, "a", "10.77.0.1", "b", qemu_user)
        ending.callback(stop_host, a)
        b = start_host(folder, "b", "10.77.0.2", "a", qemu_user, usr_b)
        ending.callback(stop_host, b)
        join(a, b)
        pair = Pair(folder, image, a, b, memory_mib, qemu_user)
        for host in pair.hosts if with_relays else ():
            pair.start_relay(host)
        yield pair


def require_programs() -> None:
    for program in ("libvirtd", "virsh", "qemu-system-x86_64", "ip", "unshare"):
        found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        assert found, f"{program} is missing: run deploy/setup.sh test"
    assert os.geteuid() == 0, "two hosts on one machine need root: run the tests as root"
