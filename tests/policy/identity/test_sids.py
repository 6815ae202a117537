"""SIDs and GUIDs, as bytes and as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.identity.sids import decode_guid, decode_sid, encode_guid, encode_sid, filter_octets

NUMBERS = st.integers(0, 2**32 - 1)
SIDS = st.builds(
    lambda authority, parts: "-".join(["S-1", str(authority), *map(str, parts)]),
    st.integers(0, 2**48 - 1),
    st.lists(NUMBERS, min_size=1, max_size=15),
)
# Of a SID with one or two numbers, so that not all that follows is refused.
HEADS = st.builds(
    lambda count, authority: bytes([1, count]) + authority, st.integers(0, 2), st.binary(min_size=6, max_size=6)
)
ADMINISTRATORS = bytes.fromhex("01020000000000052000000020020000")


def test_well_known_bytes() -> None:
    assert decode_sid(ADMINISTRATORS) == "S-1-5-32-544"
    assert encode_sid("S-1-5-32-544") == ADMINISTRATORS
    assert decode_guid(bytes(range(16))) == "03020100-0504-0706-0809-0a0b0c0d0e0f"
    assert filter_octets(b"\x00*") == "\\00\\2a"


@given(SIDS)
def test_every_sid_survives_the_way_there_and_back(sid: str) -> None:
    assert decode_sid(encode_sid(sid)) == sid


@given(st.uuids())
def test_every_guid_survives(guid: object) -> None:
    assert decode_guid(encode_guid(str(guid))) == str(guid)


@given(st.binary(max_size=80) | st.builds(lambda head, rest: head + rest, HEADS, st.binary(max_size=8)))
def test_bytes_are_one_whole_sid_or_refused(data: bytes) -> None:
    try:
        text = decode_sid(data)
    except ValueError:
        return
    assert encode_sid(text) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        ADMINISTRATORS[:-1],
        ADMINISTRATORS + b"\0",
        ADMINISTRATORS + ADMINISTRATORS,
        b"\2" + ADMINISTRATORS[1:],
        b"\1\0" + bytes(6),
        b"\1\x10" + bytes(6 + 64),
    ],
)
def test_bytes_that_are_no_sid(data: bytes) -> None:
    with pytest.raises(ValueError, match="a SID"):
        decode_sid(data)


@pytest.mark.parametrize(
    "text",
    [
        "", "S-1", "S-1-5", "S-2-5-32", "S-1-5-032", "S-1-05-32", "s-1-5-32", " S-1-5-32", "S-1-5-32\n", "S-1-5-٣",
        "S-1-5-4294967296", "S-1-281474976710656-1", "S-1-5" + "-1" * 16, "S-1-5-32)(cn=*",
    ],
)  # fmt: skip
def test_text_that_is_no_canonical_sid(text: str) -> None:
    with pytest.raises(ValueError, match="SID"):
        encode_sid(text)


@pytest.mark.parametrize(
    "text", ["", "{03020100-0504-0706-0809-0a0b0c0d0e0f}", "03020100050407060809-0a0b0c0d0e0f", "*"]
)
def test_text_that_is_no_guid(text: str) -> None:
    with pytest.raises(ValueError, match="GUID"):
        encode_guid(text)


def test_a_guid_has_sixteen_bytes() -> None:
    with pytest.raises(ValueError, match="16"):
        decode_guid(bytes(15))
