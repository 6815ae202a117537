"""Digests of content, and how many of them a receipt has room for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from tests.transport.site import Site
from transport.relay.channel import ChannelCounts
from transport.relay.content_digests import ContentDigests, most_channels
from transport.relay.host import now, open_host
from transport.relay.receipts import ReceiptFacts, make_receipt
from transport.wire.control import Role
from transport.wire.messages import MAX_MESSAGE_BYTES, MessageReader, encode_message
from transport.wire.preface import MAX_CHANNELS

MUCH = 2**53 - 1


@pytest.mark.parametrize("digested", [False, True])
def test_a_receipt_of_as_many_channels_as_there_may_be_fits_its_message(site: Site, digested: bool) -> None:
    claims = site.claims()
    wanted = structs.replace(claims.requirements, content_digest=digested)
    limits = structs.replace(claims.limits, max_channels=MAX_CHANNELS)
    claims = structs.replace(claims, requirements=wanted, limits=limits)
    host = open_host(site.relay_config("a"))
    permit = replace(host.permits.verify(site.permit(), source=None, destination=None), claims=claims)
    facts = ReceiptFacts(Role.SOURCE, permit, "uuid", now(), bytes(32))
    for number in range(most_channels(claims)):
        digests = ContentDigests.new() if digested else None
        facts.channels.append(ChannelCounts(number, "p" * 32, False, MUCH, MUCH, MUCH, MUCH, digests))
    message = encode_message(make_receipt(facts, host.credentials, now()))
    assert len(message) <= MAX_MESSAGE_BYTES
    assert len(MessageReader().feed(message)) == 1


def test_few_channels_are_as_many_as_the_permit_says(site: Site) -> None:
    assert most_channels(site.claims()) == site.claims().limits.max_channels
