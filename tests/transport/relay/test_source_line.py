"""What a source says first on a connection that takes the place of a lost one."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio

from policy.permit import VerifiedPermit
from tests.transport.relay.conftest import host_with, unheard
from tests.transport.relay.hostile import Conversation, fake_destination
from tests.transport.relay.test_carriage import VM
from tests.transport.relay.test_recovering import Source
from tests.transport.site import Site
from transport.errors import RefusalCode
from transport.relay.ends import Milestones, Report
from transport.relay.host import open_host
from transport.relay.inlets import SourceLanes
from transport.relay.source import MigrationOrder, carry_as_source
from transport.wire.messages import Answer, Handover, Message, Offer, Open, Refusal

pytestmark = pytest.mark.whole


class Switching(Source):
    """Its hypervisor opens a channel and gives the guest away in post-copy."""

    async def migrate(self, lanes: SourceLanes, milestones: Milestones, report: Report) -> None:  # noqa: ARG002
        ours, theirs = socket.socketpair()
        with ours:
            await lanes.open("memory", theirs)
            await milestones.switched()
            await trio.sleep_forever()


@pytest.mark.parametrize("_", range(5))
async def test_a_channel_whose_announcement_was_lost_with_the_handover_is_announced_before_that_is_asked_again(
    site: Site, _: int
) -> None:
    """While a guest is handed over no channel is opened: the source broke the order itself, one time of two."""
    source = host_with(site, "a", {"resume_seconds": 20.0, "settle_retry_seconds": 0.05, "stop_seconds": 0.05})
    heard: list[Message | None] = []
    has_heard = trio.Event()

    async def play(conversation: Conversation, offer: Offer) -> None:
        if offer.purpose == "begin":
            await conversation.send(Answer({}, 4))
            while not isinstance(await conversation.hear(), Handover):
                pass
        elif offer.purpose == "resume":
            await conversation.send(Answer({}, 4))
            heard.extend([await conversation.hear(), await conversation.hear()])
            has_heard.set()
        else:
            await conversation.send(Refusal(RefusalCode.SESSION_UNKNOWN, ""))

    async with fake_destination(open_host(site.relay_config("b")).credentials, play) as fake:
        order = MigrationOrder(site.permit(vm=VM), fake.address)

        def end(permit: VerifiedPermit) -> Any:
            return Switching(source, permit)

        async def carry() -> None:
            await carry_as_source(source, order, unheard, trio.Event(), end=end)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry)
            with trio.fail_after(10):
                await has_heard.wait()
            nursery.cancel_scope.cancel()
    assert heard == [Open(0, "memory"), Handover(post_copy=True)]
