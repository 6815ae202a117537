"""What virsh prints, read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.hypervisors.errors import HypervisorGarbled, HypervisorTimeout, HypervisorUnreachable
from transport.hypervisors.guests import Presence
from transport.hypervisors.libvirt_guests import devices_of, presence_of
from transport.hypervisors.virsh import LibvirtDomain, Lifecycle, Virsh, parse_domains, parse_event

VM = "7f9c24e8-3b5a-4f0e-8d6b-0c2a1e5d9f01"
PRINTED = f"{VM} guest one\n\nDomain: 'guest one'\n  state.state=1\n  state.reason=5\n\n"


def test_domains_are_put_together_from_both_commands() -> None:
    assert parse_domains(PRINTED) == [LibvirtDomain(VM, "guest one", 1, 5)]
    assert parse_domains("") == []
    assert parse_domains(f"{VM} guest one\n") == []  # it ended between the two


@pytest.mark.parametrize(
    "printed",
    [
        "error: something\n",
        PRINTED.replace("state.reason=5", "state.reason=x"),
        PRINTED.replace("  state.reason=5\n", ""),
        f"{VM} guest one\n" + PRINTED,
        PRINTED + PRINTED,
        PRINTED.replace(VM, VM.upper()),
    ],
)
def test_anything_else_is_refused_as_a_whole(printed: str) -> None:
    with pytest.raises(HypervisorGarbled):
        parse_domains(printed)


@given(st.text(max_size=300))
def test_text_is_domains_or_garbled(text: str) -> None:
    try:
        parse_domains(text)
    except HypervisorGarbled:
        pass


def test_an_event_is_read_from_the_right_so_that_a_name_cannot_forge_one() -> None:
    assert parse_event("event 'lifecycle' for domain 'web': Started Migrated") == Lifecycle(
        "web", "Started", "Migrated"
    )
    odd = "event 'lifecycle' for domain 'a': Stopped Saved' x': Started Booted"
    assert parse_event(odd) == Lifecycle("a': Stopped Saved' x", "Started", "Booted")
    assert parse_event("events received: 0") is None


@pytest.mark.parametrize(
    ("state", "reason", "was_active", "presence"),
    [
        (1, 1, False, Presence.ACTIVE),
        (1, 10, False, Presence.ACTIVE),
        (3, 1, True, Presence.ACTIVE),
        (3, 2, True, Presence.LEAVING),
        (3, 2, False, Presence.ARRIVING),
        (3, 11, False, Presence.ARRIVING),
        (3, 12, True, Presence.LEAVING),
    ],
)
def test_a_pause_for_a_migration_is_read_by_who_had_the_guest(
    state: int, reason: int, was_active: bool, presence: Presence
) -> None:
    assert presence_of(LibvirtDomain(VM, "web", state, reason), was_active=was_active) is presence


def test_devices_that_may_be_in_the_way_are_named() -> None:
    devices = (
        "<disk type='file'/><interface type='network'/><interface type='vhostuser'/>"
        "<hostdev type='pci' mode='subsystem'/><tpm model='tpm-crb'/><filesystem type='mount'/>"
    )
    found = devices_of(f"<domain><devices>{devices}</devices></domain>")
    assert found == ("filesystem:mount", "hostdev:pci", "interface:vhostuser", "tpm:tpm-crb")


@pytest.mark.parametrize("xml", ["", "<a/>", "<domain>", '<!DOCTYPE d [<!ENTITY a "b">]><domain>&a;</domain>'])
def test_xml_that_is_no_domain_or_brings_entities_is_not_read(xml: str) -> None:
    assert devices_of(xml) == ("unreadable-domain-xml",)


async def test_a_program_or_a_libvirt_that_is_not_there_is_named() -> None:
    with pytest.raises(HypervisorUnreachable, match="virsh cannot be run"):
        await Virsh("qemu:///system", "/nonexistent/virsh").domains()


async def test_a_virsh_that_hangs_meets_its_deadline(tmp_path: Path) -> None:
    hung = tmp_path / "virsh"
    hung.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    hung.chmod(0o755)
    with pytest.raises(HypervisorTimeout, match=r"no answer within 0\.2 s"):
        await Virsh("x", str(hung), seconds=0.2).domains()
