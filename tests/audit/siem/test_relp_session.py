from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.siem.relp_session import MAX_ANSWER_BYTES, MAX_TXNR, Answer, RelpError, RelpSession, State

HELLO = b"200 OK\nrelp_version=0\nrelp_software=librelp,1.11.0\ncommands=syslog"


def opened() -> RelpSession:
    session = RelpSession()
    session.open()
    session.receive(b"1 rsp %d %s\n" % (len(HELLO), HELLO))
    assert session.state is State.OPEN
    return session


def test_a_session_as_a_transcript() -> None:
    session = RelpSession()
    assert session.open() == b"1 open 54 relp_version=0\nrelp_software=sealane,1\ncommands=syslog\n"
    assert session.receive(b"1 rsp %d %s\n" % (len(HELLO), HELLO)) == []
    assert session.message(b"<14>1 - - - - - - hello") == (2, b"2 syslog 23 <14>1 - - - - - - hello\n")
    assert session.message(b"two\nlines") == (3, b"3 syslog 9 two\nlines\n")
    assert session.outstanding == 2
    assert session.receive(b"2 rsp 6 200 OK\n3 rsp 12 500 too full\n") == [
        Answer(2, 200, b"OK"),
        Answer(3, 500, b"too full"),
    ]
    assert session.outstanding == 0
    assert session.close() == b"4 close 0\n"
    assert session.state is State.ENDED


@given(st.lists(st.integers(0, 60), max_size=6))
def test_any_split_of_what_is_received_gives_the_same_answers(cuts: list[int]) -> None:
    stream = b"2 rsp 6 200 OK\n3 rsp 3 200\n4 rsp 12 500 too full\n5 rsp 6 200 OK\n"
    session = opened()
    for _ in range(4):
        session.message(b"x")
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    answers = []
    for start, end in itertools.pairwise(places):
        answers += session.receive(stream[start:end])
    assert [each.code for each in answers] == [200, 200, 500, 200]


@pytest.mark.parametrize(
    "received",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"220 smtp.example ESMTP\r\n",
        b"9 rsp 6 200 OK\n",  # a frame that we never sent
        b"2 rsp 6 200 OK\n2 rsp 6 200 OK\n",  # an answer to an answered one
        b"2 rsp 7 200 OK\n\n\n",
        b"2 rsp 5 200 OK\n",
        b"2 rsp 6\n",
        b"2 rsp 2 OK\n",
        b"2 syslog 2 OK\n",
        b"0 rsp 6 200 OK\n",
        b"2 rsp 999999 200 OK\n",
        b"0 serverclose 0\n",
        b"2" * 60,
        b"\x00" * 60,
        b"-1 rsp 6 200 OK\n",
    ],
)
def test_what_the_protocol_does_not_allow_ends_the_session(received: bytes) -> None:
    session = opened()
    session.message(b"x")
    with pytest.raises(RelpError):
        session.receive(received)
    assert session.state is State.ENDED
    with pytest.raises(RelpError):
        session.message(b"y")


@pytest.mark.parametrize(
    "hello", [b"500 no", b"200 OK\ncommands=eventlog", b"200 OK", b"", b"200 OK\nxcommands=syslog"]
)
def test_a_receiver_that_takes_no_syslog_is_refused(hello: bytes) -> None:
    session = RelpSession()
    session.open()
    with pytest.raises(RelpError):
        session.receive(b"1 rsp %d %s\n" % (len(hello), hello) if hello else b"1 rsp 0\n")


@given(st.binary(max_size=200), st.integers(1, 20))
def test_whatever_arrives_is_an_answer_to_us_or_ends_the_session_and_is_bounded(data: bytes, step: int) -> None:
    session = opened()
    for _ in range(3):
        session.message(b"x")
    answers: list[Answer] = []
    try:
        for start in range(0, len(data), step):
            answers += session.receive(data[start : start + step])
    except RelpError:
        assert session.state is State.ENDED
    assert {each.txnr for each in answers} <= {2, 3, 4}


def test_an_endless_answer_is_not_kept() -> None:
    session = opened()
    session.message(b"x")
    with pytest.raises(RelpError, match="over the limit"):
        session.receive(b"2 rsp %d x" % (MAX_ANSWER_BYTES + 1))


def test_numbers_begin_again_after_the_last_one() -> None:
    session = opened()
    session._next = MAX_TXNR
    assert session.message(b"x")[0] == MAX_TXNR
    assert session.message(b"x")[0] == 1
