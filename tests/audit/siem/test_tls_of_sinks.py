"""What each sink over TLS refuses, and that the same sink delivers once it is put right: no restart of ours."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.audit.siem.certificates import TestAuthority
from tests.audit.siem.fake_https import SERVER_NAME as HTTPS_NAME
from tests.audit.siem.receivers import FakeSplunkReceiver, FakeWebhookReceiver, RsyslogReceiver
from tests.audit.siem.rsyslog import SERVER_NAME
from tests.audit.siem.sink_contract import cause_of_refusal, delivered, documents, until

pytestmark = pytest.mark.real


@pytest.fixture(params=["syslog", "relp", "fake-splunk", "fake-webhook"])
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    makers = {"fake-splunk": FakeSplunkReceiver, "fake-webhook": FakeWebhookReceiver}
    maker = makers.get(request.param)
    made: Any = RsyslogReceiver(tmp_path, request.param) if maker is None else maker(tmp_path)
    yield made
    made.close()


def present(receiver: Any, authority: TestAuthority, name: str | None = None, ends_in: timedelta | None = None) -> None:
    """Restart it with another certificate."""
    right = HTTPS_NAME if hasattr(receiver.server, "url") else SERVER_NAME
    name = name or right
    addresses = ("127.0.0.1",) if name == HTTPS_NAME else ()
    receiver.kill()
    pair = authority.issue(name, ends_in=ends_in or timedelta(days=1), addresses=addresses)
    if hasattr(receiver.server, "use"):
        receiver.server.use(pair)
    else:
        receiver.server.pair = pair
    receiver.start()


async def test_a_certificate_that_expired_or_names_another_or_is_of_another_authority_is_refused_until_renewed(
    receiver: Any, tmp_path: Path
) -> None:
    sink = receiver.sink()
    (tmp_path / "other").mkdir()
    stranger = TestAuthority(tmp_path / "other")
    wrong = [
        ((receiver.authority, None, timedelta(days=-1)), "certificate has expired"),
        ((receiver.authority, "impostor.test", None), "mismatch"),
        ((stranger, None, None), "unable to get local issuer|self.signed"),
    ]
    for (authority, name, ends_in), why in wrong:
        present(receiver, authority, name, ends_in)
        cause = await cause_of_refusal(sink, documents(0, 1))
        assert cause is not None
        assert "its certificate is not accepted" in cause
        assert any(part.replace(".", "") in cause.replace("-", "") for part in why.split("|")), cause
    assert receiver.held() == []
    present(receiver, receiver.authority)
    assert await delivered(sink, documents(0, 1)) == []
    await until(lambda: len(receiver.held()) == 1)
    await sink.close()


async def test_our_own_certificate_is_read_at_each_connection_and_its_key_must_be_ours_alone(receiver: Any) -> None:
    sink = receiver.sink()
    trust = receiver.trust
    key = trust.private_key
    key.chmod(0o640)
    cause = await cause_of_refusal(sink, documents(0, 1))
    assert cause is not None
    assert "chmod 600" in cause
    key.chmod(0o600)
    whole = key.read_bytes()
    key.write_bytes(b"rubbish")
    cause = await cause_of_refusal(sink, documents(0, 1))
    assert cause is not None
    assert "cannot be used" in cause
    key.write_bytes(whole)
    assert await delivered(sink, documents(0, 1)) == []
    await sink.close()


async def test_a_missing_trust_bundle_is_named(receiver: Any) -> None:
    sink = receiver.sink()
    bundle = receiver.authority.bundle
    content = bundle.read_bytes()
    bundle.write_bytes(b"")
    cause = await cause_of_refusal(sink, documents(0, 1))
    assert cause is not None
    assert "ca.pem: is no bundle of certificates" in cause
    bundle.write_bytes(content)
    assert await delivered(sink, documents(0, 1)) == []
    await sink.close()
