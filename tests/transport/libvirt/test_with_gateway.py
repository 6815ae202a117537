"""From `sealane session start` to the record: a real gateway, relays from their files, and virsh."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.transport.libvirt.gateway_site import (
    LEDGER,
    SEALANE,
    WEB,
    Whole,
    answers,
    is_reported,
    lead_to_gateway,
    records_of,
    run_service,
)
from tests.transport.libvirt.hosts import (
    ROOT,
    Relay,
    make_disk,
    wait_for,
)

pytestmark = [pytest.mark.real, pytest.mark.whole]


@pytest.fixture(autouse=True)
def no_guest_is_left(whole: Whole) -> Iterator[None]:
    """By a test that failed: the next one's guest has the same UUID."""
    yield
    for host in whole.pair.hosts:
        for guest in (WEB, LEDGER):
            host.virsh("destroy", guest.name)


def stands_on_page(said: str) -> bool:
    """Whether it is what docs/libvirt.md shows, but for the number of the record."""
    page = (ROOT / "docs" / "libvirt.md").read_text()
    return re.sub("record [0-9]+", "record", said) in re.sub("record [0-9]+", "record", page)


def test_nobody_is_refused_and_a_person_who_said_so_is_named(whole: Whole) -> None:
    pair = whole.pair
    guest = pair.guest(pair.a, known=WEB)
    code, said = pair.a.migrate(guest, "--live", "--p2p")
    assert code != 0
    assert stands_on_page(said)

    whole.sign_in("alice")
    socket = str(pair.a.base / "session.sock")
    announced = whole.sealane("session", "start", "web", "--reason", "CHG-7", "--socket", socket)
    assert announced["outcome"] == "announced", announced
    code, said = pair.a.migrate(guest, "--live", "--p2p")
    assert code == 0, said
    pair.wait_runs_only(guest, pair.b)
    pair.b.virsh("destroy", guest.name)


def test_what_the_policy_refuses_is_what_the_operator_reads(whole: Whole) -> None:
    pair = whole.pair
    guest = pair.guest(pair.a, known=LEDGER)
    whole.sign_in("alice")
    whole.sealane("session", "start", LEDGER.uuid, "--reason", "CHG-8", "--socket", str(pair.a.base / "session.sock"))
    code, said = pair.a.migrate(guest, "--live", "--p2p")
    assert code != 0
    assert stands_on_page(said)
    assert pair.a.state(guest) == "running"
    pair.a.virsh("destroy", guest.name)


def test_what_somebody_tries_beside_a_migration_is_on_record(whole: Whole) -> None:
    pair = whole.pair
    code, said = pair.a.virsh("-c", pair.a.front_uri, "destroy", LEDGER.uuid)
    assert code != 0
    assert "failed to get domain" in said
    log = whole.site.log
    found: list[dict[str, Any]] = []

    def is_recorded() -> bool:
        asked = [str(SEALANE), "audit", "query", "kind:libvirt.refused", "--log", str(log), "--format", "jsonl"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
        found[:] = [json.loads(line) for line in done.stdout.splitlines() if "domain_lookup_by_uuid" in line]
        return bool(found)

    wait_for(is_recorded, "a record of the refused call")
    record = found[0].get("record", found[0])
    assert (record["outcome"], record["vm"]) == ("denied", {"uuid": LEDGER.uuid, "name": "ledger"})
    assert record["source"].endswith("/host/a")
    assert record["destination"].endswith("/host/b")
    assert (record["details"]["role"], record["details"]["procedure"]) == ("source", 24)
    assert (record["details"]["uid"], record["details"]["count"]) == (0, 1)


def test_the_gateway_is_away_and_the_caller_hears_so(whole: Whole) -> None:
    pair = whole.pair
    stranger = pair.guest(pair.b)  # host b has no way to the gateway
    code, said = pair.b.migrate(stranger, "--live", "--p2p")
    assert code != 0
    assert "the gateway cannot be asked, and nothing moves without its permit" in said
    assert pair.b.state(stranger) == "running"
    pair.b.virsh("destroy", stranger.name)


def test_the_front_leads_to_the_hosts_of_the_address_book(whole: Whole) -> None:
    """Nobody wrote host b into host a's file: its socket and its loopback address come from the gateway's inventory."""
    pair = whole.pair
    hosts = pair.a.base / "front" / "hosts"
    wait_for(hosts.exists, "the address book of the gateway")
    said = hosts.read_text()
    address = next(line.split()[0] for line in said.splitlines() if line.endswith(" b"))
    assert not (pair.a.base / "front" / "a").exists()
    guest = pair.guest(pair.a, known=WEB)
    whole.sign_in("alice")
    whole.wait_settled()
    announced = whole.sealane(
        "session", "start", "web", "--reason", "CHG-9", "--socket", str(pair.a.base / "session.sock")
    )
    assert announced["outcome"] == "announced", announced
    code, said = pair.a.migrate(
        guest, "--live", "--p2p", "--migrateuri", f"tcp://{address}", uri=f"qemu+tcp://{address}/system"
    )
    assert code == 0, said
    pair.wait_runs_only(guest, pair.b)
    pair.b.virsh("destroy", guest.name)


def test_sealane_migrate_moves_a_domain_by_its_name_and_shows_its_receipt(whole: Whole) -> None:
    pair = whole.pair
    guest = pair.guest(pair.a, known=WEB)
    whole.sign_in("alice")
    whole.wait_settled()
    wait_for(lambda: is_reported(whole, "a"), "the gateway knows from the relay that libvirt of host a has it")
    said = whole.sealane("migrate", "web", "--to", "b", "--reason", "CHG-10")
    assert said["outcome"] == "completed", said
    assert (said["vm_binding"], said["key_exchange"]) == ("uuid", "X25519MLKEM768")
    assert said["bytes"] > 1 << 20  # type: ignore[operator]
    pair.wait_runs_only(guest, pair.b)
    pair.b.virsh("destroy", guest.name)


def test_an_operator_sees_how_far_libvirt_is_and_the_permits_limit_is_kept(whole: Whole) -> None:
    pair = whole.pair
    guest = pair.guest(pair.a, known=WEB)
    whole.sign_in("alice")
    whole.wait_settled()
    wait_for(lambda: is_reported(whole, "a"), "the gateway knows from the relay that libvirt of host a has it")
    limit = 30_000_000
    move = f"{SEALANE} migrate web --to b --reason CHG-12 --bandwidth-bytes-per-second {limit}"
    done = subprocess.run(  # on a terminal: there is no bar without one
        pair.a.inside("env", f"HOME={whole.home}", "TERM=xterm", "COLUMNS=120", "script", "-qec", move, "/dev/null"),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "COMPLETED" in done.stdout
    assert len(set(re.findall(r"([0-9.]+ [KM]iB) remaining", done.stdout))) > 1  # it moved on while it was looked at
    assert re.search(r"[0-9.]+ [KM]iB/s", done.stdout)
    carried = float(re.search(r"carried +([0-9.]+) MiB", done.stdout)[1]) * (1 << 20)  # type: ignore[index]
    assert carried > 60 << 20
    pair.wait_runs_only(guest, pair.b)
    assert pair.b.arrived_mib_per_second(guest) < 2 * limit / (1 << 20)  # many times that without it
    pair.b.virsh("destroy", guest.name)


def checked(whole: Whole) -> dict[str, Any]:
    """What `--check` says once both relays have looked: one that was cut off counts as reachable for a while."""
    said: dict[str, Any] = {}

    def both_have_looked() -> bool:
        said.update(whole.sealane("migrate", "web", "--to", "b", "--check"))
        return not {"source_unknown", "destination_unknown"} & {each["code"] for each in said["preflight"]["findings"]}

    wait_for(both_have_looked, "both relays look at what the move needs")
    return said


def test_check_says_of_a_domain_what_stands_in_its_way_and_touches_nothing(whole: Whole) -> None:
    pair = whole.pair
    disk = make_disk(pair.a, "only-here", None)
    guest = pair.guest(pair.a, known=WEB, devices=disk)
    whole.sign_in("alice")
    with contextlib.ExitStack() as stack:
        lead_to_gateway(stack, pair)
        wait_for(lambda: is_reported(whole, "a") and answers(whole, "b"), "both relays answer the gateway")
        said = checked(whole)
        found = {each["code"]: each for each in said["preflight"]["findings"]}
        assert said["outcome"] == "cannot_move", said
        assert said["decision"]["allowed"] is True
        assert found["storage"]["severity"] == "cannot"
        assert "/var/lib/libvirt/only-here.img is missing here" in found["storage"]["message"]
        assert "hypervisor.domain_paths of the relay here" in found["arrival"]["message"]
        assert not any(each["code"] in {"machine_type", "memory", "uuid_free"} for each in found.values())
        assert not pair.b.qemus(guest)
        assert pair.running(guest) == ["a"]
        pair.a.virsh("destroy", guest.name)
        pair.guest(pair.a, known=WEB)
        wait_for(lambda: is_reported(whole, "a"), "the gateway knows that it runs again")
        said = checked(whole)
        assert said["outcome"] == "allowed", said
    pair.a.virsh("destroy", guest.name)


HOSTILE = """
import sys
from transport.libvirt_rpc.procedures import Procedure
from transport.relay import caller

VICTIM = sys.argv.pop(1)
real = caller._Remote.ask

async def ask(self, procedure, body):
    if procedure == Procedure.MIGRATE_PREPARE3_PARAMS:
        for bad in (Procedure.DOMAIN_DESTROY, 10, 382):  # destroy, create from XML, and a call that no libvirt here has
            await real(self, bad, b"")
        sent = caller.Prepare.decode(body)
        parameters = [type(p)(p.field, p.type, p.value.replace(OWN, VICTIM) if p.field.endswith("xml") else p.value)
                      for p in sent.parameters]
        cookie = sent.cookie.replace(OWN.encode(), VICTIM.encode())
        return await real(self, procedure, caller.replace(sent, parameters=parameters, cookie=cookie).encode())
    return await real(self, procedure, body)

OWN = sys.argv.pop(1)
caller._Remote.ask = ask
from gateway.cli.main import app
app()
"""


def test_a_source_relay_that_was_taken_over_gains_nothing_and_is_on_record(whole: Whole) -> None:
    """Host b's relay has a permit for VM web, sends other calls through its lane, and then another VM's XML."""
    pair, folder = whole.pair, whole.pair.folder
    guest = pair.guest(pair.b, known=WEB)
    with contextlib.ExitStack() as stack:
        lead_to_gateway(stack, pair)
        honest = pair.b.relay
        assert honest is not None
        honest.stop()
        config = str(whole.site.relay_config("b"))
        log = folder / "hostile.log"
        program = [sys.executable, "-c", HOSTILE, LEDGER.uuid, WEB.uuid, "relay", "serve", "--config", config]
        hostile = run_service(stack, pair.b, log, program)
        whole.sign_in("alice")
        whole.wait_settled()
        wait_for(lambda: is_reported(whole, "b"), "the gateway knows that host b has it")
        socket = str(pair.b.base / "session.sock")
        said = whole.sealane("session", "start", WEB.uuid, "--reason", "CHG-11", "--socket", socket)
        assert said["outcome"] == "announced", said
        code, words = pair.b.migrate(guest, "--live", "--p2p")
        assert code != 0
        assert "Sealane: the permit is for VM" in words, words
        records = refused_by_destination(whole)
        Relay(hostile, log).stop()
    refused = {record["details"]["procedure"] for record in records}
    assert refused == {12, 10, 382, 303}
    assert all(record["source"].endswith("/host/b") and record["vm"]["uuid"] == WEB.uuid for record in records)
    assert pair.b.state(guest) == "running"
    pair.b.virsh("destroy", guest.name)


def refused_by_destination(whole: Whole) -> list[dict[str, Any]]:
    """The records of what host a's filter refused, once there are four."""
    found: list[dict[str, Any]] = []

    def are_recorded() -> bool:
        found[:] = [each for each in records_of(whole, "libvirt.refused") if each["details"]["role"] == "destination"]
        return len(found) >= 4

    wait_for(are_recorded, "records of all that was refused")
    return found
