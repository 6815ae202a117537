"""The receivers of `sink_contract.py`: real ones (rsyslog, a file system) and fakes, which are named so."""

from __future__ import annotations

import base64
import uuid
from pathlib import Path
from typing import Any

from audit.siem.formats import Format, line_of
from audit.siem.formats.parse import parse_line
from audit.siem.formats.syslog import syslog_name
from audit.siem.https import HttpsPeer
from audit.siem.line_file import LineFileSink
from audit.siem.peer import Peer, Trust
from audit.siem.relp import RelpSink
from audit.siem.splunk import HecSettings, SplunkSink
from audit.siem.syslog import Resend, SyslogSink
from audit.siem.webhook import WebhookSettings, WebhookSink
from tests.audit.siem.certificates import CLIENT_NAME, TestAuthority
from tests.audit.siem.fake_https import SERVER_NAME as HTTPS_NAME
from tests.audit.siem.fake_https import FakeHttps, FakeSplunk, FakeWebhook
from tests.audit.siem.rsyslog import SERVER_NAME, Rsyslog
from tests.audit.siem.sink_contract import POISON

FEW_AGAIN = Resend(entries=50)
MAX_MESSAGE_BYTES = 64 * 1024
TOKEN = "9f0b2c4d-hec-token"
WEBHOOK_SECRET = base64.b64encode(bytes(range(32))).decode()


class FileReceiver:
    """A file; nothing can be killed but the file system, so `kill` takes the folder away."""

    def __init__(self, folder: Path, form: Format = Format.ENTRY) -> None:
        self.path = folder / "out" / "audit.log"
        self.path.parent.mkdir()
        self._away = folder / "away"
        self._form = form

    def sink(self) -> LineFileSink:
        return LineFileSink("file", self.path, line_of(self._form), 10**9, 3)

    def start(self) -> None:
        if self._away.exists():
            self._away.rename(self.path.parent)

    def kill(self) -> None:
        self.path.parent.rename(self._away)

    def freeze(self) -> None:
        """A disk cannot be frozen here."""

    thaw = freeze

    def held(self) -> list[str]:
        return [parse_line(line).id for line in self.path.read_bytes().splitlines()] if self.path.exists() else []

    def secrets(self) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing runs."""


class _TlsReceiver:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = TestAuthority(folder)
        self._client = self.authority.issue(CLIENT_NAME)

    @property
    def trust(self) -> Trust:
        return Trust(
            trust_bundle=self.authority.bundle,
            certificate=self._client.certificate,
            private_key=self._client.key,
        )

    def secrets(self) -> list[str]:
        return [self._client.key.read_text()]


class RsyslogReceiver(_TlsReceiver):
    """A real rsyslog, by syslog over TLS or by RELP."""

    def __init__(self, folder: Path, protocol: str, form: Format = Format.ENTRY, resend: Resend = FEW_AGAIN) -> None:
        super().__init__(folder)
        self.server = Rsyslog(folder, self.authority)
        self._resend = resend
        self._protocol = protocol
        self._form = form
        self.start = self.server.start
        self.kill = self.server.kill
        self.freeze = self.server.freeze
        self.thaw = self.server.thaw
        self.close = self.server.kill
        self.start()

    def sink(self) -> SyslogSink | RelpSink:
        line, hostname = line_of(self._form), syslog_name("gw-1")
        if self._protocol == "relp":
            return RelpSink("relp", self._peer(self.server.relp_port), line, hostname, MAX_MESSAGE_BYTES)
        peer = self._peer(self.server.syslog_port)
        return SyslogSink("syslog", peer, line, hostname, MAX_MESSAGE_BYTES, self._resend)

    def _peer(self, port: int) -> Peer:
        return Peer(host="127.0.0.1", port=port, server_name=SERVER_NAME, trust=self.trust)

    def held(self) -> list[str]:
        """A killed rsyslog's last line may be cut; it is none then."""
        text = self.server.text.read_bytes() if self.server.text.exists() else b""
        return [parse_line(line).id for line in text.split(b"\n")[:-1]]


class _HttpsReceiver(_TlsReceiver):
    server: FakeHttps

    def serve(self, answer: Any) -> None:
        self.server = FakeHttps(self.authority.issue(HTTPS_NAME, addresses=("127.0.0.1",)), answer)
        self.start = self.server.start
        self.kill = self.server.kill
        self.freeze = self.server.freeze
        self.thaw = self.server.thaw
        self.start()

    def close(self) -> None:
        self.server.thaw()
        self.server.kill()


class FakeSplunkReceiver(_HttpsReceiver):
    """A FAKE of Splunk's HEC."""

    def __init__(self, folder: Path, form: Format = Format.ENTRY) -> None:
        super().__init__(folder)
        self.splunk = FakeSplunk(TOKEN)
        self.splunk.poison = POISON
        self._form = form
        self.token_file = folder / "token"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(TOKEN + "\n")
        self.serve(self.splunk)

    def sink(self) -> SplunkSink:
        settings = HecSettings(
            token_file=self.token_file,
            channel=uuid.UUID(int=7),
            index="audit",
            form=self._form,
        )
        return SplunkSink("splunk", HttpsPeer(self.server.url, self.trust), settings, line_of(self._form), "gw-1")

    def held(self) -> list[str]:
        return [event["fields"]["event_id"] for event in self.splunk.events]

    def secrets(self) -> list[str]:
        return [*super().secrets(), TOKEN]


class FakeWebhookReceiver(_HttpsReceiver):
    """A FAKE of somebody's own receiver."""

    def __init__(self, folder: Path, form: Format = Format.ENTRY) -> None:
        super().__init__(folder)
        self.webhook = FakeWebhook()
        self.webhook.poison = POISON.encode()
        self._form = form
        self.key_file = folder / "webhook.key"
        self.key_file.touch(mode=0o600)
        self.key_file.write_text(f"whsec_{WEBHOOK_SECRET}\n")
        self.serve(self.webhook)

    def sink(self) -> WebhookSink:
        settings = WebhookSettings(key_file=self.key_file, form=self._form)
        return WebhookSink("webhook", HttpsPeer(f"{self.server.url}/audit", self.trust), settings, line_of(self._form))

    def held(self) -> list[str]:
        return [entry["id"] for entry in self.webhook.entries]

    def secrets(self) -> list[str]:
        return [*super().secrets(), WEBHOOK_SECRET]
