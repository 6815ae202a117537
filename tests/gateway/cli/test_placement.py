"""`sealane hosts` and `sealane vms` against a running gateway, and what a shell completes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli.placement import complete_host, complete_vm
from tests.gateway.cli.conftest import CannedGateway, Sealane
from tests.gateway.cli.test_inventory import person
from tests.gateway.conftest import UUID_LEDGER, UUID_WEB, Running
from tests.gateway.test_placement import Relay, guest

OTHER = "00000000-2222-4333-8444-555555555555"


@pytest.mark.whole
async def test_hosts_and_vms_tell_where_things_are_and_who_says_so(running: Running, tmp_path: Path) -> None:
    alice = person(running, tmp_path)
    await running.poll("a")
    await Relay(running, "a").report(guest(), guest(uuid=OTHER))
    hosts = (await alice.sealane("hosts")).stdout.splitlines()
    assert hosts[0].startswith("a  test  relay answers  placement fresh ")
    assert "2 VMs (1 not in the inventory)  127.0.0.2:7443" in hosts[0]
    assert "b  test  RELAY SILENT  reports no placement" in hosts[1]
    vms = (await alice.sealane("vms")).stdout.splitlines()
    assert vms[0] == f"ledger  {UUID_LEDGER}  production  on prod (inventory)"
    assert vms[1].startswith(f"web  {UUID_WEB}  test  on a (report, ")
    await Relay(running, "c").report(guest(since_s=60))
    document = (await alice.sealane("vms", "we", "--json")).document
    assert [vm["problem"] for vm in document["vms"]] == ["web runs on a and c at once"]
    assert (await alice.sealane("hosts", "prod", "--json")).document["hosts"][0]["placement"] == "none"


@pytest.mark.whole
async def test_who_may_not_read_the_inventory_is_told_nothing(running: Running) -> None:
    nobody = running.client()
    assert (await nobody.get("/v1/vms")).status_code == 401
    assert (await running.client("a").get("/v1/hosts")).status_code == 401
    assert (await running.person("alice").get("/v1/vms", params={"limit": 1001})).status_code == 400


VM = {"name": "web", "uuid": UUID_WEB, "zone": "test", "host": "a", "placed_by": "report"}
HOST = {"name": "fra1", "zone": "test", "relay_reachable": True, "placement": "fresh"}


def test_names_are_completed_and_odd_ones_are_not(
    logged_in: CannedGateway, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    logged_in.answer("GET", "/v1/vms", (200, {"vms": [VM, {**VM, "name": "a\x1b[31m"}]}))
    logged_in.answer("GET", "/v1/hosts", (200, {"hosts": [HOST]}))
    assert complete_vm("we") == ["web"]
    assert complete_host("f") == ["fra1"]
    assert [one.path.partition("&")[0] for one in logged_in.asked] == ["/v1/vms?prefix=we", "/v1/hosts?prefix=f"]


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_completion_prints_no_error(
    logged_in: CannedGateway,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(home))
    logged_in.answer("GET", "/v1/vms", (status, {}))
    assert complete_vm("we") == []
    monkeypatch.setenv("HOME", str(home / "nowhere"))
    assert complete_host("") == []
    assert capsys.readouterr() == ("", "")


def test_nothing_of_that_name_is_said(logged_in: CannedGateway, sealane: Sealane) -> None:
    logged_in.answer("GET", "/v1/vms", (200, {"vms": []}))
    logged_in.answer("GET", "/v1/hosts", (200, {"hosts": []}))
    assert sealane("vms", "we").stdout == "the inventory has no VM whose name begins with we\n"
    assert sealane("hosts").stdout == "the inventory has no host\n"
