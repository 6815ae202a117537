"""Emptying a host: which VMs may go where, in which order, and why others may not; then the queue that does it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.cli.drain import Limits, Queue
from gateway.cli.errors import CommandError, Refused, Unreachable
from gateway.cli.replies import DecisionReply, DrainReply, MigrationReply, Progress
from gateway.starter import Site
from tests.gateway.conftest import UUID_LEDGER, UUID_WEB, Running, running_gateway
from tests.gateway.test_placement import Relay, guest


async def check(running: Running, who: str = "alice", **body: Any) -> Any:
    return await running.person(who).post("/v1/drain/check", json={"host": "a", **body})


@pytest.mark.whole
async def test_a_vm_may_go_where_a_migration_would_be_allowed_and_its_relay_answers(running: Running) -> None:
    for host in ("a", "b"):
        await running.poll(host)
    answer = await check(running)
    assert answer.status_code == 200, answer.text
    (web,) = answer.json()["prospects"]
    assert web["vm"]["name"] == "web"
    assert (web["destinations"], web["cannot"]) == (["b"], None)
    refused = {host: each["because"] for each in web["refused"] for host in each["hosts"]}
    assert refused["c"] == "its relay has not been heard of lately"
    assert set(refused) == {"c", "prod"}
    (record,) = await running.records("drain.check")
    assert (record["outcome"], record["details"]["vms"], record["details"]["may_move"]) == ("completed", 1, 1)
    assert await running.records("migration.decision") == []


@pytest.mark.whole
async def test_what_keeps_a_vm_where_it_is_is_said_for_it_and_devices_decide(running: Running) -> None:
    await running.poll("b")
    (web,) = (await check(running)).json()["prospects"]
    assert web["cannot"] == "the relay on its host has not been heard of lately"
    (record,) = await running.records("drain.check")
    assert record["details"]["may_move"] == 0, "it may, and cannot"
    await running.poll("a")
    await Relay(running, "a").report(guest(devices=["hostdev:pci"]))
    (web,) = (await check(running, to=["b"])).json()["prospects"]
    assert web["destinations"] == []
    assert "holds a device of its host" in web["refused"][0]["because"]


@pytest.mark.whole
async def test_what_runs_there_and_nobody_can_move_is_not_taken_for_nothing(running: Running) -> None:
    """The host was called empty, and a guest that the inventory does not list would have gone down with it."""
    other, unnamed = "00000000-2222-4333-8444-555555555555", "00000000-2222-4333-8444-666666666666"
    for host in ("a", "b", "c"):
        await running.poll(host)
    guests = [guest(uuid=other, name="pet"), guest(uuid=unnamed), guest(uuid=UUID_LEDGER, presence="arriving")]
    await Relay(running, "b").report(*guests)
    answer = (await check(running, host="b")).json()
    assert [(each["vm"]["name"], each["cannot"]) for each in answer["prospects"]] == [
        ("pet", "it is not in the inventory: list it there, or end it on its host"),
        (unnamed, "it is not in the inventory: list it there, or end it on its host"),
    ]
    assert (answer["vms"], answer["may_move"], answer["is_heard"]) == (2, 0, True)
    await Relay(running, "a").report(guest(since_s=60))
    await Relay(running, "c").report(guest(since_s=60))
    (web,) = (await check(running, host="c")).json()["prospects"]
    assert web["cannot"] == "web runs on a and c at once"
    await Relay(running, "c").report()
    assert (await check(running, host="c")).json()["prospects"] == []
    assert (await check(running, host="prod")).json()["is_heard"] is False
    await running.poll("prod")
    assert (await check(running, host="prod")).json()["is_heard"] is False, "its libvirtd does not answer, say"
    await Relay(running, "prod").report()
    assert (await check(running, host="prod")).json()["is_heard"] is True


@pytest.mark.whole
async def test_which_hosts_are_behind_a_link_to_another_site_is_told(site: Site) -> None:
    hosts, _, last = site.inventory.read_text().partition('name = "c"')
    site.inventory.write_text(
        f'{hosts}name = "c"{last.replace(chr(34) + "fra" + chr(34), chr(34) + "zrh" + chr(34), 1)}'
    )
    async with running_gateway(site) as running:
        assert (await check(running)).json()["links"] == {"c": "zrh"}


@pytest.mark.whole
async def test_who_may_not_ask_learns_nothing_and_unknown_hosts_are_named(running: Running) -> None:
    assert (await check(running, "bob")).status_code == 403
    (record,) = await running.records("drain.check")
    assert record["outcome"] == "denied"
    for body in ({"host": "nowhere"}, {"to": ["b", "nowhere"]}):
        answer = await check(running, **body)
        assert (answer.status_code, "nowhere" in answer.json()["error"]["message"]) == (404, True)
    assert (await check(running, to=["a"])).status_code == 400


@pytest.mark.whole
async def test_no_question_is_too_long_to_be_denied_on_record(running: Running) -> None:
    assert (await check(running, "bob", to=["\U0001f600" * 15] * 950)).status_code == 403
    (record,) = await running.records("drain.check")
    assert record["outcome"] == "denied"


@pytest.mark.whole
async def test_a_policy_that_names_one_vm_holds_for_it_alone(site: Site) -> None:
    """Equal facts are decided once, but not where a policy can tell two VMs apart."""
    twin = UUID_WEB.replace("1", "2")
    text = site.inventory.read_text()
    entry = text[text.index("[[vms]]") :].partition("\n\n")[0]
    assert UUID_WEB in entry
    site.inventory.write_text(text + "\n" + entry.replace(UUID_WEB, twin).replace('"web"', '"web-2"') + "\n")
    for only, names in (
        ("", {"web", "web-2"}),
        (f'resource == Sealane::Vm::"{UUID_WEB}"', {"web-2"}),
        ('resource.name == "web"', {"web-2"}),
    ):
        policy = site.directory / "bundle" / "policies" / "one.cedar"
        if only:
            policy.write_text(
                '@id("one-vm-stays")\n@reason("That one stays.")\nforbid (principal, action, resource) '
                f"when {{ resource is Sealane::Vm && {only} }};\n"
            )
        async with running_gateway(site) as running:
            for host in ("a", "b"):
                await running.poll(host)
            prospects = (await check(running)).json()["prospects"]
            assert {each["vm"]["name"] for each in prospects if each["destinations"] == ["b"]} == names
        policy.unlink(missing_ok=True)


def found(*vms: tuple[str, list[str]], cannot: str | None = None, **links: str) -> DrainReply:
    prospects = [
        {"vm": {"uuid": name, "name": name}, "destinations": to, "refused": [], "cannot": cannot} for name, to in vms
    ]
    reply = {"host": "a", "vms": 1, "may_move": 1, "hosts": 1, "prospects": prospects, "record_index": 0}
    return msgspec.convert({**reply, "links": links}, DrainReply)


def ignore(_: object) -> None:
    """Nobody is told, and nobody waits."""


class Moves:
    """A gateway as the queue sees it; `fates`: what becomes of a VM at a destination."""

    def __init__(self, **fates: str) -> None:
        self.fates = fates
        self.asked: list[tuple[str, str]] = []
        self.moving: list[tuple[str, str]] = []
        self.most: dict[str, int] = {}

    def request_migration(self, body: dict[str, Any]) -> DecisionReply:
        move = (body["vm"], body["destination"])
        self.asked.append(move)
        fate = self.fates.get("_".join(move), "completed")
        if fate == "unreachable":
            raise Unreachable("its relay is silent", "operator", "wait", "relay_unreachable")
        allowed = fate != "denied"
        if allowed:
            self.moving.append(move)
            here = sum(each[1] == move[1] for each in self.moving)
            self.most[move[1]] = max(self.most.get(move[1], 0), here)
            self.most["all"] = max(self.most.get("all", 0), len(self.moving))
        decision: dict[str, Any] = {
            "allowed": allowed,
            "denied_because": None if allowed else "a policy",
            "policies": [],
            "errors": [],
        }
        reply = {"decision": {**decision, "bundle_digest": "0"}, "record_index": 1, "migration_id": "_".join(move)}
        return msgspec.convert(reply, DecisionReply)

    def migration(self, migration_id: str) -> MigrationReply:
        self.moving.remove(tuple(migration_id.split("_")))  # type: ignore[arg-type]
        fate = self.fates.get(migration_id, "completed")
        return MigrationReply(migration_id, fate, outcome=fate, message=None if fate == "completed" else "it broke")


def run(
    moves: Moves, prospects: DrainReply, *, at_once: int = 2, each: int = 1, tries: int = 3, link: int = 64
) -> Queue:
    queue = Queue(moves, prospects, None, Limits(at_once, each, link, tries), ignore)  # type: ignore[arg-type]
    queue.run(ignore)
    return queue


def test_the_queue_keeps_its_limits_and_moves_all() -> None:
    moves = Moves()
    queue = run(moves, found(*[(f"vm{n}", ["b", "c"]) for n in range(7)]), at_once=2, each=1)
    assert {move.outcome for move in queue.moves} == {"moved"}
    assert moves.most == {"b": 1, "c": 1, "all": 2}
    moves = Moves()
    run(moves, found(*[(f"vm{n}", ["b"]) for n in range(7)]), at_once=5, each=3)
    assert moves.most == {"b": 3, "all": 3}


class Impatient(Moves):
    """A gateway that lets the person wait for some turns, as it does where they had very much denied."""

    turns = 3

    def request_migration(self, body: dict[str, Any]) -> DecisionReply:
        if self.asked and self.turns:
            self.turns -= 1
            raise Refused("too many requests of yours", "requester", "wait 1 s", "too_many_refusals")
        return super().request_migration(body)


def test_who_has_to_wait_moves_all_the_same_and_is_told_once() -> None:
    moves, said = Impatient(), list[str]()
    vms = found(*[(f"vm{n}", ["b", "c"]) for n in range(4)])
    queue = Queue(moves, vms, None, Limits(2, 1, 64, 1), said.append)  # type: ignore[arg-type]
    queue.run(ignore)
    assert {move.outcome for move in queue.moves} == {"moved"}
    assert all(len(move.tried) == 1 for move in queue.moves)
    assert sum("waits" in line for line in said) == 1


class Ended(Moves):
    """Its requester's login ends, and comes back `until` questions later; or its gateway is away for as long."""

    def __init__(self, error: CommandError, until: int) -> None:
        super().__init__()
        self.error = error
        self.until = until
        self.questions = 0

    def _ask(self) -> None:
        self.questions += 1
        if 2 <= self.questions < self.until:
            raise self.error

    def request_migration(self, body: dict[str, Any]) -> DecisionReply:
        self._ask()
        return super().request_migration(body)

    def migration(self, migration_id: str) -> MigrationReply:
        self._ask()
        return super().migration(migration_id)


LOGIN = Refused("the token is not accepted", "requester", "sign in", "unauthenticated")
AWAY = Unreachable("no answer", "operator", "wait")
WAIT = Refused("too much was denied", "requester", "wait", "too_many_refusals")


@pytest.mark.parametrize("error", [LOGIN, AWAY])
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_login_that_ended_and_a_gateway_that_is_away_are_waited_for(error: CommandError, at_once: int) -> None:
    said: list[str] = []
    moves = Ended(error, 30)
    vms = found(*((f"vm{number}", ["b", "c"]) for number in range(3)))
    queue = Queue(moves, vms, None, Limits(at_once, 1, 64, 2), said.append, lambda: 0.0)  # type: ignore[arg-type]
    queue.run(ignore)
    assert [move.outcome for move in queue.moves] == ["moved"] * 3
    assert sum("sealane login" in line for line in said) == (error is LOGIN)


@pytest.mark.parametrize("minutes", [0, 10])
def test_a_gateway_that_goes_away_is_waited_for_also_after_it_has_let_the_queue_wait(minutes: int) -> None:
    """However long too much of the requester's was denied: it answered."""
    seconds = 0.0
    answers = iter([*[AWAY] * 3, *[WAIT] * (60 * minutes), *[AWAY] * 3])

    class Denied(Moves):
        def request_migration(self, body: dict[str, Any]) -> DecisionReply:
            if (answer := next(answers, None)) is not None:
                raise answer
            return super().request_migration(body)

    def pass_time(_: object) -> None:
        nonlocal seconds
        seconds += 1

    queue = Queue(Denied(), found(("vm1", ["b"])), None, Limits(1, 1, 64, 1), ignore, lambda: seconds)  # type: ignore[arg-type]
    queue.run(pass_time)
    assert [move.outcome for move in queue.moves] == ["moved"]


@pytest.mark.parametrize("error", [LOGIN, AWAY])
def test_what_is_waited_for_too_long_ends_the_queue_and_each_move_says_how_it_is(error: CommandError) -> None:
    moves = Ended(error, 10**9)
    seconds = 0.0

    def pass_time(_: object) -> None:
        nonlocal seconds
        seconds += 1

    vms = found(("vm1", ["b", "c"]), ("vm2", ["b", "c"]))
    queue = Queue(moves, vms, None, Limits(1, 1, 64, 2), ignore, lambda: seconds)  # type: ignore[arg-type]
    queue.run(pass_time)
    first, second = queue.moves
    assert (first.outcome, "sealane migration show vm1_b" in first.because) == ("not_followed", True)
    assert (second.outcome, second.because) == ("stays", error.what)
    assert 60 <= seconds <= 310


def test_the_link_to_another_site_has_a_limit_of_its_own_and_others_take_what_it_leaves() -> None:
    moves = Moves()
    far = found(*[(f"vm{n}", ["x1", "x2", "y1"]) for n in range(6)], x1="zrh", x2="zrh", y1="lon")
    run(moves, far, at_once=6, each=4, link=2)
    assert moves.most == {"x1": 2, "y1": 2, "all": 4}
    moves = Moves()
    run(moves, found(*[(f"vm{n}", ["x1", "b"]) for n in range(6)], x1="zrh"), at_once=6, each=4, link=1)
    assert moves.most == {"x1": 1, "b": 4, "all": 5}
    moves = Moves()
    queue = run(moves, found(("vm1", ["x1"]), ("vm2", ["x2"]), x1="zrh", x2="zrh"), at_once=6, link=1)
    assert moves.most["all"] == 1
    assert {move.outcome for move in queue.moves} == {"moved"}


def test_what_fails_or_is_denied_or_unreachable_is_tried_elsewhere_and_then_stays() -> None:
    moves = Moves(vm1_b="failed", vm2_b="denied", vm3_b="unreachable", vm3_c="failed", vm3_d="completed")
    queue = run(moves, found(("vm1", ["b", "c"]), ("vm2", ["b", "c"]), ("vm3", ["b", "c", "d"])), at_once=1, tries=2)
    outcomes = {move.name: (move.outcome, move.destination, move.tried) for move in queue.moves}
    assert outcomes["vm1"] == ("moved", "c", ["b", "c"])
    assert outcomes["vm2"] == ("moved", "c", ["b", "c"])
    assert outcomes["vm3"] == ("stays", None, ["b", "c"])


def test_what_cannot_move_is_not_asked_for_and_an_interrupt_begins_no_more() -> None:
    moves = Moves()
    queue = run(moves, found(("vm1", ["b"]), cannot="it runs on two hosts at once"))
    assert (moves.asked, queue.moves[0].outcome) == ([], "stays")
    queue = Queue(moves, found(("vm1", ["b"]), ("vm2", ["b"])), None, Limits(1, 1, 1, 1), ignore)  # type: ignore[arg-type]
    queue.run(ignore, lambda: bool(moves.asked))
    assert [(move.outcome, move.because) for move in queue.moves] == [
        ("moved", ""),
        ("stays", "not begun: interrupted"),
    ]


def test_a_move_that_fails_after_an_interrupt_is_begun_nowhere_else() -> None:
    moves = Moves(vm1_b="failed")
    queue = Queue(moves, found(("vm1", ["b", "c"])), None, Limits(1, 1, 1, 2), ignore)  # type: ignore[arg-type]
    queue.run(ignore, lambda: bool(moves.asked))
    assert (queue.moves[0].outcome, queue.moves[0].because) == ("stays", "it broke")


def test_who_leaves_is_told_what_goes_on_and_what_was_being_asked_for() -> None:
    """A move that the gateway was beginning was told as not begun."""

    class Left(Moves):
        def request_migration(self, body: dict[str, Any]) -> DecisionReply:
            if self.asked:
                raise KeyboardInterrupt
            return super().request_migration(body)

    vms = found(("vm1", ["b"]), ("vm2", ["c"]), ("vm3", ["b"]))
    queue = Queue(Left(), vms, None, Limits(2, 1, 1, 1), ignore)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        queue.run(ignore)
    queue.leave()
    assert [(move.outcome, move.because) for move in queue.moves] == [
        ("not_followed", "under way, and not followed any more: interrupted; see `sealane migration show vm1_b`"),
        ("not_followed", "perhaps under way to c: interrupted as it was asked for"),
        ("stays", "not begun: interrupted"),
    ]


class Slow(Moves):
    """Each VM takes 35 looks."""

    looks = 0

    def migration(self, migration_id: str) -> MigrationReply:
        self.looks += 1
        if self.looks == 35:
            return super().migration(migration_id)
        numbers = Progress(remaining_bytes=1 << 20, total_bytes=1 << 30, rate_bytes_per_second=1 << 20, pass_number=4)
        return MigrationReply(migration_id, "assigned" if self.looks < 4 else "running", progress=numbers)


def test_how_far_a_long_move_is_is_told_now_and_then() -> None:
    said: list[str] = []
    queue = Queue(Slow(), found(("vm1", ["b"])), None, Limits(1, 1, 1, 1), said.append)  # type: ignore[arg-type]
    queue.run(ignore)
    assert said == [
        "vm1: moving to b (vm1_b)",
        "vm1: waits for its turn",
        "vm1: running  1.0 MiB/s  1.0 MiB remaining  pass 4",
        "vm1: moved to b",
    ]
