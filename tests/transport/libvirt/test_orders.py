"""`sealane migrate` for a domain: the relay has libvirt move it, under the permit that came with the order."""

from __future__ import annotations

import json

import pytest

from gateway.demo.guest import count_passes
from tests.transport.libvirt.hosts import Guest, Pair, wait_for

pytestmark = [pytest.mark.real, pytest.mark.whole]


def order(pair: Pair, guest: Guest, destination: str) -> None:
    """The gateway's order to the relay of host a; written whole before it is seen."""
    draft = pair.folder / "order.draft"
    draft.write_text(json.dumps({"vm": guest.uuid, "destination": destination}))
    draft.rename(pair.folder / "order-a.json")


@pytest.mark.parametrize("persistent", [False, True])
def test_an_order_moves_a_domain_and_its_definition(pair: Pair, persistent: bool) -> None:
    guest = pair.guest(pair.a, persistent=persistent)
    order(pair, guest, "b")
    wait_for(lambda: pair.b.state(guest) == "running", "the guest runs on host b")
    pair.wait_runs_only(guest, pair.b)
    count_passes(guest.printed(pair.a) + guest.printed(pair.b))
    if persistent:
        wait_for(lambda: pair.a.virsh("dominfo", guest.name)[0] != 0, "the definition has left host a")
        assert guest.name in pair.b.virsh("list", "--persistent", "--all", "--name")[1]
    pair.b.virsh("destroy", guest.name)
    pair.b.virsh("undefine", guest.name)


def test_the_permit_of_an_order_is_for_its_own_vm_alone(pair: Pair) -> None:
    """While everything else is refused, the order goes through, and a client that moves another VM does not."""
    ordered, other = pair.guest(pair.a), pair.guest(pair.a)
    order(pair, ordered, "b")
    wait_for(lambda: not (pair.folder / "order-a.json").exists(), "the order is taken")
    pair.deny("denied by policy test (record 1)")
    try:
        code, said = pair.a.migrate(other, "--live", "--p2p")
        assert code != 0
        assert "denied by policy test" in said
        pair.wait_runs_only(ordered, pair.b)
        assert pair.running(other) == ["a"]
    finally:
        pair.allow()
    pair.b.virsh("destroy", ordered.name)
    pair.a.virsh("destroy", other.name)


def test_an_order_to_where_no_front_leads_says_what_to_add(pair: Pair) -> None:
    guest = pair.guest(pair.a)
    relay = pair.a.relay
    assert relay is not None
    order(pair, guest, "c")
    wait_for(lambda: "it is not in the address book" in relay.log.read_text(), "the relay says what is missing")
    assert pair.running(guest) == ["a"]
    pair.a.virsh("destroy", guest.name)
