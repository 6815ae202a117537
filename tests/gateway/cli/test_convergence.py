"""A migration that does not converge says so once, with what can be done."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.convergence import PASSES, Convergence
from gateway.cli.migrate import migrate
from gateway.cli.replies import MigrationReply, Progress
from tests.transport.kinds import Kind, Seen, move
from transport.hypervisors.moving import How

GIB = 1 << 30


def told(how: dict[str, Any], first_of_pass: list[int], state: str = "running") -> list[str]:
    """What is said of passes that begin with so many bytes; each is seen three times, the last one hardly begun."""
    convergence = Convergence(how)
    said = []
    for number, most in enumerate(first_of_pass, start=1):
        for left in (most, most // 2, most // 10):
            numbers = Progress(remaining_bytes=left, total_bytes=4 * GIB, pass_number=number)
            said.append(convergence.advice(MigrationReply("m", state, progress=numbers)))
    return [words for words in said if words is not None]


def test_it_is_said_once_and_by_options_that_the_command_has() -> None:
    (words,) = told({}, [4 * GIB] + [GIB] * 20)
    options = {word.strip(",;") for word in words.split() if word.startswith("--")}
    named = {f"--{name.replace('_', '-')}" for name in migrate.__annotations__}
    assert options <= named
    assert len(options) == 4
    assert "the guest stays where it is" in words


def test_nothing_is_said_before_some_passes_were_in_vain() -> None:
    assert told({}, [4 * GIB] + [GIB] * (2 * PASSES)) == []
    assert len(told({}, [4 * GIB] + [GIB] * (2 * PASSES + 1))) == 1


@pytest.mark.parametrize(
    "passes",
    [
        [4 * GIB, GIB, GIB // 2, GIB // 4, GIB // 8, GIB // 16, GIB // 32, GIB // 64],
        [4 * GIB, GIB, GIB, GIB, GIB // 2, GIB // 2, GIB // 2, GIB // 4],  # now and then
        [4 * GIB],
        [],
    ],
)
def test_nothing_is_said_of_one_that_comes_nearer_to_its_end(passes: list[int]) -> None:
    assert told({}, passes) == []


@pytest.mark.parametrize("how", ["post_copy_after_passes", "post_copy_after_seconds", "converge_within_seconds"])
def test_nothing_is_said_of_one_that_ends_by_itself(how: str) -> None:
    assert told({how: 5}, [4 * GIB] + [GIB] * 20) == []


def test_nor_of_post_copy_and_no_remedy_is_named_that_is_in_use() -> None:
    assert told({}, [4 * GIB] + [GIB] * 20, "handing_over") == []
    assert "--auto-converge" not in told({"auto_converge": True}, [4 * GIB] + [GIB] * 20)[0]


@pytest.mark.real
async def test_a_real_guest_behind_a_limit_below_its_rate_is_seen_not_to_converge() -> None:
    """By the news of its relay, of which the command hears every few."""
    advised: list[str] = []

    def evidence(seen: Seen) -> str:
        convergence = Convergence({})
        for news in [each for each in seen.news if each.progress is not None][::4]:
            at = news.progress
            assert at is not None
            numbers = Progress(remaining_bytes=at.remaining_bytes, total_bytes=at.total_bytes, pass_number=at.passes)
            advised.append(convergence.advice(MigrationReply("m", news.state, progress=numbers)) or "")
        return "told"

    how = How(converge_within_seconds=30, downtime_limit_ms=1)
    kind = Kind("below the guest's rate", how, evidence, bandwidth=4 << 20, memory_mib=32, hot_mib=4, moves=False)
    with tempfile.TemporaryDirectory(prefix="sl") as folder:
        await move(kind, Path(folder))
    assert sum(bool(words) for words in advised) == 1
