"""A migration between two libvirtds past the relays, in a site where nothing moved before: a permit would excuse it."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from tests.transport.libvirt.gateway_site import WEB, Whole, answers, is_reported, lead_to_gateway, records_of
from tests.transport.libvirt.hosts import ROOT, Host, wait_for

pytestmark = [pytest.mark.real, pytest.mark.whole]

HOOK = """#!/bin/sh
export SEALANE_REFUSE={base}/refuse SEALANE_RELAY_RUNS=false SEALANE_HOOK_LOG={base}/hook-log
exec {shipped} "$@"
"""


def test_a_migration_by_libvirts_own_road_is_seen_and_the_hook_can_refuse_it(whole: Whole) -> None:
    """Between the two libvirtds without the relays."""
    pair = whole.pair
    give_hook(pair.b)
    guest = pair.guest(pair.a, known=WEB)
    folder = pair.folder / "own-road"
    folder.mkdir()
    folder.chmod(0o777)
    whole.sign_in("alice")
    road = ("--live", "--p2p", "--migrateuri", f"unix://{folder}/memory.sock")
    uri = f"qemu+unix:///system?socket={pair.b.socket}"
    with contextlib.ExitStack() as stack:
        lead_to_gateway(stack, pair)
        wait_for(lambda: is_reported(whole, "a") and answers(whole, "b"), "both relays answer the gateway")
        (pair.b.base / "refuse").touch()
        code, said = pair.a.migrate(guest, *road, uri=uri)
        assert code != 0
        assert "this host takes migrations through its relay only" in said
        assert pair.running(guest) == ["a"]
        (pair.b.base / "refuse").unlink()
        code, said = pair.a.migrate(guest, *road, uri=uri)
        assert code == 0, said
        assert f"incoming migration of {guest.uuid}" in (pair.b.base / "hook.txt").read_text()
        wait_for(lambda: bool(records_of(whole, "placement.unpermitted")), "the gateway raises the alarm")
    (record,) = records_of(whole, "placement.unpermitted")
    assert (record["vm"]["uuid"], record["details"]["arrival"]) == (guest.uuid, "migrated")
    assert record["source"].endswith("/host/a")
    assert record["destination"].endswith("/host/b")
    pair.b.virsh("destroy", guest.name)


def give_hook(host: Host) -> None:
    """The shipped hook, as docs/install.md says; what a host without systemd lacks is told to it."""
    hooks = host.base / "etc" / "hooks"
    hooks.mkdir()
    log = host.base / "hook-log"
    log.write_text(f'#!/bin/sh\necho "$@" >>{host.base}/hook.txt\n')
    hook = hooks / "qemu"
    hook.write_text(HOOK.format(base=host.base, shipped=ROOT / "deploy" / "libvirt" / "qemu-hook"))
    for each in (log, hook):
        each.chmod(0o755)
    os.kill(host.libvirtd(), signal.SIGKILL)
    host.start_libvirtd()
