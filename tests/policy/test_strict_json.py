"""JSON in which two readers could find different things is refused; all other JSON means what it says."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.strict_json import MAX_DEPTH, NotStrict, decode, strictly

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


class Move(msgspec.Struct):
    vm: str


@given(values)
def test_what_passes_means_the_same_to_another_reader(value: Any) -> None:
    data = json.dumps(value).encode()
    assert decode(data) == value == msgspec.json.decode(data)


@given(text, values, values)
def test_a_member_that_stands_twice_is_refused_wherever_it_stands(name: str, first: Any, second: Any) -> None:
    quoted = json.dumps(name)
    twice = f'{{{quoted}: {json.dumps(first)}, "other {name.encode().hex()}": 1, {quoted}: {json.dumps(second)}}}'
    for around in ("%s", "[%s]", '{"within": %s}', '[{"a": [%s]}]'):
        with pytest.raises(NotStrict, match="duplicate"):
            decode(around.replace("%s", twice).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"", b" ", b"{", b"{}{}", b"\xef\xbb\xbf{}", b'"\xff"', "{}".encode("utf-16"), b"NaN", b"[-Infinity]", b"1e999",
        b"-0", b'{"channel":-0}',
        b'"\\ud800"', b'{"\\udc00": 1}', b"9" * 5_000, b"[" * 100_000, b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b'{"vm":"web","\\u0076m":"ledger"}',
    ],
)  # fmt: skip
def test_what_readers_differ_on_is_refused(data: bytes) -> None:
    with pytest.raises(NotStrict):
        decode(data)


def test_as_many_levels_as_are_allowed_pass() -> None:
    assert decode(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) is not None


def test_a_decoder_that_takes_the_last_of_two_is_made_strict() -> None:
    plain = msgspec.json.Decoder(Move).decode
    twice = b'{"vm":"web","vm":"ledger"}'
    assert plain(twice) == Move("ledger")
    with pytest.raises(msgspec.MsgspecError, match="duplicate"):
        strictly(plain)(twice)
    assert strictly(plain)(b'{"vm":"web"}') == Move("web")
