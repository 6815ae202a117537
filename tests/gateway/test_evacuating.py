"""Evacuations at the gateway: who may prepare one, what is logged before it is given out, and to whom it is given."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from gateway.draining import vms_on
from gateway.errors import GatewayError, LogUnavailable
from gateway.evacuating import Evacuating
from gateway.evacuation_permits import Wish, orders_of
from gateway.gate import Gate
from gateway.recording import Event, Recorded
from gateway.starter import Site
from policy.bundle import Bundle
from policy.permit import PermitProof, VerifiedPermit
from tests.gateway.break_glass.conftest import Hands
from tests.gateway.cli.invoking import invoke
from tests.gateway.conftest import Running, rfc3339, running_gateway
from tests.gateway.test_placement import Relay as Reports
from tests.gateway.test_placement import guest
from tests.gateway.test_watch import edit
from transport.relay.evacuations import Evacuation

pytestmark = pytest.mark.whole


@pytest.fixture
def evacuable(site: Site) -> Site:
    edit(site.people, lambda text: text.replace('["operators"]', '["operators", "production-operators"]'))
    edit(site.gateway_config, lambda text: text + "\n[evacuation]\nmax_hours = 12\n")
    return site


class Relay:
    """The relay of host a: fetches what it is told of, and says so."""

    def __init__(self, running: Running, problem: str = "") -> None:
        self.running, self.problem = running, problem
        self.held: list[Evacuation] = []
        self.assignments: list[dict[str, Any]] = []

    async def serve(self) -> None:
        client = self.running.client("a")
        while True:
            for told in await self.running.poll("a", wait_seconds=2):
                self.assignments.append(told)
                if told["kind"] != "evacuation":
                    continue
                asked = {"evacuation_id": told["evacuation_id"]}
                found = await client.post("/v1/relay/evacuation", json=asked)
                assert found.status_code == 200, found.text
                self.held.append(msgspec.json.decode(found.content, type=Evacuation))
                other = await self.running.client("b").post("/v1/relay/evacuation", json=asked)
                assert other.status_code == 403, "another host gets nothing of it"
                told_back = await client.post("/v1/relay/evacuation/held", json={**asked, "problem": self.problem})
                assert told_back.status_code == 204


async def prepare(running: Running, who: str = "alice", **changes: Any) -> httpx.Response:
    body = {"host": "a", "hours": 2, "reason": "CHG-9", **changes}
    client = running.person(who)
    client.timeout = httpx.Timeout(60)
    return await client.post("/v1/evacuations", json=body)


async def test_permits_are_decided_logged_and_held_before_anybody_hears_of_them(evacuable: Site) -> None:
    async with running_gateway(evacuable) as running, trio.open_nursery() as nursery:
        relay = Relay(running)
        nursery.start_soon(relay.serve)
        await running.poll("a")
        answer = await prepare(running)
        assert answer.status_code == 201, answer.text
        (held,) = relay.held
        assert [each.destination.rpartition("/")[2] for each in held.orders] == ["b", "c"], "two, and not production"
        decisions = await running.records("evacuation.decision")
        for order, decision in zip(held.orders, decisions, strict=True):
            claims = running.open_permit(order.permit).claims
            assert claims.migration_id == decision["migration_id"]
            assert claims.exp - claims.iat == 7200
            assert decision["details"]["permit"]["jti"] == claims.jti
            assert decision["details"]["action"] == "Evacuate"
            assert decision["details"]["policy_request"]["action"]["id"] == "Evacuate"
            assert decision["details"]["evacuation"] == held.evacuation_id
        (prepared,) = await running.records("evacuation.prepared")
        assert prepared["outcome"] == "completed"
        assert prepared["reason"] == "CHG-9"
        assert prepared["details"]["permits"] == 2

        amiss = await running.person("alice").post("/v1/evacuations/nonsense/withdraw", json={"host": "a"})
        assert amiss.status_code == 400, "nobody is told that something was withdrawn"
        assert await running.records("evacuation.withdrawn") == []

        # It keeps the VM from nothing: an ordinary migration begins.
        moved = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
        assert moved.status_code == 201, moved.text

        withdrawn = await running.person("alice").post(
            f"/v1/evacuations/{held.evacuation_id}/withdraw", json={"host": "a"}
        )
        assert withdrawn.status_code == 202
        with trio.fail_after(20):
            while not any(told["kind"] == "withdraw_evacuation" for told in relay.assignments):
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()


async def test_a_vm_that_was_away_and_came_back_is_where_its_evacuation_brought_it_hours_later(evacuable: Site) -> None:
    hands = Hands()
    async with running_gateway(evacuable, hands.clock()) as running:
        async with trio.open_nursery() as nursery:
            relay = Relay(running)
            nursery.start_soon(relay.serve)
            await running.poll("a")
            assert (await prepare(running)).status_code == 201
            nursery.cancel_scope.cancel()
        permits = [running.open_permit(order.permit) for order in relay.held[0].orders]
        (prepared,) = [each for each in permits if each.claims.destination == running.site.spiffe_id("b")]

        async def certify(host: str, permit: VerifiedPermit, role: str, outcome: str) -> None:
            hands.pass_by(minutes=1)
            now = datetime.now(UTC) + hands.wall_offset
            times = {"started": rfc3339(now - timedelta(seconds=30)), "ended": rfc3339(now)}
            receipt = running.receipt(host, permit, role, outcome, **times)
            answer = await running.client(host).post("/v1/receipts", json=receipt)
            assert answer.status_code == 200, answer.text

        for source, destination in (("a", "c"), ("c", "a")):
            await running.poll(source)
            wish = {"vm": "web", "destination": destination}
            assert (await running.person("alice").post("/v1/migrations", json=wish)).status_code == 201
            (assignment,) = [each for each in await running.poll(source) if each["kind"] == "migrate"]
            permit = running.open_permit(assignment["permit"])
            await certify(destination, permit, "destination", "running")
            await certify(source, permit, "source", "completed")
        await certify("b", prepared, "destination", "running")
        (web,) = (await running.person("alice").get("/v1/vms", params={"prefix": "web"})).json()["vms"]
        assert (web["host"], web["placed_by"]) == ("b", "receipt")


@pytest.mark.parametrize(
    ("who", "changes", "status"),
    [
        ("bob", {}, 403),  # no such permission
        ("alice", {"reason": None}, 403),  # policy demands one
        ("alice", {"to": ["prod"]}, 403),  # and keeps VMs in their zone
        ("alice", {"hours": 13}, 400),  # more than the site gives
        ("alice", {"hours": 25}, 400),  # more than any site may give
        ("alice", {"vms": ["ledger"]}, 404),  # on another host
        ("alice", {"to": ["nowhere"]}, 404),
        ("bob", {"vms": ["ledger"]}, 403),  # who may not learns nothing of where VMs are
        ("bob", {"to": ["nowhere"]}, 403),
        ("bob", {"host": "nowhere"}, 403),
        ("bob", {"vms": ["\U0001f600" * 255] * 50, "to": ["\U0001f600" * 255] * 11}, 403),  # more than a record holds
    ],
)
async def test_who_may_not_or_asks_amiss_gets_nothing(
    evacuable: Site, who: str, changes: dict[str, Any], status: int
) -> None:
    async with running_gateway(evacuable) as running, trio.open_nursery() as nursery:
        relay = Relay(running)
        nursery.start_soon(relay.serve)
        await running.poll("a")
        answer = await prepare(running, who, **changes)
        assert answer.status_code == status, answer.text
        assert relay.held == []
        outcomes = [record["outcome"] for record in await running.records("evacuation.prepared")]
        assert outcomes == {403: ["denied"], 404: ["failed"], 400: []}[status]
        nursery.cancel_scope.cancel()


async def test_many_preparations_at_once_for_one_host_leave_room_for_moves_from_it(
    evacuable: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its relay takes four at a time; whoever may evacuate one VM once held up everybody's moves by asking for more."""
    monkeypatch.setattr("gateway.evacuation_handover.HELD_SECONDS", 3.0)
    async with running_gateway(evacuable) as running:
        await running.poll("a")
        desk = running.gateway.desk
        assert desk.evacuating is not None
        alice = await desk.people.authenticate(running.token("alice"), desk.now(), "test")
        alice = await desk.people.resolve_groups(alice, desk.now(), "test")
        refused: list[str] = []

        async def ask(evacuating: Evacuating) -> None:
            try:
                await evacuating.prepare(Wish(alice, "a", (), (), 1, "storm", "test", desk.now()))
            except GatewayError as error:
                refused.append(error.code)

        async with trio.open_nursery() as nursery:
            for _ in range(70):
                nursery.start_soon(ask, desk.evacuating)
            with trio.fail_after(60):
                told = desk.gate.dispatch
                while len(refused) + told.count(running.site.spiffe_id("a"), "evacuation") < 70:
                    await trio.sleep(0.05)
            moved = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
            assert moved.status_code == 201, moved.text
        assert refused.count("overloaded") == 66
        assert refused.count("relay_unreachable") == 4


async def test_what_runs_there_and_is_in_no_inventory_is_named_as_left_out(evacuable: Site) -> None:
    other = "00000000-2222-4333-8444-555555555555"
    async with running_gateway(evacuable) as running, trio.open_nursery() as nursery:
        nursery.start_soon(Relay(running).serve)
        await running.poll("a")
        await Reports(running, "a").report(guest(), guest(uuid=other, name="pet"))
        answer = (await prepare(running)).json()
        assert [(each["vm"], each["name"]) for each in answer["left_out"]] == [(other, "pet")]
        assert "not in the inventory" in answer["left_out"][0]["because"]
        (prepared,) = await running.records("evacuation.prepared")
        assert (prepared["details"]["vms"], prepared["details"]["left_out"]) == (1, [other])
        assert (await prepare(running, vms=["web"])).json()["left_out"] == []
        nursery.cancel_scope.cancel()


async def test_why_nothing_may_leave_is_said_of_the_likeliest_destination(evacuable: Site) -> None:
    """Of the least alike it read as if a host of the same zone had to be named, where the right to evacuate lacks."""
    async with running_gateway(evacuable) as running:
        await running.poll("a")
        answer = await prepare(running, "bob")
        assert answer.status_code == 403
        assert "No policy permits Evacuate of VM web" in answer.json()["error"]["message"]
        (decision,) = await running.records("evacuation.decision")
        assert decision["destination"] == running.site.spiffe_id("b")


@pytest.mark.parametrize(("who", "host"), [("bob", "a"), ("bob", "b"), ("alice", "b"), ("bob", "nowhere")])
async def test_who_may_not_prepare_does_not_withdraw_and_of_an_empty_host_nobody(
    evacuable: Site, who: str, host: str
) -> None:
    async with running_gateway(evacuable) as running:
        if host == "nowhere":  # who may not learns not even that
            answer = await running.person(who).post(f"/v1/evacuations/{32 * '0'}/withdraw", json={"host": host})
            assert answer.status_code == 403, answer.text
            (record,) = await running.records("evacuation.withdrawn")
            assert record["outcome"] == "denied"
            return
        await running.poll(host)
        answer = await running.person(who).post(f"/v1/evacuations/{32 * '0'}/withdraw", json={"host": host})
        assert answer.status_code == 403, answer.text
        (record,) = await running.records("evacuation.withdrawn")
        assert record["outcome"] == "denied"
        assert await running.poll(host) == [], "the host keeps what it holds"


async def test_withdrawals_that_somebody_makes_up_leave_room_for_moves_and_for_those_that_were_prepared(
    evacuable: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may evacuate one VM once filled the queue of its host, and held up everybody's moves from there."""
    async with running_gateway(evacuable) as running:
        alice = running.person("alice")

        async def withdraw(evacuation_id: str) -> int:
            answer = await alice.post(f"/v1/evacuations/{evacuation_id}/withdraw", json={"host": "a"})
            return answer.status_code

        async with trio.open_nursery() as nursery:
            relay = Relay(running)
            nursery.start_soon(relay.serve)
            await running.poll("a")
            assert (await prepare(running)).status_code == 201
            nursery.cancel_scope.cancel()
        statuses = [await withdraw(f"{number:032x}") for number in range(70)]
        assert (statuses[0], statuses[-1]) == (202, 503)
        again = [await withdraw(f"{0:032x}") for _ in range(5)]
        assert again == [202] * 5, "told once, however often it is asked for"
        assert await withdraw(relay.held[0].evacuation_id) == 202
        await running.poll("a")
        moved = await alice.post("/v1/migrations", json={"vm": "web", "destination": "b"})
        assert moved.status_code == 201, moved.text


async def test_nobody_fills_the_log_with_withdrawals_of_nothing(evacuable: Site) -> None:
    few = "\n[limits]\nrefusals_per_person = 10\nrefusals_per_minute = 1\n"
    edit(evacuable.gateway_config, lambda text: text + few)
    async with running_gateway(evacuable) as running:
        alice = running.person("alice")
        for _ in range(20):
            answer = await alice.post(f"/v1/evacuations/{32 * '0'}/withdraw", json={"host": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_refusals")
        assert len(await running.records("evacuation.withdrawn")) == 10


async def test_what_is_withdrawn_while_its_relay_fetches_it_is_not_prepared_and_only_for_its_own_host(
    evacuable: Site,
) -> None:
    async with running_gateway(evacuable) as running, trio.open_nursery() as nursery:
        await running.poll("a")
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await prepare(running))

        nursery.start_soon(ask)
        (told,) = await running.poll("a", wait_seconds=10)
        asked = {"evacuation_id": told["evacuation_id"]}
        client, office = running.client("a"), running.gateway.desk.evacuating
        assert office is not None
        other = running.gateway.desk.gate.inventory.host("b")
        assert other is not None
        office.handing_over.forget(other, told["evacuation_id"])
        assert (await client.post("/v1/relay/evacuation", json=asked)).status_code == 200, "it is not that host's"
        path = f"/v1/evacuations/{told['evacuation_id']}/withdraw"
        assert (await running.person("alice").post(path, json={"host": "a"})).status_code == 202
        with trio.fail_after(10):
            while not answers:
                await trio.sleep(0.05)
        assert answers[0].status_code == 503
        assert "withdrawn" in answers[0].json()["error"]["message"]
        await client.post("/v1/relay/evacuation/held", json={**asked, "problem": ""})
        (prepared,) = await running.records("evacuation.prepared")
        assert prepared["outcome"] == "failed"
        assert await running.poll("a") == [{"kind": "withdraw_evacuation", **asked}]


async def test_what_is_withdrawn_while_it_is_being_decided_is_not_given_to_its_relay(
    evacuable: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id is in the log from the first decision on, and there may be thousands of them."""

    async def withdrawn_meanwhile(gate: Gate, wish: Wish, evacuation_id: str, *rest: Any) -> Any:
        decided = await orders_of(gate, wish, evacuation_id, *rest)
        path = f"/v1/evacuations/{evacuation_id}/withdraw"
        assert (await running.person("alice").post(path, json={"host": "a"})).status_code == 202
        return decided

    monkeypatch.setattr("gateway.evacuating.orders_of", withdrawn_meanwhile)
    async with running_gateway(evacuable) as running, trio.open_nursery() as nursery:
        relay = Relay(running)
        await running.poll("a")
        nursery.start_soon(relay.serve)
        answer = await prepare(running)
        assert (answer.status_code, relay.held) == (503, [])
        assert "withdrawn" in answer.json()["error"]["message"]
        nursery.cancel_scope.cancel()


async def test_a_relay_that_holds_nothing_is_no_success(evacuable: Site) -> None:
    async with running_gateway(evacuable) as running, trio.open_nursery() as nursery:
        nobody = await prepare(running)
        assert nobody.status_code == 503, "its relay has not been heard of"
        relay = Relay(running, problem="the disk is full")
        nursery.start_soon(relay.serve)
        await running.poll("a")
        answer = await prepare(running)
        assert answer.status_code == 503
        assert "the disk is full" in answer.json()["error"]["message"]
        silent, prepared = await running.records("evacuation.prepared")
        assert (silent["outcome"], silent["details"]["not_prepared"]) == ("failed", "relay_unreachable")
        assert prepared["outcome"] == "failed"
        assert prepared["details"]["not_held"] == "the disk is full"
        nursery.cancel_scope.cancel()


async def test_a_relay_that_took_them_and_never_said_so_is_told_to_forget_them(
    evacuable: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.evacuation_handover.HELD_SECONDS", 0.5)
    async with running_gateway(evacuable) as running, trio.open_nursery() as nursery:
        await running.poll("a")

        async def take_in_silence() -> None:
            (told,) = await running.poll("a", wait_seconds=2)
            asked = {"evacuation_id": told["evacuation_id"]}
            taken = await running.client("a").post("/v1/relay/evacuation", json=asked)
            assert taken.status_code == 200, taken.text

        nursery.start_soon(take_in_silence)
        answer = await prepare(running)
        assert answer.status_code == 503
        (prepared,) = await running.records("evacuation.prepared")
        assert prepared["details"]["not_held"] == "its relay did not answer in time"
        told = {"kind": "withdraw_evacuation", "evacuation_id": prepared["details"]["evacuation"]}
        assert await running.poll("a") == [told], "else it would have permits of which the log says that it has not"


async def test_nothing_stays_held_that_no_record_says_is_held(evacuable: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_gateway(evacuable) as running, trio.open_nursery() as nursery:
        relay = Relay(running)
        nursery.start_soon(relay.serve)
        await running.poll("a")
        recorder = running.gateway.desk.gate.recorder
        append = recorder.append

        async def append_all_but_one(event: Event, *args: Any) -> Recorded:
            if event.kind == "evacuation.prepared":
                raise LogUnavailable("disk full")
            return await append(event, *args)

        monkeypatch.setattr(recorder, "append", append_all_but_one)
        assert (await prepare(running)).status_code == 503
        (held,) = relay.held
        with trio.fail_after(10):
            while {"kind": "withdraw_evacuation", "evacuation_id": held.evacuation_id} not in relay.assignments:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()


async def test_whoever_may_evacuate_nothing_fills_no_log_with_all_vms_of_a_host(
    evacuable: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = "\n[limits]\nrefusals_per_person = 10\nrefusals_per_minute = 1\n"
    edit(evacuable.gateway_config, lambda text: text + few)
    monkeypatch.setattr("gateway.evacuating.vms_on", lambda *args: vms_on(*args) * 30)
    async with running_gateway(evacuable) as running:
        await running.poll("a")
        answer = await prepare(running, "bob")
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_refusals")
        assert len(await running.records("evacuation.decision")) == 10


@pytest.mark.parametrize(("who", "status", "code"), [("alice", 409, "too_many_permits"), ("bob", 403, "not_allowed")])
async def test_how_many_vms_a_host_has_only_who_may_move_them_is_told(
    evacuable: Site, monkeypatch: pytest.MonkeyPatch, who: str, status: int, code: str
) -> None:
    monkeypatch.setattr("gateway.evacuating.MAX_PERMITS", 1)
    async with running_gateway(evacuable) as running:
        await running.poll("a")
        answer = await prepare(running, who)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_what_another_policy_came_into_force_for_meanwhile_is_not_handed_over(
    evacuable: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(evacuable.directory / "bundle", tmp_path / "next")
    edit(tmp_path / "next" / "bundle.toml", lambda text: text.replace("version = 1", "version = 2"))
    following = Bundle.load(tmp_path / "next")
    async with running_gateway(evacuable) as running:
        await running.poll("a")
        gate = running.gateway.desk.gate
        prove = gate.prove

        async def prove_and_publish(recorded: Recorded) -> PermitProof:
            gate.engine.swap(following)
            return await prove(recorded)

        monkeypatch.setattr(gate, "prove", prove_and_publish)
        answer = await prepare(running)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "policy_changed")
        assert await running.poll("a") == [], "its relay hears nothing of it"
        (prepared,) = await running.records("evacuation.prepared")
        assert prepared["outcome"] == "failed"


async def test_a_host_that_was_revoked_gets_none_and_that_is_on_record(
    evacuable: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(evacuable) as running:
        await running.poll("a")
        monkeypatch.setattr(running.gateway.desk.gate, "is_revoked", lambda _host: True)
        answer = await prepare(running)
        assert answer.status_code == 503
        assert "has been revoked" in answer.json()["error"]["message"]
        (prepared,) = await running.records("evacuation.prepared")
        assert (prepared["outcome"], prepared["details"]["not_prepared"]) == ("failed", "host_revoked")
        assert prepared["source"] == f"spiffe://{evacuable.trust_domain}/host/a"


async def test_a_gateway_without_the_table_prepares_none(running: Running) -> None:
    assert (await prepare(running)).status_code == 404


async def test_replay_decides_evacuations_again_and_finds_the_one_that_another_bundle_forbids(
    evacuable: Site, tmp_path: Path
) -> None:
    async with running_gateway(evacuable) as running, trio.open_nursery() as nursery:
        nursery.start_soon(Relay(running).serve)
        await running.poll("a")
        assert (await prepare(running)).status_code == 201
        indexes = [each["sequence"] for each in await running.records("evacuation.decision")]
        nursery.cancel_scope.cancel()
    log = evacuable.directory / "log"
    same = invoke("policy", "replay", evacuable.directory / "bundle", "--log", log)
    assert same.exit_code == 0, same.output
    assert "2 requests compared: 0 decided differently" in same.stdout
    strict = tmp_path / "strict"
    shutil.copytree(evacuable.directory / "bundle", strict)
    (strict / "policies" / "stay.cedar").write_text(
        '@id("nobody-evacuates")\n@reason("Hosts are emptied by hand.")\n'
        'forbid (principal, action == Sealane::Action::"Evacuate", resource);\n',
        encoding="utf-8",
    )
    found = invoke("policy", "replay", strict, "--log", log, "--json")
    assert found.exit_code == 1, found.output
    differences = json.loads(found.stdout.splitlines()[-1])["differences"]
    assert [each["where"] for each in differences] == [f"record {index}" for index in indexes]
    assert all(" Evacuate web from a to " in each["what"] for each in differences)
    assert {each["after"]["policies"][0] for each in differences} == {"nobody-evacuates"}
