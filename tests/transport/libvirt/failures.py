"""Something dies at a chosen moment of a migration by libvirt: where does the guest run then?

    python -m tests.transport.libvirt.failures [--kind KIND] [--short] [--only TEXT]…

KIND is how the guest moves: p2p, direct, storage, parallel, postcopy, or all of them. Each case moves a new guest
from host a to host b and stops the migration at a moment (a call of libvirt's RPC or a durable state, before or after),
kills something, lets the rest go on, starts again what died, and counts where the guest runs. The same for libvirt
alone, with a proxy in the relays' place. Prints two tables in Markdown.
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
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.demo.guest import count_passes
from tests.transport.libvirt.hosts import Guest, Host, Pair, make_disk, require_programs, two_hosts, wait_for
from transport.libvirt_rpc.framing import PacketReader

SETTLED_SECONDS = 120.0
# In post-copy, while Finish is under way: the guest runs at b, and most of its memory is still at a.
DURING_FINISH = "during:306"
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
# In post-copy the guest is handed over before its Finish, and nothing holds it back there (ADR 0006, point 7).
POST_COPY_MOMENTS = (
    ("a", "before:303"),
    ("b", "before:303"),
    ("b", "after:303"),
    ("a", "after:303"),
    ("a", "told:303"),
    ("a", "before:handed-over"),
    ("a", "after:handed-over"),
    ("b", "before:running"),
    ("b", "after:running"),
    ("b", "after:started"),
    ("a", "after:outcome-running"),
    ("a", "before:306"),
    ("b", "before:306"),
    ("b", DURING_FINISH),
    ("b", "after:306"),
    ("a", "after:306"),
    ("a", "told:306"),
)
VICTIMS = ("relay a", "relay b", "libvirtd a", "libvirtd b", "connection")
CLIENT = "virsh"
# For libvirt alone: the same at the calls that there are.
ALONE = tuple((when, number) for number in (303, 306) for when in ("before", "after"))
POST_COPY_ALONE = (*ALONE[:3], ("during", 306), *ALONE[3:])
ALONE_VICTIMS = ("connection", "libvirtd a", "libvirtd b")


@dataclass(frozen=True)
class Kind:
    """A way in which a guest moves. `short`: the cases that `make test` runs."""

    options: tuple[str, ...]
    short: tuple[tuple[str, str, str], ...]
    moments: tuple[tuple[str, str], ...] = MOMENTS
    victims: tuple[str, ...] = VICTIMS
    alone_victims: tuple[str, ...] = ALONE_VICTIMS
    has_disk: bool = False
    qemu_user: str = "libvirt-qemu"

    def options_at(self, moment: str) -> tuple[str, ...]:
        """Of virsh; what has to last has less to hurry."""
        return ("--live", "--p2p", *_IN_FLIGHT) if moment == DURING_FINISH else self.options

    @property
    def alone_moments(self) -> tuple[tuple[str, int], ...]:
        return POST_COPY_ALONE if self.moments is POST_COPY_MOMENTS else ALONE


_IN_FLIGHT = ("--postcopy", "--bandwidth", "8", "--postcopy-bandwidth", "8")
KINDS = {
    "p2p": Kind(
        ("--live", "--p2p"),
        (
            ("b", "after:303", "relay b"),
            ("b", "after:306", "connection"),
            ("a", "after:306", "relay a"),
            ("a", "after:accepted", "relay a"),
            ("a", "after:accepted", "libvirtd a"),
            ("b", "after:running", "relay b"),
        ),
    ),
    "direct": Kind(
        ("--live",),
        (("a", "after:306", CLIENT), ("a", "after:accepted", CLIENT), ("a", "after:accepted", "libvirtd a")),
        victims=(*VICTIMS, CLIENT),
        alone_victims=(*ALONE_VICTIMS, CLIENT),
    ),
    "storage": Kind(("--live", "--p2p", "--copy-storage-all"), (("b", "after:306", "connection"),), has_disk=True),
    "parallel": Kind(("--live", "--p2p", "--parallel"), (("b", "after:306", "connection"),)),
    "postcopy": Kind(
        ("--live", "--p2p", "--postcopy", "--postcopy-after-precopy", "--bandwidth", "8"),
        (("a", "before:handed-over", "connection"),),
        moments=POST_COPY_MOMENTS,
        qemu_user="root",
    ),
}


class NotReached(AssertionError):
    """The migration ended, or hung, before the moment at which something was to die: no case at all."""


@dataclass(frozen=True)
class Outcome:
    """`where`: hosts on which the guest counts, at the end. `twice`: whether it ever ran on both. `resumed`: that it
    runs only because an operator has let libvirt take its post-copy up."""

    where: tuple[str, ...]
    states: tuple[str, str]
    twice: bool
    resumed: bool = False

    def __str__(self) -> str:
        if self.twice:
            return "**on both**"
        if self.where:
            return f"on {self.where[0]}" + (", resumed" if self.resumed else "")
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


def kill(pair: Pair, victim: str, mover: subprocess.Popen[bytes]) -> None:
    what, _, name = victim.partition(" ")
    match what:
        case "virsh":
            for child in Path(f"/proc/{mover.pid}/task/{mover.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        case "relay":
            relay = pair.host(name).relay
            assert relay is not None
            relay.kill()
        case "libvirtd":
            pid = pair.host(name).libvirtd()
            os.kill(pid, signal.SIGKILL)
            # Until then it holds its lock, and another cannot start.
            wait_for(lambda: not Path(f"/proc/{pid}").exists(), f"libvirtd of host {name} has ended")
        case "connection":
            cut = pair.a.inside("ss", "-K", "dst", pair.b.address)
            subprocess.run(cut, check=True, capture_output=True, timeout=20)


def revive(pair: Pair, victim: str) -> None:
    what, _, name = victim.partition(" ")
    if what == "libvirtd":
        pair.host(name).start_libvirtd()


def with_relays(pair: Pair, kind: Kind, host: str, moment: str, victim: str) -> Outcome:
    """One case. Both relays are new, one of them waits at the moment; afterwards they are new again."""
    for each in pair.hosts:
        if each.relay is not None:
            each.relay.stop()
        pair.start_relay(each, pause=moment if each.name == host else "")
    guest, name = _guest(pair, kind)
    reached = pair.folder / f"reached-{host}"
    disks = ["--disks-uri", f"unix://{pair.a.front.parent}/disks-{name}.sock"] if kind.has_disk else []
    mover = _virsh(pair.a, guest, pair.a.front_uri, *kind.options_at(moment), *disks)
    try:
        with contextlib.suppress(AssertionError):
            if moment == DURING_FINISH:
                switch(pair, guest, mover)
                reached.touch()
            wait_for(lambda: reached.exists() or mover.poll() is not None, f"{moment} at {host}", SETTLED_SECONDS)
        if not reached.exists():
            raise NotReached("\n".join(each.relay.log.read_text()[-3000:] for each in pair.hosts if each.relay))
        kill(pair, victim, mover)
        (pair.folder / f"go-{host}").touch()
        if victim.startswith("relay"):
            pair.start_relay(pair.host(victim[-1]))
        revive(pair, victim)
        # It may go on after all: a lost connection is made again.
        with contextlib.suppress(subprocess.TimeoutExpired):
            mover.wait(SETTLED_SECONDS)
        outcome = outcome_of(pair, guest, SETTLED_SECONDS)
        if outcome.where or outcome.twice or moment != DURING_FINISH:
            return outcome
        with contextlib.suppress(AssertionError):
            wait_for(lambda: resume(pair, guest)[0] == 0, "post-copy is taken up", SETTLED_SECONDS)
        return replace(outcome_of(pair, guest, SETTLED_SECONDS), resumed=True)
    finally:
        mover.kill()
        mover.wait(20)
        for name in ("reached", "go"):
            (pair.folder / f"{name}-{host}").unlink(missing_ok=True)
        _clear(pair, guest)


def switch(pair: Pair, guest: Guest, mover: subprocess.Popen[bytes]) -> None:
    """To post-copy, as soon as some memory is under way; until the guest runs at b."""

    def is_under_way() -> bool:
        return "Data processed" in pair.a.virsh("domjobinfo", guest.name)[1]

    wait_for(is_under_way, "memory is sent", SETTLED_SECONDS)
    code, said = pair.a.virsh("migrate-postcopy", guest.name)
    assert code == 0, said
    wait_for(lambda: pair.b.state(guest) == "running", "the guest runs at b", SETTLED_SECONDS)
    assert mover.poll() is None, "all of its memory was there before anything could die"


def resume(pair: Pair, guest: Guest, *way: str) -> tuple[int, str]:
    """As an operator does, through the front; what virsh said. `way`: `--p2p` if nothing is given."""
    return pair.a.migrate(guest, "--live", *(way or ("--p2p",)), "--postcopy", "--postcopy-resume")


def _guest(pair: Pair, kind: Kind) -> tuple[Guest, str]:
    """A new guest on host a, with a disk on each host's own storage if it is about disks; the disk's name."""
    name = f"d{len(pair.guests)}"
    if not kind.has_disk:
        return pair.guest(pair.a), name
    make_disk(pair.b, name, None)
    return pair.guest(pair.a, devices=make_disk(pair.a, name, b"disk")), name


def alone(pair: Pair, kind: Kind, when: str, procedure: int, victim: str) -> Outcome:
    """The same with libvirt's own protocol, through a proxy that waits at the moment."""
    guest, _ = _guest(pair, kind)
    path = pair.folder / f"proxy-{guest.name}.sock"
    with Proxy(path, pair.b.socket, when, procedure) as proxy:
        uri = f"qemu+unix:///system?socket={path}"
        folder = pair.folder / f"m-{guest.name}"
        folder.mkdir()
        folder.chmod(0o777)
        disks = ["--disks-uri", f"unix://{folder}/d.sock"] if kind.has_disk else []
        options = kind.options_at(f"{when}:{procedure}")
        mover = _virsh(pair.a, guest, uri, "--migrateuri", f"unix://{folder}/m.sock", *options, *disks)
        try:
            if when == "during":
                switch(pair, guest, mover)
            elif not proxy.reached.wait(30):
                raise NotReached("libvirt did not make this call")
            if victim == "connection":
                proxy.cut()
            else:
                kill(pair, victim, mover)
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
    command = host.inside("virsh", "-c", "qemu:///system", "migrate", guest.name, "--desturi", uri, *options)
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _clear(pair: Pair, guest: Guest) -> None:
    for host in pair.hosts:
        host.virsh("destroy", guest.name)
        for pid in host.qemus(guest):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def stage(kind: Kind) -> Iterator[Pair]:
    require_programs()
    with (
        tempfile.TemporaryDirectory(prefix="slf") as folder,
        two_hosts(Path(folder), qemu_user=kind.qemu_user) as pair,
    ):
        yield pair


def main() -> int:
    parser = argparse.ArgumentParser(prog="make failures", description=__doc__)
    parser.add_argument("--kind", choices=[*KINDS, "all"], default="p2p", help="how the guest moves (default: p2p)")
    parser.add_argument("--short", action="store_true", help="a few cases only")
    parser.add_argument("--only", action="append", help="cases whose name holds this; may be given more than once")
    arguments = parser.parse_args()
    chosen = list(KINDS) if arguments.kind == "all" else [arguments.kind]
    return max([_run(name, short=arguments.short, only=arguments.only or []) for name in chosen])


def _run(name: str, *, short: bool, only: list[str]) -> int:
    """All cases of one kind; 1 if the guest ever ran twice, or does not run where nothing had died with it."""
    kind = KINDS[name]
    cases = kind.short if short else [(h, m, v) for h, m in kind.moments for v in kind.victims]
    results: dict[tuple[str, str], Outcome] = {}
    bare: dict[tuple[str, str], Outcome] = {}
    missed: list[tuple[str, str]] = []
    with stage(kind) as pair:
        for host, moment, victim in cases:
            case = f"{moment} at {host}"
            if not only or any(each in f"{case}, {victim}" for each in only):
                try:
                    results[case, victim] = with_relays(pair, kind, host, moment, victim)
                except NotReached as error:
                    missed.append((case, victim))
                    print(f"{name}: {case}, {victim}: not reached\n{error}", file=sys.stderr, flush=True)
                    continue
                print(f"{name}: {case}, {victim}: {results[case, victim]}", file=sys.stderr, flush=True)
        for when, number in kind.alone_moments:
            for victim in kind.alone_victims:
                if only and not any(each in f"alone: {when} {number}, {victim}" for each in only):
                    continue
                bare[f"{when} {number}", victim] = alone(pair, kind, when, number, victim)
                said = bare[f"{when} {number}", victim]
                print(f"{name}: libvirt alone: {when} {number}, {victim}: {said}", file=sys.stderr, flush=True)
    _print_table(f"{name}, with Sealane", results)
    _print_table(f"{name}, libvirt alone", bare)
    twice = [case for case, outcome in results.items() if outcome.twice]
    nowhere = [case for case, outcome in results.items() if len(outcome.where) != 1]
    print(f"{name}: {len(results)} cases; on both hosts: {twice}; without a running guest: {nowhere}", flush=True)
    print(f"{name}: moments that were not reached: {missed}", flush=True)
    return 1 if twice or missed or (nowhere and kind.moments is not POST_COPY_MOMENTS) else 0


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
