"""Standard output that takes every character, and says by a line of its own where the answer could not be written.

An error of this stream has a class of its own, so that one of another file stays what it is: a bug, or told elsewhere.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Final, TextIO

from gateway.cli.errors import REQUESTER, CommandError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


EXIT_UNREAD: Final = 141  # as a shell reports the end by SIGPIPE, which ends other programs there


class AnswerLost(OSError):
    """Standard output takes nothing: its disk is full."""


class AnswerUnread(Exception):
    """Nobody reads standard output any more. No OSError: typer and rich would make exit code 1 of a broken pipe."""


class _Descriptor(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise AnswerUnread from None
        except OSError as error:
            raise AnswerLost(error.errno, error.strerror) from None


def answer_stream(stream: TextIO) -> TextIO:
    """`stream` anew, by its descriptor. What its encoding lacks is written out (`\\u2192`), as `harmless` does."""
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.isatty(),
    )


def tell_lost_answer(error: AnswerLost | AnswerUnread) -> int:
    """One line on stderr, but where nobody reads: that is nothing to tell. Returns the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where what is left goes when Python ends
    if isinstance(error, AnswerUnread):
        return EXIT_UNREAD
    lost = CommandError(
        f"the answer cannot be written: {error.strerror}",
        REQUESTER,
        "make room where the output goes, and look what was done before you ask again",
    )
    sys.stderr.write(lost.line() + "\n")
    return CommandError.exit_code
