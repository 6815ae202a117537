"""RELP, the client's half, without I/O (the protocol's specification: rsyslog's "RELP - The Reliable Event Logging
Protocol", version 0).

    frame     TXNR SP COMMAND SP DATALEN [SP DATA] LF
    open      1 open 54 relp_version=0⏎relp_software=…⏎commands=syslog
    message   2 syslog 11 <a message>
    answer    2 rsp 6 200 OK            each frame of ours is answered under its number
    the end   0 serverclose 0           the server wants no more

What a receiver says is not trusted: every field is bounded, and whatever the specification does not allow ends the
session (`RelpError`). A message counts only once *its* number was answered with 200.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

MAX_ANSWER_BYTES: Final = 16 * 1024
MAX_TXNR: Final = 999_999_999
OFFER: Final = b"relp_version=0\nrelp_software=sealane,1\ncommands=syslog"
OK: Final = 200

_HEADER: Final = re.compile(rb"([0-9]{1,9}) ([a-zA-Z]{1,32}) ([0-9]{1,9})([ \n])")
_LONGEST_HEADER: Final = 9 + 1 + 32 + 1 + 9 + 1
_CODE: Final = re.compile(rb"([0-9]{3})(?:[ \n]|\Z)")


class RelpError(Exception):
    """The receiver broke the protocol, or ended the session. The text is one line."""


class State(Enum):
    OPENING = "opening"
    OPEN = "open"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Answer:
    """To the frame `txnr` of ours. `text`: what the receiver said beside the code."""

    txnr: int
    code: int
    text: bytes


class RelpSession:
    """One session. What it returns as bytes is to be sent in that order."""

    def __init__(self) -> None:
        self.state = State.OPENING
        self._next = 1
        self._waiting: set[int] = set()
        self._received = bytearray()

    @property
    def outstanding(self) -> int:
        """Frames that are not answered yet."""
        return len(self._waiting)

    def open(self) -> bytes:
        """The first frame."""
        return self._frame(b"open", OFFER)[1]

    def message(self, data: bytes) -> tuple[int, bytes]:
        """A frame with one syslog message, and the number under which it will be answered."""
        if self.state is not State.OPEN:
            raise RelpError("the session is not open")
        return self._frame(b"syslog", data)

    def close(self) -> bytes:
        """The last frame of a session in which nothing is outstanding."""
        self.state = State.ENDED
        return self._frame(b"close", b"")[1]

    def receive(self, data: bytes) -> list[Answer]:
        """The answers to messages of ours that are complete now. Raises RelpError, for good."""
        self._received += data
        answers = []
        try:
            while (frame := self._next_frame()) is not None:
                if (answer := self._answer(*frame)) is not None:
                    answers.append(answer)
        except RelpError:
            self.state = State.ENDED
            raise
        return answers

    def _frame(self, command: bytes, data: bytes) -> tuple[int, bytes]:
        txnr = self._next
        self._next = txnr % MAX_TXNR + 1
        self._waiting.add(txnr)
        body = b" " + data if data else b""
        return txnr, b"%d %s %d%s\n" % (txnr, command, len(data), body)

    def _next_frame(self) -> tuple[int, bytes, bytes] | None:
        if not self._received:
            return None
        header = _HEADER.match(self._received)
        if header is None:
            if len(self._received) >= _LONGEST_HEADER or b"\n" in self._received:
                raise RelpError("it does not speak RELP")
            return None
        txnr, command, length = int(header[1]), bytes(header[2]), int(header[3])
        if length > MAX_ANSWER_BYTES:
            raise RelpError("an answer over the limit")
        start, end = header.end(), header.end() + length
        if header[4] == b"\n":
            # DATALEN 0 needs no space; the line end that was matched is the trailer.
            if length:
                raise RelpError("an answer without its data")
            start, end = header.end() - 1, header.end() - 1
        if len(self._received) <= end:
            return None
        if self._received[end] != ord("\n"):
            raise RelpError("an answer whose length is wrong")
        data = bytes(self._received[start:end])
        del self._received[: end + 1]
        return txnr, command, data

    def _answer(self, txnr: int, command: bytes, data: bytes) -> Answer | None:
        if command == b"serverclose" and txnr == 0:
            raise RelpError("the receiver has closed the session")
        if command != b"rsp":
            raise RelpError("a command that a receiver may not send")
        if txnr not in self._waiting:
            raise RelpError(f"an answer to frame {txnr}, which is not waiting for one")
        code = _CODE.match(data)
        if code is None:
            raise RelpError("an answer without a code")
        self._waiting.remove(txnr)
        answer = Answer(txnr, int(code[1]), data[code.end() :])
        if self.state is not State.OPENING:
            return answer
        if answer.code != OK:
            raise RelpError(f"it refuses the session with code {answer.code}")
        commands = re.search(rb"(?:^|\n)commands=([^\n]*)", answer.text)
        if commands is None or b"syslog" not in commands[1].split(b","):
            raise RelpError("it does not offer the command syslog")
        self.state = State.OPEN
        return None
