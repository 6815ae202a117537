"""Against a FAKE receiver; signatures against the verifier of Standard Webhooks, and the one in our documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from standardwebhooks.webhooks import Webhook

from audit.siem.sink import SinkAway
from audit.siem.webhook import message_id
from tests.audit.siem.fake_https import Asked, Said
from tests.audit.siem.receivers import WEBHOOK_SECRET, FakeWebhookReceiver
from tests.audit.siem.sink_contract import delivered, documents

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "siem-receivers.md"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[FakeWebhookReceiver]:
    made = FakeWebhookReceiver(tmp_path)
    yield made
    made.close()


async def posted(receiver: FakeWebhookReceiver, start: int = 0, end: int = 3) -> Asked:
    sink = receiver.sink()
    assert await delivered(sink, documents(start, end)) == []
    await sink.close()
    return receiver.server.asked[-1]


async def test_a_request_in_full_verifies_with_the_published_library(receiver: FakeWebhookReceiver) -> None:
    asked = await posted(receiver)
    read = Webhook(WEBHOOK_SECRET).verify(asked.body, asked.headers)
    assert read == msgspec.json.decode(asked.body)
    assert asked.path == "/audit"
    assert read["type"] == "sealane.audit.entries"
    assert [entry["id"] for entry in read["data"]] == [each.id for each in documents(0, 3)]


async def test_the_same_batch_has_the_same_id_and_another_one_another(receiver: FakeWebhookReceiver) -> None:
    first, again = await posted(receiver), await posted(receiver)
    assert first.headers["webhook-id"] == again.headers["webhook-id"]
    ids = {message_id(documents(start, end)) for start, end in [(0, 3), (0, 2), (1, 3), (0, 4)]}
    assert len(ids) == 4
    assert not any("." in each for each in ids)


async def test_every_answer_but_yes_and_never_is_later(receiver: FakeWebhookReceiver) -> None:
    sink = receiver.sink()
    for status in (301, 401, 403, 404, 408, 410, 429, 500, 503):
        receiver.server.answer = lambda _asked, status=status: Said(status, b"no")  # type: ignore[misc]
        with pytest.raises(SinkAway, match=f"HTTP {status}"):
            await delivered(sink, documents(0, 2))
    await sink.close()


async def test_a_receiver_that_refuses_everything_is_at_fault_itself(receiver: FakeWebhookReceiver) -> None:
    receiver.server.answer = lambda _asked: Said(400, b"I take nothing")
    sink = receiver.sink()
    with pytest.raises(SinkAway, match="I take nothing"):
        await delivered(sink, documents(0, 200))
    assert len(receiver.server.asked) < 64
    await sink.close()


async def test_a_bad_key_file_is_named_and_not_shown(receiver: FakeWebhookReceiver) -> None:
    receiver.key_file.write_text(WEBHOOK_SECRET)
    sink = receiver.sink()
    with pytest.raises(SinkAway, match=r"webhook\.key: line 1 is neither") as away:
        await delivered(sink, documents(0, 1))
    assert WEBHOOK_SECRET not in str(away.value)
    await sink.close()


async def test_the_verifier_of_the_documentation_accepts_ours_once_and_refuses_the_rest(
    receiver: FakeWebhookReceiver,
) -> None:
    (code,) = re.findall(r"```python\n(# receiver\.py\n.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    sample: dict[str, Any] = {}
    exec(compile(code, "receiver.py", "exec"), sample)  # noqa: S102
    asked = await posted(receiver)
    check, seen = sample["verified"], set[str]()
    secret = f"whsec_{WEBHOOK_SECRET}"
    now = int(asked.headers["webhook-timestamp"])
    assert check(secret, asked.headers, asked.body, seen, now) == msgspec.json.decode(asked.body)
    assert check(secret, asked.headers, asked.body, seen, now) is None, "a replay"
    for headers, body, moment in [
        (asked.headers, asked.body + b" ", now),
        (asked.headers | {"webhook-id": "other"}, asked.body, now),
        (asked.headers | {"webhook-signature": "v1,AAAA"}, asked.body, now),
        (asked.headers, asked.body, now + 301),
        (asked.headers, asked.body, now - 301),
    ]:
        with pytest.raises(ValueError, match=r"signature|old"):
            check(secret, headers, body, set(), moment)
