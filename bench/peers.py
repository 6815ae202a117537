"""Pairs of processes that carry one stream:

    sender → `enter` (unix socket) → source process ═ TCP ═ destination process → `leave` (unix socket) → receiver

The receiver listens on `leave` before a pair is started. Each pair is started anew for each run. All TLS is 1.3,
mutual, AES-256-GCM, as Sealane's lanes are. One thread each: one stream cannot use more.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.harness import BenchError, wait_until

PEER_NAMES = ("direct", "socat", "haproxy", "stunnel", "qemu-tls", "sealane", "sealane-digests", "sealane-tls")
VM = "5ea1a4e0-0000-4000-8000-00000000be9c"
CIPHER = "TLS_AES_256_GCM_SHA384"
# The best of what was tried: 16 (the default), 32, 64, 128 and 256 KiB for haproxy, which differ by a tenth or so;
# 64, 128, 256 KiB and 1 MiB for socat, which likes large ones (8 KiB is its default).
HAPROXY_BUFFER_BYTES = 64 * 1024
SOCAT_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Carrier:
    """A pair that is ready for a connection to `enter`. `pids` are the processes that are measured."""

    enter: Path
    pids: tuple[int, ...]


# Takes a folder of this run and the socket that the receiver listens on.
Start = Callable[[Path, Path], AbstractContextManager[Carrier]]


@contextmanager
def direct(folder: Path, leave: Path) -> Iterator[Carrier]:  # noqa: ARG001 - a Start as the others
    """No relay at all: one unix socket."""
    yield Carrier(leave, ())


@contextmanager
def socat(folder: Path, leave: Path) -> Iterator[Carrier]:
    """Plaintext: what forwarding costs without any protection."""
    port = free_port()
    enter = folder / "enter.sock"
    buffer = ("-b", str(SOCAT_BUFFER_BYTES))
    # reuseaddr is fork's usual companion: the port may still be in TIME_WAIT from an earlier run.
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork"
    accept = f"UNIX-LISTEN:{enter},fork"
    with (
        running(["socat", *buffer, listen, f"UNIX-CONNECT:{leave}"], folder / "destination.log") as destination,
        running(["socat", *buffer, accept, f"TCP:127.0.0.1:{port}"], folder / "source.log") as source,
    ):
        _wait_port(port)
        wait_until(enter.is_socket, "socat's start")
        yield Carrier(enter, (source.pid, destination.pid))


def haproxy(certificates: Path) -> Start:
    """TLS 1.3, mutual, between two haproxy processes."""

    def config(bind: str, server: str) -> str:
        return (
            f"global\n  nbthread 1\n  tune.bufsize {HAPROXY_BUFFER_BYTES}\n"
            "defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n"
            f"frontend in\n  bind {bind}\n  default_backend out\n"
            f"backend out\n  server peer {server}\n"
        )

    @contextmanager
    def start(folder: Path, leave: Path) -> Iterator[Carrier]:
        port = free_port()
        enter = folder / "enter.sock"
        tls = f"ssl verify required ca-file {certificates / 'ca.pem'} ciphersuites {CIPHER} ssl-min-ver TLSv1.3"
        bind = f"127.0.0.1:{port} {tls} crt {certificates / 'server.pem'}"
        server = f"127.0.0.1:{port} {tls} crt {certificates / 'client.pem'} verifyhost localhost"
        files = (folder / "destination.cfg", folder / "source.cfg")
        files[0].write_text(config(bind, f"unix@{leave}"))
        files[1].write_text(config(f"unix@{enter}", server))
        with (
            running(["haproxy", "-db", "-f", str(files[0])], folder / "destination.log") as destination,
            running(["haproxy", "-db", "-f", str(files[1])], folder / "source.log") as source,
        ):
            _wait_port(port)
            wait_until(enter.is_socket, "haproxy's start")
            yield Carrier(enter, (source.pid, destination.pid))

    return start


def stunnel(certificates: Path) -> Start:
    """TLS 1.3, mutual, between two stunnel processes."""

    def config(folder: Path, end: str, accept: str, connect: str) -> str:
        client = "client = yes\ncheckHost = localhost\n" if end == "client" else "client = no\n"
        return (
            f"foreground = yes\npid =\ndebug = err\nsyslog = no\noutput = {folder / f'stunnel-{end}.log'}\n"
            f"[lane]\n{client}accept = {accept}\nconnect = {connect}\ncert = {certificates / f'{end}.pem'}\n"
            f"CAfile = {certificates / 'ca.pem'}\nverifyChain = yes\n"
            f"sslVersionMin = TLSv1.3\nciphersuites = {CIPHER}\n"
        )

    @contextmanager
    def start(folder: Path, leave: Path) -> Iterator[Carrier]:
        port = free_port()
        enter = folder / "enter.sock"
        files = (folder / "destination.conf", folder / "source.conf")
        files[0].write_text(config(folder, "server", f"127.0.0.1:{port}", str(leave)))
        files[1].write_text(config(folder, "client", str(enter), f"127.0.0.1:{port}"))
        with (
            running(["stunnel4", str(files[0])], folder / "destination.log") as destination,
            running(["stunnel4", str(files[1])], folder / "source.log") as source,
        ):
            _wait_port(port)
            wait_until(enter.is_socket, "stunnel's start")
            yield Carrier(enter, (source.pid, destination.pid))

    return start


def free_port() -> int:
    """A TCP port of loopback that nobody used a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives as long as the block. Its output goes to `log`, whose end an error of the block shows."""
    if shutil.which(command[0]) is None:
        raise BenchError(f"{command[0]} is missing: make bench installs it")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    except BenchError as error:
        raise BenchError(f"{error}\n{Path(command[0]).name}: {log.read_text(errors='replace')[-2000:]}") from error
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_port(port: int) -> None:
    """Wait until a port is listened on, by the kernel's table: a trial connection would be carried as a stream."""
    wanted = f"0100007F:{port:04X}"

    def listening() -> bool:
        rows = (line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:])
        return any(row[1] == wanted and row[3] == "0A" for row in rows)

    wait_until(listening, f"listening on port {port}")
