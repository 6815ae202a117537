"""Something dies at a chosen moment of a migration by libvirt: where does the guest run then?

    python -m tests.transport.libvirt.failures [--short]

Each case moves a new guest from host a to host b and stops the migration at a moment (a call of libvirt's RPC or a
durable state, before or after), kills something, lets the rest go on, starts again what died, and counts where the
guest runs. The same for libvirt alone, with a proxy in the relays' place. Prints two tables in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.demo.guest import count_passes
from tests.transport.libvirt.hosts import Guest, Host, Pair, require_programs, two_hosts, wait_for
from transport.libvirt_rpc.framing import PacketReader

SETTLED_SECONDS = 60.0
# Where the relay waits (see `permitting_relay.pause_at`): the host whose relay it is, and the moment there.
MOMENTS = (
    ("a", "before:60"),
    ("a", "before:303"),
    ("b", "before:303"),
    ("b", "after:303"),
    ("a", "after:303"),
    ("a", "told:303"),
    ("a", "before:306"),
    ("b", "before:306"),
    ("b", "after:306"),
    ("b", "after:loaded"),
    ("a", "after:306"),
    ("a", "after:accepted"),
    ("a", "told:306"),
    ("a", "before:handed-over"),
    ("a", "after:handed-over"),
    ("b", "before:running"),
    ("b", "after:running"),
    ("b", "after:started"),
    ("a", "after:outcome-running"),
)
VICTIMS = ("relay a", "relay b", "libvirtd a", "libvirtd b", "connection")
SHORT = (
    ("b", "after:303", "relay b"),
    ("b", "after:306", "connection"),
    ("a", "after:306", "relay a"),
    ("a", "after:accepted", "relay a"),
    ("a", "after:accepted", "libvirtd a"),
    ("b", "after:running", "relay b"),
)
# For libvirt alone: the same at the calls that there are.
ALONE = tuple((when, number) for number in (303, 306) for when in ("before", "after"))
ALONE_VICTIMS = ("connection", "libvirtd a", "libvirtd b")


@dataclass(frozen=True)
class Outcome:
    """`where`: hosts on which the guest counts, at the end. `twice`: whether it ever ran on both."""

    where: tuple[str, ...]
    states: tuple[str, str]
    twice: bool

    def __str__(self) -> str:
        if self.twice:
            return "**on both**"
        if self.where:
            return f"on {self.where[0]}"
        return f"paused (a: {self.states[0] or 'none'}, b: {self.states[1] or 'none'})"


def ran_twice(pair: Pair, guest: Guest) -> bool:
    """Whether a number was printed on both hosts: every one that it prints is the next."""
    try:
        count_passes(guest.printed(pair.a) + guest.printed(pair.b))
    except ValueError:
        return True
    return False


def outcome_of(pair: Pair, guest: Guest, seconds: float) -> Outcome:
    """Wait until the guest runs somewhere and nowhere else, or until time is up."""
    end = time.monotonic() + seconds
    while True:
        where = tuple(pair.running(guest))
        alone = len(where) == 1 and not pair.other(pair.host(where[0])).qemus(guest)
        if alone or time.monotonic() > end:
            twice = len(where) > 1 or ran_twice(pair, guest)
            return Outcome(where, (pair.a.state(guest), pair.b.state(guest)), twice)


def kill(pair: Pair, victim: str) -> None:
    what, _, name = victim.partition(" ")
    match what:
        case "relay":
            relay = pair.host(name).relay
            assert relay is not None
            relay.kill()
        case "libvirtd":
            os.kill(pair.host(name).libvirtd(), signal.SIGKILL)
        case "connection":
            cut = pair.a.inside("ss", "-K", "dst", pair.b.address)
            subprocess.run(cut, check=True, capture_output=True, timeout=20)


def revive(pair: Pair, victim: str) -> None:
    what, _, name = victim.partition(" ")
    if what == "libvirtd":
        pair.host(name).start_libvirtd()


def with_relays(pair: Pair, host: str, moment: str, victim: str) -> Outcome:
    """One case. Both relays are new, one of them waits at the moment; afterwards they are new again."""
    for each in pair.hosts:
        if each.relay is not None:
            each.relay.stop()
        pair.start_relay(each, pause=moment if each.name == host else "")
    guest = pair.guest(pair.a)
    reached = pair.folder / f"reached-{host}"
    mover = _virsh(pair.a, guest, pair.a.front_uri)
    try:
        wait_for(lambda: reached.exists() or mover.poll() is not None, f"{moment} at {host}")
        assert reached.exists(), "\n".join(each.relay.log.read_text()[-3000:] for each in pair.hosts if each.relay)
        kill(pair, victim)
        (pair.folder / f"go-{host}").touch()
        if victim.startswith("relay"):
            pair.start_relay(pair.host(victim[-1]))
        revive(pair, victim)
        return outcome_of(pair, guest, SETTLED_SECONDS)
    finally:
        mover.kill()
        mover.wait(20)
        for name in ("reached", "go"):
            (pair.folder / f"{name}-{host}").unlink(missing_ok=True)
        _clear(pair, guest)


def alone(pair: Pair, when: str, procedure: int, victim: str) -> Outcome:
    """The same with libvirt's own protocol, through a proxy that waits at the moment."""
    guest = pair.guest(pair.a)
    path = pair.folder / f"proxy-{guest.name}.sock"
    with Proxy(path, pair.b.socket, when, procedure) as proxy:
        uri = f"qemu+unix:///system?socket={path}"
        folder = pair.folder / f"m-{guest.name}"
        folder.mkdir()
        folder.chmod(0o777)
        mover = _virsh(pair.a, guest, uri, "--migrateuri", f"unix://{folder}/m.sock")
        try:
            assert proxy.reached.wait(30), "the moment is reached"
            if victim == "connection":
                proxy.cut()
            else:
                kill(pair, victim)
            proxy.go.set()
            revive(pair, victim)
            with contextlib.suppress(subprocess.TimeoutExpired):
                mover.wait(20)
            return outcome_of(pair, guest, 5)
        finally:
            mover.kill()
            mover.wait(20)
            _clear(pair, guest)


class Proxy:
    """Between a libvirt and another: passes messages on, and waits at one of them."""

    def __init__(self, path: Path, target: Path, when: str, procedure: int) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self._when, self._procedure, self._target = when, procedure, target
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        path.chmod(0o666)
        self._listening.listen(1)
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self.cut()
        self._listening.close()

    def cut(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        try:
            client, _ = self._listening.accept()
        except OSError:
            return
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self._target))
        self._sockets = [client, server]
        back = threading.Thread(target=self._pass, args=(server, client, "after"), daemon=True)
        back.start()
        self._pass(client, server, "before")
        back.join(30)
        client.close()
        server.close()

    def _pass(self, source: socket.socket, sink: socket.socket, side: str) -> None:
        reader = PacketReader()
        try:
            while data := source.recv(65536):
                for packet in reader.feed(data):
                    if not packet.is_keepalive and (side, packet.procedure) == (self._when, self._procedure):
                        self.reached.set()
                        self.go.wait(30)
                    sink.sendall(packet.encode())
        except OSError:
            pass
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


def _virsh(host: Host, guest: Guest, uri: str, *options: str) -> subprocess.Popen[bytes]:
    command = host.inside(
        "virsh", "-c", "qemu:///system", "migrate", "--live", "--p2p", guest.name, "--desturi", uri, *options
    )
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _clear(pair: Pair, guest: Guest) -> None:
    for host in pair.hosts:
        host.virsh("destroy", guest.name)
        for pid in host.qemus(guest):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def stage() -> Iterator[Pair]:
    require_programs()
    with tempfile.TemporaryDirectory(prefix="slf") as folder, two_hosts(Path(folder)) as pair:
        yield pair


def main() -> int:
    parser = argparse.ArgumentParser(prog="make failures", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few cases only")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    arguments = parser.parse_args()
    cases = [(h, m, v) for h, m in MOMENTS for v in VICTIMS]
    if arguments.short:
        cases = list(SHORT)
    results: dict[tuple[str, str], Outcome] = {}
    with stage() as pair:
        for host, moment, victim in cases:
            name = f"{moment} at {host}"
            if arguments.only in f"{name}, {victim}":
                results[name, victim] = with_relays(pair, host, moment, victim)
                print(f"{name}, {victim}: {results[name, victim]}", file=sys.stderr, flush=True)
        bare: dict[tuple[str, str], Outcome] = {}
        for when, number in ALONE if not arguments.only else ():
            for victim in ALONE_VICTIMS:
                bare[f"{when} {number}", victim] = alone(pair, when, number, victim)
                print(f"libvirt alone: {when} {number}, {victim}: {bare[f'{when} {number}', victim]}", file=sys.stderr)
    _print_table("With Sealane", results)
    _print_table("libvirt alone", bare)
    bad = [case for case, outcome in results.items() if outcome.twice or len(outcome.where) != 1]
    print(f"{len(results)} cases, {len(bad)} without exactly one running guest: {bad}")
    return 1 if bad else 0


def _print_table(title: str, results: dict[tuple[str, str], Outcome]) -> None:
    if not results:
        return
    victims = list(dict.fromkeys(victim for _, victim in results))
    print(f"\n## {title}\n\n| moment | {' | '.join(victims)} |\n|---|{'---|' * len(victims)}")
    for moment in dict.fromkeys(moment for moment, _ in results):
        cells = [str(results.get((moment, victim), "")) for victim in victims]
        print(f"| {moment} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
