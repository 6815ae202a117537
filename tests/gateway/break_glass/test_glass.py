"""Breaking glass over HTTPS: two persons, one VM, one destination, until time is up; and who tries otherwise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio

from certs import layout
from gateway.starter import Site
from tests.gateway.break_glass.conftest import GLASS, Emergency, Hands
from tests.gateway.conftest import running_gateway
from tests.gateway.test_watch import edit, own_bundle

pytestmark = pytest.mark.whole


async def test_one_asks_another_approves_and_the_first_moves_the_vm(emergency: Emergency) -> None:
    grant = await emergency.asked()
    before = await emergency.move(grant)
    assert before.status_code == 403
    assert "nobody has approved it yet" in before.json()["decision"]["denied_because"]

    approved = (await emergency.approve(grant)).json()
    assert (approved["state"], approved["approved_by"]) == ("approved", "sealane-local#mona")
    moved = await emergency.move(grant)
    assert moved.status_code == 201, moved.text
    (assignment,) = await emergency.running.poll("prod")
    claims = emergency.running.open_permit(assignment["permit"]).claims
    assert claims.session_until <= approved["until"]

    assert await emergency.outcomes("requested") == ["allowed"]
    assert await emergency.outcomes("approved") == ["allowed"]
    assert await emergency.outcomes("used") == ["denied", "allowed"]
    (request,) = await emergency.records("requested")
    assert request["details"]["break_glass"]["ticket"] == "INC-4711"
    assert request["reason"] == "storage is on fire"
    (_, decision) = await emergency.running.records("migration.decision")
    assert decision["details"]["action"] == "BreakGlass"
    assert decision["details"]["asked"]["break_glass"] == grant
    assert [policy["id"] for policy in decision["details"]["decision"]["policies"]] == ["duty-officers-break-glass"]


async def test_a_permit_ends_with_the_grant_that_it_was_given_under(emergency: Emergency) -> None:
    grant = await emergency.approved(minutes=1)
    emergency.hands.pass_by(0.5)
    assert (await emergency.move(grant)).status_code == 201
    (assignment,) = await emergency.running.poll("prod")
    claims = emergency.running.open_permit(assignment["permit"]).claims
    assert claims.exp == claims.session_until
    assert 20 <= claims.session_until - claims.iat <= 31
    assert claims.recover_until > claims.session_until


async def test_the_baselines_of_the_bundle_hold(emergency: Emergency) -> None:
    for changes, policy in (
        ({"destination": "a"}, "stay-in-zone"),
        ({"reason": " "}, None),
        ({"vm": "nothing"}, "inventory does not know"),
    ):
        answer = await emergency.ask(**changes)
        assert answer.status_code in {400, 403}, answer.text
        assert policy is None or policy in answer.json()["error"]["message"]
    assert await emergency.outcomes("requested") == ["denied", "denied"]


@pytest.mark.parametrize("who", ["alice", "mona"])
async def test_who_is_no_duty_officer_does_not_ask(emergency: Emergency, who: str) -> None:
    assert (await emergency.ask(who)).status_code == 403
    assert await emergency.outcomes("requested") == ["denied"]


@pytest.mark.parametrize("who", ["alice", "dirk"])
async def test_who_may_not_approve_does_not(emergency: Emergency, who: str) -> None:
    """Dirk is a manager, too, but it is his own request."""
    grant = await emergency.asked("dirk")
    assert (await emergency.approve(grant, who)).status_code == 403
    assert await emergency.state(grant) == "pending"
    assert await emergency.outcomes("approved") == ["denied"]


async def test_a_program_asks_for_nobody_and_its_keeper_is_no_second_person(glass_site: Site) -> None:
    """Else one human with the key of a service, and a manager's rights, is both."""
    layout.issue_service(glass_site.certs, "night-bot", datetime.now(UTC))
    folder = glass_site.certs / "services" / "night-bot"
    table = '\n[[identity.services]]\nspiffe_id = "spiffe://bank.example/service/night-bot"\ngroups = ["bots"]\n'
    edit(glass_site.gateway_config, lambda text: text + table)
    (own_bundle(glass_site) / "bots.cedar").write_text(
        '@id("bots") @reason("r") permit (principal in Sealane::Group::"spiffe://bank.example#bots", '
        'action == Sealane::Action::"BreakGlass", resource);'
    )
    async with running_gateway(glass_site) as running:
        bot = running.client(credentials=(folder / "service.pem", folder / "service.key"))
        answer = await bot.post("/v1/break-glass", json={**GLASS, "vm": "web", "destination": "b"})
        assert answer.status_code == 403, answer.text
        assert "A person asks, not a program" in answer.json()["error"]["message"]
        (record,) = await running.records("breakglass.requested")
        assert record["outcome"] == "denied"


async def test_an_approval_after_the_time_to_answer_is_none(emergency: Emergency) -> None:
    grant = await emergency.asked()
    emergency.hands.pass_by(31)
    answer = await emergency.approve(grant)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_pending")
    assert await emergency.outcomes("approved") == ["failed"]
    assert (await emergency.move(grant)).status_code == 403


async def test_an_approval_cannot_be_repeated_to_begin_anew(emergency: Emergency) -> None:
    grant = await emergency.approved()
    emergency.hands.pass_by(29)
    assert (await emergency.approve(grant, "marc")).status_code == 409
    emergency.hands.pass_by(2)
    assert (await emergency.approve(grant, "marc")).status_code == 409
    answer = await emergency.move(grant)
    assert "its time is up" in answer.json()["decision"]["denied_because"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vm": "web"}, "it is for VM ledger"),
        ({"destination": "prod"}, "it is for a move to prod2"),
        ({"ports": ["memory", "disks"]}, "it does not open these ports"),
        ({"who": "dirk"}, "you have none of that id"),
        ({"grant": "00000000"}, "you have none of that id"),
    ],
)
async def test_a_grant_covers_what_was_approved_and_nothing_else(
    emergency: Emergency, changes: dict[str, Any], words: str
) -> None:
    changes = {"grant": await emergency.approved(), **changes}
    answer = await emergency.move(**changes)
    assert answer.status_code == 403, answer.text
    assert words in answer.json()["decision"]["denied_because"]
    assert await emergency.outcomes("used") == ["denied"]
    assert await emergency.running.poll("prod") == []


async def test_a_grant_does_not_help_with_an_ordinary_move(emergency: Emergency) -> None:
    await emergency.approved()
    assert (await emergency.move(None)).status_code == 403  # type: ignore[arg-type]


async def test_after_its_end_nothing_is_moved(emergency: Emergency) -> None:
    grant = await emergency.approved()
    assert (await emergency.end(grant)).json()["ended_because"] == "ended"
    answer = await emergency.move(grant)
    assert "it was ended" in answer.json()["decision"]["denied_because"]
    assert (await emergency.approve(grant)).status_code == 409
    again = await emergency.end(grant)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "already_ended")


async def test_a_request_is_taken_back_or_refused(emergency: Emergency) -> None:
    first, second = await emergency.asked(), await emergency.asked("dirk")
    assert (await emergency.end(first)).json()["ended_because"] == "withdrawn"
    assert (await emergency.end(second, "dora")).status_code == 403
    assert (await emergency.end(second, "carol")).json()["ended_because"] == "refused"
    assert await emergency.outcomes("ended") == ["completed", "denied", "completed"]


async def test_the_log_knows_it_all_after_a_restart(glass_site: Site) -> None:
    hands = Hands()
    async with running_gateway(glass_site, hands.clock()) as running:
        before = Emergency(running, hands)
        approved, ended, pending = await before.approved(), await before.approved(), await before.asked()
        await before.end(ended)
    async with running_gateway(glass_site, hands.clock()) as running:
        after = Emergency(running, hands)
        assert [await after.state(each) for each in (approved, ended, pending)] == ["approved", "ended", "pending"]
        assert (await after.move(ended)).status_code == 403
        assert (await after.approve(pending, "marc")).status_code == 200
        assert (await after.move(approved)).status_code == 201


async def test_a_clock_that_is_stepped_back_prolongs_nothing(emergency: Emergency) -> None:
    grant = await emergency.approved()
    emergency.hands.pass_by(20)
    emergency.hands.wall_offset -= emergency.hands.wall_offset  # back by 20 minutes
    emergency.hands.monotonic_offset *= 31 / 20  # and 11 more have passed
    answer = await emergency.move(grant)
    assert "its time is up" in answer.json()["decision"]["denied_because"]


async def test_a_clock_that_is_stepped_back_while_the_gateway_is_down_prolongs_nothing(glass_site: Site) -> None:
    hands = Hands()
    async with running_gateway(glass_site, hands.clock()) as running:
        before = Emergency(running, hands)
        grant = await before.approved()
        hands.pass_by(31)
        await before.asked()  # any record of the later time
    hands = Hands()
    async with running_gateway(glass_site, hands.clock()) as running:
        assert (await Emergency(running, hands).move(grant)).status_code == 403


@pytest.mark.parametrize("ahead", [timedelta(days=2), timedelta(days=10)])
async def test_a_clock_that_was_ahead_for_a_moment_prolongs_and_ends_nothing_at_a_restart(
    glass_site: Site, ahead: timedelta
) -> None:
    hands = Hands()
    async with running_gateway(glass_site, hands.clock()) as running:
        emergency = Emergency(running, hands)
        hands.wall_offset += ahead
        await emergency.asked()  # any record
        hands.wall_offset -= ahead
        hands.pass_by(5 * 60)
        grant = await emergency.approved()
    hands.pass_by(29)
    async with running_gateway(glass_site, hands.clock()) as running:
        assert await Emergency(running, hands).state(grant) == "approved"
    hands.pass_by(2)
    async with running_gateway(glass_site, hands.clock()) as running:
        assert "its time is up" in (await Emergency(running, hands).move(grant)).json()["decision"]["denied_because"]


async def test_of_two_approvals_at_once_one_counts(emergency: Emergency) -> None:
    grant = await emergency.asked()
    answers = []

    async def approve(who: str) -> None:
        answers.append((await emergency.approve(grant, who)).status_code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(approve, "mona")
        nursery.start_soon(approve, "marc")
    assert sorted(answers) == [200, 409]
    assert sorted(await emergency.outcomes("approved")) == ["allowed", "failed"]


@pytest.mark.parametrize("step", ["ask", "approve", "end", "move"])
async def test_what_the_log_does_not_take_does_not_count(emergency: Emergency, step: str) -> None:
    pending, approved = await emergency.asked(), await emergency.approved(who="dirk")
    await emergency.running.poll("prod")
    emergency.running.log.broken = True
    match step:
        case "ask":
            answer = await emergency.ask()
        case "approve":
            answer = await emergency.approve(pending)
        case "end":
            answer = await emergency.end(pending)
        case _:
            answer = await emergency.move(approved, "dirk")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "log_unavailable")
    emergency.running.log.broken = False
    emergency.running.gateway.committer._next_attempt = 0
    assert await emergency.state(pending) == "pending"
    assert (await emergency.move(pending)).status_code == 403
    assert len(await emergency.records("requested")) == 2
    assert (await emergency.approve(pending)).status_code == 200


async def test_an_approval_that_was_cut_off_counts_if_it_is_in_the_log(emergency: Emergency) -> None:
    """The approver hangs up in the midst of the commit: what the log says counts, not what memory missed."""
    grant = await emergency.asked()
    glass = emergency.running.gateway.reloader._gate.break_glass
    assert glass is not None
    real = glass._gate.recorder.append

    async def append(*arguments: Any) -> Any:
        recorded = await real(*arguments)
        raise trio.TooSlowError(recorded)

    glass._gate.recorder.append = append  # type: ignore[method-assign,assignment]
    assert (await emergency.approve(grant)).status_code == 500
    glass._gate.recorder.append = real  # type: ignore[method-assign]
    assert await emergency.state(grant) == "approved"


@pytest.mark.parametrize(
    "changes",
    [
        {"ticket": "INC-4711\n"},
        {"ticket": "x" * 65},
        {"ticket": "' OR 1=1"},
        {"ticket": "KAN-1"},
        {"ticket": ""},
        {"reason": "a\u001b[31mb"},
        {"reason": "left\u202eright"},
        {"reason": "x" * 501},
        {"minutes": 0},
        {"minutes": 61},
        {"minutes": 1.5},
        {"minutes": True},
        {"vm": "x" * 256},
        {"until": "tomorrow"},
    ],
)
async def test_a_malformed_request_is_refused_and_leaves_no_trace(
    emergency: Emergency, changes: dict[str, Any]
) -> None:
    answer = await emergency.ask(**changes)
    assert answer.status_code == 400, answer.text
    assert await emergency.records("requested") == []


async def test_a_reason_with_control_characters_is_refused_at_every_step(emergency: Emergency) -> None:
    grant = await emergency.asked()
    for step in ("approve", "end"):
        answer = await emergency.call("mona", "POST", f"/{grant}/{step}", {"reason": "a\u001b]0;b"})
        assert answer.status_code == 400, step
    assert await emergency.records("approved") == await emergency.records("ended") == []


async def test_only_so_many_wait_for_an_answer(emergency: Emergency) -> None:
    for _ in range(2):
        await emergency.asked()
    answer = await emergency.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_pending")
    assert await emergency.outcomes("requested") == ["allowed", "allowed", "failed"]
    assert (await emergency.ask("dirk")).status_code == 201


async def test_who_may_see_it(emergency: Emergency) -> None:
    grant = await emergency.asked()
    for who, seen in (("dora", 1), ("mona", 1), ("carol", 1), ("alice", 0)):
        shown = (await emergency.call(who, "GET", "")).json()["break_glass"]
        assert len(shown) == seen, who
    assert "marks" not in str((await emergency.call("mona", "GET", "")).json())
    health = (await emergency.running.client().get("/v1/health")).json()
    assert health["break_glass"] == {"pending": 1, "approved": 0}
    assert grant


async def test_what_ended_by_itself_is_recorded_once(emergency: Emergency) -> None:
    await emergency.asked()
    await emergency.approved(who="dirk")
    glass = emergency.running.gateway.reloader._gate.break_glass
    assert glass is not None
    emergency.hands.pass_by(31)
    await glass.record_endings()
    await glass.record_endings()
    endings = [record["details"]["break_glass"]["because"] for record in await emergency.records("ended")]
    assert sorted(endings) == ["expired", "unanswered"]


async def test_without_the_table_no_glass_can_be_broken(site: Site) -> None:
    async with running_gateway(site) as running:
        alice = running.person("alice")
        for answer in (
            await alice.post("/v1/break-glass", json=GLASS),
            await alice.get("/v1/break-glass"),
            await alice.post("/v1/migrations", json={"vm": "web", "destination": "b", "break_glass": "00000000"}),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_set_up")
