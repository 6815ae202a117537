"""Every sink down or hanging before a backlog of a million entries: what the process of a gateway may take for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1024 * 1024
ALLOWED = 150 * MIB

_CHILD = """
import socket, sys, uuid
from pathlib import Path
import trio
from audit.siem.document import document_of
from audit.siem.formats import Format, line_of
from audit.siem.https import HttpsPeer
from audit.siem.line_file import LineFileSink
from audit.siem.peer import Peer, Trust
from audit.siem.relp import RelpSink
from audit.siem.shipper import Shipper
from audit.siem.splunk import HecSettings, SplunkSink
from audit.siem.status import Terms
from audit.siem.syslog import SyslogSink
from audit.siem.webhook import WebhookSettings, WebhookSink
from tests.audit.samples import ORIGIN, entry

folder = Path(sys.argv[1])
LARGE = [entry(index, details={"n": "x" * 20_000}) for index in range(50)]

class Log:
    origin, size = ORIGIN, 1_000_000
    async def read(self, start, end):
        return [LARGE[index % 50] for index in range(start, end)]

async def main():
    down = socket.create_server(("127.0.0.1", 0))
    gone = down.getsockname()[1]
    down.close()
    hanging = socket.create_server(("127.0.0.1", 0))  # takes connections and says nothing
    silent = hanging.getsockname()[1]
    secret = folder / "secret"
    secret.touch(mode=0o600)
    secret.write_text("whsec_" + "A" * 44)
    sinks = [LineFileSink("file", folder / "none" / "a", line_of(Format.ECS), 10**6, 3)]
    for port in (gone, silent):
        peer = Peer(host="127.0.0.1", port=port, trust=Trust())
        https = lambda: HttpsPeer(f"https://127.0.0.1:{port}", Trust())
        hec = HecSettings(token_file=secret, channel=uuid.UUID(int=1), max_event_bytes=60_000)
        sinks += [
            SyslogSink(f"syslog-{port}", peer, line_of(Format.CEF), "gw", 60_000),
            RelpSink(f"relp-{port}", peer, line_of(Format.OCSF), "gw", 60_000),
            SplunkSink(f"splunk-{port}", https(), hec, line_of(Format.ENTRY), "gw"),
            WebhookSink(f"webhook-{port}", https(), WebhookSettings(key_file=secret), line_of(Format.ECS)),
        ]
    terms = Terms(deadline_seconds=0.5, longest_pause_seconds=0.2, batch_entries=500)
    async def tell(event):
        pass
    def write(path, data):
        path.write_bytes(data)
    states = []
    with trio.move_on_after(60):
        async with trio.open_nursery() as nursery:
            for sink in sinks:
                shipper = Shipper(sink, Log(), folder, write, tell, terms, document_of)
                states.append(shipper.status)
                nursery.start_soon(shipper.run)
            await trio.sleep(4)
            while any(state.state.value != "failing" for state in states):
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    assert [state.state.value for state in states] == ["failing"] * len(sinks), states
    hanging.close()
    # Not getrusage: that counts what the process was before exec, a copy of pytest, too.
    (peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    print(int(peak.split()[1]) * 1024)

trio.run(main)
"""


@pytest.mark.whole
def test_nine_sinks_that_are_down_stay_within_the_limit(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < ALLOWED, f"{int(run.stdout) / MIB:.0f} MiB"
