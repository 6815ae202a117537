"""Whoever moves a VM reads of a refusal what happened and who can do what, in words of the source's own."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import trio

from tests.transport.relay.conftest import Pair, host_with, serving, until
from tests.transport.relay.cutter import network_to
from tests.transport.relay.test_carriage import VM, dial, listen
from tests.transport.site import Site
from transport.errors import RefusalCode
from transport.relay.config import split_address
from transport.relay.refusals import words_of
from transport.wire.messages import Purpose, Refusal

LIMITS = {"resume_seconds": 20.0, "silence_seconds": 2.0}
TELLING = {RefusalCode.BUSY, RefusalCode.HYPERVISOR}


@pytest.mark.parametrize("purpose", get_args(Purpose))
@pytest.mark.parametrize("code", RefusalCode)
def test_each_refusal_says_what_to_do_and_none_repeats_what_a_peer_says_of_a_check(
    code: RefusalCode, purpose: Purpose
) -> None:
    words = words_of(Refusal(code, "said\x1b[2J by the peer"), purpose)
    assert words.isascii()
    assert words.isprintable()
    assert ("by the peer" in words) == (code in TELLING)
    if code not in TELLING:
        assert code.value not in words, "a code says nothing to a person"
        assert any(act in words for act in ("ask again", "should", "docs/failures.md"))


def test_only_a_session_that_was_begun_is_said_to_have_left_its_guest_here() -> None:
    """Whoever settles may have given the guest away, and whoever recovers has."""
    unknown = Refusal(RefusalCode.SESSION_UNKNOWN, "")
    assert [each for each in get_args(Purpose) if "stays here" in words_of(unknown, each)] == ["begin", "resume"]


async def test_a_source_whose_destination_was_restarted_in_the_middle_says_so(site: Site, short_path: Path) -> None:
    source, path = host_with(site, "a", LIMITS), short_path / "in.sock"
    listener = listen(site)
    with trio.fail_after(30):
        async with network_to(("127.0.0.1", 1)) as network, trio.open_nursery() as nursery:
            async with serving(host_with(site, "b", LIMITS)) as (destination, address):
                network.target = split_address(address, "relay")
                pair = Pair(site, source, destination, network.address)
                nursery.start_soon(pair.carry, site.permit(vm=VM), path)
                program = await dial(path)
                there = await listener.accept()
                network.is_down = True
                network.cut("lane", "control")
            async with serving(host_with(site, "b", LIMITS)) as (_, address):
                network.target = split_address(address, "relay")
                network.is_down = False
                await until(lambda: pair.news[-1].state == "failed", 20)
        await program.aclose()
        await there.aclose()
    await listener.aclose()
    assert "offer refused (session_unknown)" in pair.news[-1].message
    assert "was restarted, or has ended it" in pair.news[-1].message
    assert "stays here: ask again" in pair.news[-1].message
