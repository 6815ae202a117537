"""A real rsyslog: syslog over TLS and RELP over TLS on loopback, each message's text as a line of a file.

Its queues are direct: a message is in the file (the kernel's, at least) before it is acknowledged. Both certificates
are checked by name. It is started as the operator would start it, but in the foreground and in a folder of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.audit.siem.certificates import CLIENT_NAME, Pair, TestAuthority

START_SECONDS = 60.0
SERVER_NAME = "rsyslog.test"
MAX_MESSAGE_BYTES = 256 * 1024

_CONFIGURATION = """
global(
    workDirectory="{folder}" maxMessageSize="256k" net.enableDNS="off"
    defaultNetstreamDriver="ossl" defaultNetstreamDriverCAFile="{bundle}"
    defaultNetstreamDriverCertFile="{certificate}" defaultNetstreamDriverKeyFile="{key}"
)
main_queue(queue.type="Direct")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="x509/name"
    permittedPeer="{client}")
module(load="imrelp")
template(name="text" type="string" string="%msg%\\n")
template(name="parts" type="list" option.jsonf="on") {{
    property(outname="pri" name="pri" format="jsonf")
    property(outname="time" name="timereported" dateFormat="rfc3339" format="jsonf")
    property(outname="hostname" name="hostname" format="jsonf")
    property(outname="app" name="app-name" format="jsonf")
    property(outname="procid" name="procid" format="jsonf")
    property(outname="msgid" name="msgid" format="jsonf")
    property(outname="structure" name="structured-data" format="jsonf")
    property(outname="msg" name="msg" format="jsonf")
}}
ruleset(name="store" queue.type="Direct") {{
    action(type="omfile" file="{text}" template="text" asyncWriting="off")
    {parts}
}}
input(type="imtcp" address="127.0.0.1" port="{syslog_port}" ruleset="store")
input(type="imrelp" address="127.0.0.1" port="{relp_port}" ruleset="store" maxDataSize="256k" tls="on"
    tls.caCert="{bundle}" tls.myCert="{certificate}" tls.myPrivKey="{key}" tls.authMode="name"
    tls.permittedPeer="{client}")
"""
_PARTS = 'action(type="omfile" file="{file}" template="parts" asyncWriting="off")'


class Rsyslog:
    """`text`: what it stored, a line for each message; `parts`: the same as rsyslog's parser understood it, as JSON."""

    def __init__(
        self,
        folder: Path,
        authority: TestAuthority,
        *,
        pair: Pair | None = None,
        with_parts: bool = False,
    ) -> None:
        self.folder = folder
        self.text = folder / "text.log"
        self.parts = folder / "parts.log"
        self.syslog_port, self.relp_port = free_ports(2)
        self._with_parts = with_parts
        self.authority = authority
        self._pair = pair or authority.issue(SERVER_NAME)
        self._process: subprocess.Popen[bytes] | None = None

    def use(self, pair: Pair) -> None:
        """With this certificate from the next start on."""
        self._pair = pair

    def start(self, *, preexec: Sequence[str] = ()) -> None:
        """Returns once both ports take connections. `preexec`: a command that starts the command (`prlimit …`)."""
        configuration = self.folder / "rsyslog.conf"
        parts = _PARTS.format(file=self.parts) if self._with_parts else ""
        configuration.write_text(
            _CONFIGURATION.format(
                folder=self.folder,
                bundle=self.authority.bundle,
                certificate=self._pair.certificate,
                key=self._pair.key,
                client=CLIENT_NAME,
                text=self.text,
                parts=parts,
                syslog_port=self.syslog_port,
                relp_port=self.relp_port,
            )
        )
        log = (self.folder / "rsyslogd.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [*preexec, "rsyslogd", "-n", "-f", str(configuration), "-i", str(self.folder / "rsyslogd.pid")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
            )
        deadline = time.monotonic() + START_SECONDS
        while not (_listens(self.syslog_port) and _listens(self.relp_port)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "rsyslogd.log").read_text(errors="replace")[-2000:]
                self.stop()
                raise AssertionError(f"rsyslogd did not start: {said}")
            time.sleep(0.01)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        self._end(signal.SIGKILL)
        (self.folder / "rsyslogd.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def lines(self) -> list[bytes]:
        return self.text.read_bytes().splitlines() if self.text.exists() else []

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _listens(port: int) -> bool:
    """By the kernel's table: a connection would be one that rsyslog complains of."""
    wanted = f"0100007F:{port:04X}"
    table = Path("/proc/net/tcp").read_text()
    return any(line.split()[1] == wanted and line.split()[3] == "0A" for line in table.splitlines()[1:])
