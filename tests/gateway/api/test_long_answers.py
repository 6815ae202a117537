"""Long answers are the JSON that they would be at once, in pieces, and nobody waits for ever for who reads them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from gateway.api.long_answers import PIECE_BYTES, LongAnswer, pieces

values = st.recursive(st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=5), st.lists, max_leaves=5)


@given(st.dictionaries(st.text(max_size=5), values, min_size=1))
def test_it_says_the_same(content: dict[str, Any]) -> None:
    assert b"".join(pieces(content)) == msgspec.json.encode(content)


def test_no_piece_is_much_larger_than_an_entry() -> None:
    content = {"records": [{"text": "x" * 60_000}] * 50, "next": None}
    made = list(pieces(content))
    assert b"".join(made) == msgspec.json.encode(content)
    assert max(map(len, made)) < PIECE_BYTES + 61_000


@pytest.mark.parametrize("reads", [True, False])
async def test_it_is_sent_whole_or_its_connection_ends(autojump_clock: MockClock, reads: bool) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        await trio.sleep(0.01 if reads else 25)
        sent.append(message)

    begun, content, hung_up = trio.current_time(), {"records": ["x" * 1000] * 1000}, trio.Event()
    await LongAnswer(content, 60.0)({"state": {"hang_up": hung_up.set}}, None, send)
    assert hung_up.is_set() is not reads
    if reads:
        assert sent[0]["status"] == 200
        assert (b"cache-control", b"no-store") in sent[0]["headers"]
        assert msgspec.json.decode(b"".join(each["body"] for each in sent[1:])) == content
        assert [each["more_body"] for each in sent[-2:]] == [True, False]
    else:
        assert trio.current_time() - begun == pytest.approx(60.0)
        assert len(sent) == 2
