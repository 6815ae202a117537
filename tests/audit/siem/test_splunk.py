"""Against a FAKE of Splunk's HTTP Event Collector: no Splunk was run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from audit.siem.formats import Format
from audit.siem.sink import SinkAway
from tests.audit.siem.fake_https import Asked, Said
from tests.audit.siem.receivers import TOKEN, FakeSplunkReceiver
from tests.audit.siem.sink_contract import delivered, documents


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[FakeSplunkReceiver]:
    made = FakeSplunkReceiver(tmp_path)
    yield made
    made.close()


async def test_an_event_in_full(receiver: FakeSplunkReceiver) -> None:
    (document,) = documents(7, 8)
    sink = receiver.sink()
    await delivered(sink, [document])
    await sink.close()
    (event,) = receiver.splunk.events
    original = msgspec.json.decode(document.body["event"]["original"])
    assert event.pop("event") == {
        "hash": document.body["event"]["hash"],
        "id": document.id,
        "sequence": 7,
        "entry": original,
    }
    assert event == {
        "time": "1795381207.000",
        "host": "gw-1",
        "source": "sealane",
        "sourcetype": "sealane:audit",
        "index": "audit",
        "fields": {"event_id": document.id, "sequence": "7", "leaf_hash": document.body["event"]["hash"]},
    }
    first = receiver.server.asked[0]
    assert first.path == "/services/collector/event"
    assert first.headers["x-splunk-request-channel"] == "00000000-0000-0000-0000-000000000007"


async def test_a_text_format_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "cef").mkdir()
    receiver = FakeSplunkReceiver(tmp_path / "cef", Format.CEF)
    sink = receiver.sink()
    await delivered(sink, documents(1, 2))
    await sink.close()
    assert receiver.splunk.events[0]["event"].startswith("CEF:0|Sealane|")
    receiver.close()


async def test_a_batch_counts_once_splunk_says_that_it_is_indexed(receiver: FakeSplunkReceiver) -> None:
    receiver.splunk.unindexed = 3
    sink = receiver.sink()
    assert await delivered(sink, documents(0, 2)) == []
    assert [asked.path.partition("?")[0] for asked in receiver.server.asked] == [
        "/services/collector/event",
        *["/services/collector/ack"] * 4,
    ]
    await sink.close()


async def test_a_splunk_that_never_indexes_costs_a_deadline(receiver: FakeSplunkReceiver) -> None:
    receiver.splunk.unindexed = 10**9
    sink = receiver.sink()
    with trio.move_on_after(0.5) as scope:
        await sink.deliver(documents(0, 2))
    assert scope.cancelled_caught
    await sink.close()


async def test_without_acknowledgement_nothing_counts(receiver: FakeSplunkReceiver) -> None:
    receiver.splunk.acknowledges = False
    sink = receiver.sink()
    with pytest.raises(SinkAway, match="indexer acknowledgement is off"):
        await delivered(sink, documents(0, 1))
    await sink.close()


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (Said(403, b'{"text":"Invalid token","code":4}'), "the token is invalid"),
        (Said(400, b'{"text":"Incorrect index","code":7,"invalid-event-number":0}'), "may not write to this index"),
        (Said(503, b'{"text":"Server is busy","code":9}', {"retry-after": "4"}), "HTTP 503"),
        (Said(400, b'{"text":"Invalid data format","code":6,"invalid-event-number":99}'), "HTTP 400"),
        (Said(400, b'{"text":"Invalid data format","code":6,"invalid-event-number":-1}'), "HTTP 400"),
        (Said(200, b"<html>proxy login</html>"), "HTTP 200"),
        (Said(200, b'{"text":"Success","code":0,"ackId":"one"}'), "HTTP 200"),
        (Said(413, b""), "HTTP 413"),
        (Said(200, b'{"text":"\xff","code":0}'), "HTTP 200"),
        (Said(200, b'{"text":"x","more":' + b"[" * 30_000), "HTTP 200"),
    ],
)
async def test_what_says_neither_yes_nor_which_event_is_at_fault_is_later(
    receiver: FakeSplunkReceiver, said: Said, cause: str
) -> None:
    receiver.server.answer = lambda _asked: said
    sink = receiver.sink()
    with pytest.raises(SinkAway, match=cause) as away:
        await delivered(sink, documents(0, 2))
    assert TOKEN not in str(away.value)
    if said.status == 503:
        assert away.value.retry_after_seconds == 4
    await sink.close()


@pytest.mark.parametrize(
    "said", [b'{"acks":{"999":true,"1":"true"}}', b'{"acks":{"\xff":true}}', b'{"more":' + b"[" * 30_000]
)
async def test_an_acknowledgement_of_another_batch_or_one_that_is_none_is_no_yes(
    receiver: FakeSplunkReceiver, said: bytes
) -> None:
    honest = receiver.splunk

    def lies(asked: Asked) -> Said:
        if "/ack?" in asked.path:
            return Said(200, said)
        return honest(asked)

    receiver.server.answer = lies
    sink = receiver.sink()
    with pytest.raises(SinkAway, match="not what HEC sends"):
        await delivered(sink, documents(0, 1))
    await sink.close()


async def test_a_new_token_in_the_file_is_used_without_a_restart(receiver: FakeSplunkReceiver) -> None:
    sink = receiver.sink()
    receiver.token_file.write_text("revoked")
    with pytest.raises(SinkAway, match="invalid"):
        await delivered(sink, documents(0, 1))
    receiver.token_file.write_text(TOKEN)
    assert await delivered(sink, documents(0, 1)) == []
    receiver.token_file.chmod(0o644)
    with pytest.raises(SinkAway, match="chmod 600"):
        await delivered(sink, documents(0, 1))
    await sink.close()
