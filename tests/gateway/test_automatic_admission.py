"""A relay asks for what a client of libvirt on its host wants: as this host, on behalf of whoever a token names."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from gateway.starter import Site
from tests.gateway.conftest import UUID_LEDGER, UUID_WEB, Running
from tests.gateway.test_placement import Relay, Stepping, guest, moved

WISH = {"vm": UUID_WEB, "destination": "b", "ports": ["libvirt", "memory"]}


async def ask(running: Running, host: str = "a", **changes: Any) -> dict[str, Any]:
    answer = await running.client(host).post("/v1/relay/admission", json={**WISH, **changes})
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


async def last_decision(running: Running) -> dict[str, Any]:
    return (await running.records("migration.decision"))[-1]


async def test_a_person_whose_token_was_handed_in_gets_a_permit_at_once(running: Running) -> None:
    answer = await ask(running, token=running.token("alice"), reason="CHG-1")
    permit = running.open_permit(answer["permit"])
    assert (permit.claims.vm, permit.claims.ports) == (UUID_WEB, ("libvirt", "memory"))
    record = await last_decision(running)
    assert record["outcome"] == "allowed"
    assert record["reason"] == "CHG-1"
    assert record["details"]["asked_by"].endswith("/host/a")
    assert record["details"]["on_behalf_of"] == "sealane-local#alice"
    # It has its permit; a second one of the same VM must wait.
    again = await ask(running, token=running.token("alice"))
    assert again["kind"] == "denied"
    assert "being migrated" in again["message"]


async def test_without_a_token_the_record_names_nobody_and_the_policy_says_no(running: Running) -> None:
    answer = await ask(running)
    assert answer["kind"] == "denied"
    assert "requester-is-a-person" in answer["message"]
    assert "record" in answer["message"]
    record = await last_decision(running)
    assert (record["outcome"], record["details"]["on_behalf_of"]) == ("denied", "unknown")


async def test_libvirts_port_needs_a_permission_of_its_own(running: Running) -> None:
    answer = await ask(running, token=running.token("bob"))
    assert answer["kind"] == "denied"


async def test_a_host_moves_only_what_is_on_it(running: Running) -> None:
    answer = await ask(running, host="c", destination="b", token=running.token("alice"))
    assert answer["kind"] == "denied"
    assert "not on the host that asks" in answer["message"]
    assert (await last_decision(running))["details"]["not_admitted"] == "not_here"


async def test_a_host_that_reports_a_vm_that_came_without_a_permit_may_not_move_it_on(running: Running) -> None:
    """Where it is expected on host a, and a is silent: else b could draw it to itself and ask in the same breath."""
    b = Relay(running, "b")
    await b.report(guest())
    answer = await ask(running, host="b", destination="c", token=running.token("alice"))
    assert answer["kind"] == "denied"
    assert "web is expected on a (inventory), and came to the host that asks without a permit" in answer["message"]
    assert "let the relay of a report" in answer["message"]
    record = await last_decision(running)
    assert record["details"]["not_admitted"] == "placement_unpermitted"
    # Host a says that it has it not: then b's word is all there is, the alarm stays on record, and the VM can be moved.
    await Relay(running, "a").report()
    await b.report(guest(), full=False)
    answer = await ask(running, host="b", destination="c", token=running.token("alice"))
    assert answer["kind"] != "denied", answer
    assert [record["kind"] for record in await running.records("placement.unpermitted")] == ["placement.unpermitted"]


async def test_nor_one_that_had_the_vm_and_says_that_it_has_just_come_back(site: Site) -> None:
    """It kept the memory of the guest that left: while the other host is silent it could send its own copy on."""
    stepping = Stepping()
    async with moved(site, stepping) as (running, a, _):
        stepping.ahead = timedelta(minutes=3)
        await a.report(guest(since_s=0))
        answer = await ask(running, destination="c", token=running.token("alice"))
        assert answer["kind"] == "denied"
        assert (await last_decision(running))["details"]["not_admitted"] == "placement_unpermitted"


async def test_what_the_person_may_not_do_is_refused_in_the_policys_words(running: Running) -> None:
    answer = await ask(running, host="prod", vm=UUID_LEDGER, destination="b", token=running.token("alice"))
    assert answer["kind"] == "denied"
    assert "denied by policy" in answer["message"]


async def test_a_token_that_is_none_is_refused(running: Running) -> None:
    answer = await running.client("a").post("/v1/relay/admission", json={**WISH, "token": "x.y.z"})
    assert answer.status_code == 401


@pytest.mark.parametrize("changes", [{"vm": "web"}, {"ports": []}, {"ports": ["ssh"]}, {"more": 1}])
async def test_a_wish_that_is_none_is_refused(running: Running, changes: dict[str, Any]) -> None:
    answer = await running.client("a").post("/v1/relay/admission", json={**WISH, **changes})
    assert answer.status_code == 400


async def test_only_relays_ask(running: Running) -> None:
    answer = await running.client().post("/v1/relay/admission", json=WISH)
    assert answer.status_code == 403
