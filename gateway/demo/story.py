"""The demo as a story: a site, a guest, a denial, a move, and what an auditor finds afterwards."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.demo.errors import Unexpected
from gateway.demo.evidence import (
    flip_a_byte,
    is_denial_recorded,
    read_evidence,
    read_records,
    verify_log,
    wait_receipts,
)
from gateway.demo.guest import GuestLayout, build_boot_image, count_passes, memory_problems
from gateway.demo.machines import (
    Qemu,
    dump_region,
    let_run,
    require_qemu,
    run_state,
    start_qemu,
    stop_qemu,
    wait_passes,
)
from gateway.demo.processes import Commands
from gateway.demo.site import DESTINATION, OPERATOR, SOURCE, STRANGER, DemoSite, lay_out
from gateway.demo.telling import Findings, Teller
from gateway.starter import PersonPlan

MEMORY_MIB = 128
HOT_MIB = 16
VM_NAME = "counter"
VM_UUID = "5ea1a4e0-0000-4000-8000-00000000c0de"
_LAYOUT = GuestLayout.for_memory(MEMORY_MIB, HOT_MIB)
_PASSES_BEFORE = 50
_PASSES_AFTER = 100


@dataclass(frozen=True, slots=True)
class Moved:
    """What was seen of the move from outside: by process ids, run states, the serial ports and memory."""

    allowed: dict[str, Any]
    denied: dict[str, Any]
    one_guest_only: bool
    guest_alive: bool
    memory_intact: bool
    counted_to: int


async def tell_story(folder: Path, teller: Teller) -> Findings:
    """Run the whole demo in `folder`, which must be empty. Every process it starts has ended when it returns or raises.

    Raises DemoError where a step cannot be taken; what a check finds wrong is in the findings.
    """
    require_qemu()
    image = build_boot_image(_LAYOUT, folder)
    teller.step("A site: certificates, policy, inventory, people")
    commands = Commands(folder)
    site = lay_out(folder, VM_NAME, VM_UUID)
    teller.say(f"in {folder}, with a certificate authority of its own; nothing else on this machine is touched")
    async with _services(commands, site, teller), _guest(image, site, teller) as (source, destination):
        moved = await _move(commands, site, teller, source, destination)
        await wait_receipts(commands, site.site.log, str(moved.allowed["migration_id"]))
    return await _audit(commands, site, teller, moved)


@asynccontextmanager
async def _services(commands: Commands, site: DemoSite, teller: Teller) -> AsyncIterator[None]:
    teller.step("A gateway and the relays of two hosts")
    async with AsyncExitStack() as stack:
        teller.command("gateway", "serve", "--config", site.site.gateway_config.name)
        gateway = await stack.enter_async_context(
            commands.serve("gateway", "gateway", "serve", "--config", str(site.site.gateway_config))
        )
        teller.check(True, f"the gateway answers at {gateway.listen}, process {gateway.process.pid}")
        for host in (SOURCE, DESTINATION):
            config = site.site.relay_config(host)
            relay = await stack.enter_async_context(
                commands.serve(f"relay-{host}", "relay", "serve", "--config", str(config))
            )
            teller.check(True, f"the relay of {host} listens at {relay.listen}, process {relay.process.pid}")
        yield


@asynccontextmanager
async def _guest(image: Path, site: DemoSite, teller: Teller) -> AsyncIterator[tuple[Qemu, Qemu]]:
    teller.step("A guest that counts, and a QEMU that waits for it")
    async with AsyncExitStack() as stack:
        source = await start_qemu(site.machine(SOURCE), VM_UUID, memory_mib=MEMORY_MIB, image=image)
        stack.push_async_callback(stop_qemu, source)
        destination = await start_qemu(
            site.machine(DESTINATION), VM_UUID, memory_mib=MEMORY_MIB, image=image, incoming=True
        )
        stack.push_async_callback(stop_qemu, destination)
        counted = await wait_passes(source, _PASSES_BEFORE)
        teller.check(True, f"the guest runs on {SOURCE} (process {source.pid}) and has counted to {counted}")
        teller.say(f"{_LAYOUT.size_bytes >> 20} MiB of it are filled, {HOT_MIB} MiB are written over and over")
        yield source, destination


async def _move(commands: Commands, site: DemoSite, teller: Teller, source: Qemu, destination: Qemu) -> Moved:
    before = site.folder / "before.mem"
    await dump_region(source, before, _LAYOUT)
    await let_run(source)

    teller.step(f"{STRANGER.name} asks to move it, and is denied")
    denied = await _ask(commands, site, teller, STRANGER)
    stayed = await run_state(source) == "running" and await run_state(destination) == "inmigrate"
    teller.check(denied["outcome"] == "denied" and stayed, f"denied, and the guest stayed where it was: {_why(denied)}")
    if denied["outcome"] != "denied" or not stayed:
        raise Unexpected("denial", f"{denied['outcome']} for somebody who may not move this VM")

    teller.step(f"{OPERATOR.name} asks to move it, and may")
    allowed = await _ask(commands, site, teller, OPERATOR)
    if not teller.check(allowed["outcome"] == "completed", _what(allowed)):
        raise Unexpected("move", f"{allowed['outcome']}: {allowed.get('message') or _why(allowed)}")

    teller.step("The guest after its move")
    one_only = teller.check(
        source.ended and await run_state(destination) == "running",
        f"it runs on {DESTINATION} (process {destination.pid}); the QEMU on {SOURCE} has ended",
    )
    at_source = source.printed()
    arrived = count_passes(at_source)
    try:
        await wait_passes(destination, arrived + _PASSES_AFTER, earlier=at_source)
        printed = at_source + await dump_region(destination, site.folder / "after.mem", _LAYOUT)
        passes = count_passes(printed)
        problems = memory_problems(before, site.folder / "after.mem", _LAYOUT, passes)
        await let_run(destination)
        counted = await wait_passes(destination, passes + 10, earlier=at_source)
        alive, gap = True, ""
    except ValueError as error:  # what `count_passes` says of a gap
        alive, gap, counted, problems = False, str(error), arrived, ["not compared: the guest did not go on"]
    teller.check(alive, gap or f"it counted to {arrived} there and on to {counted} here, without a gap or a repetition")
    teller.check(
        not problems, "; ".join(problems[:3]) or f"{_LAYOUT.size_bytes} bytes of its memory are what they were"
    )
    return Moved(allowed, denied, one_only, alive, not problems, counted)


async def _audit(commands: Commands, site: DemoSite, teller: Teller, moved: Moved) -> Findings:
    """Everything is stopped by now: the auditor has a folder and a key, and trusts neither us nor the gateway."""
    teller.step("An auditor takes the log and the key")
    teller.command("audit", "verify", site.site.log.name, "--key", site.log_key.name)
    verified, size, problem = await verify_log(commands, site.site.log, site.log_key)
    teller.check(verified, problem or f"{size} entries, complete and unaltered")
    migration_id = str(moved.allowed["migration_id"])
    evidence = read_evidence(await read_records(commands, site.site.log, migration_id))
    teller.check(True, f"both hosts certify the same: {evidence.bytes_carried} bytes, {evidence.tls_version}")
    denials = await read_records(commands, site.site.log, str(moved.denied["migration_id"]))
    denied_recorded = is_denial_recorded(denials, STRANGER.name)
    teller.check(denied_recorded, f"the denial of {STRANGER.name} is in it, with the policies that led to it")

    teller.step("Somebody flips one bit in a copy of the log")
    copy = site.folder / "log-copy"
    file = flip_a_byte(site.site.log, copy, STRANGER.name.encode())
    intact, _, found = await verify_log(commands, copy, site.log_key)
    teller.check(not intact, f"found: {found}" if not intact else f"the change in {file} was NOT found")
    return Findings(
        outcome=str(moved.allowed["outcome"]),
        guest_alive=moved.guest_alive,
        memory_intact=moved.memory_intact,
        one_guest_only=moved.one_guest_only,
        bytes=evidence.bytes_carried,
        seconds=float(moved.allowed["seconds"]),
        downtime_ms=evidence.downtime_ms,
        tls_version=evidence.tls_version,
        key_exchange=evidence.key_exchange,
        tls_cipher=evidence.tls_cipher,
        lane_cipher=evidence.lane_cipher,
        denied_recorded=denied_recorded,
        log_verified=verified,
        tampering_found=not intact,
        log_size=size,
        guest_counted_to=moved.counted_to,
        migration_id=migration_id,
    )


async def _ask(commands: Commands, site: DemoSite, teller: Teller, person: PersonPlan) -> dict[str, Any]:
    """Log in and ask for the move, each by the command that a person would use."""
    name, token = person.username, site.folder / f"{person.username}.token"
    where = ("--gateway", f"https://{site.gateway_listen}", "--ca", str(site.site.ca), "--token-file", str(token))
    teller.command("login", "--user", name)
    password = str(site.password(person))
    code, answer = await commands.run("login", "--user", name, "--password-file", password, *where)
    if code != 0:
        raise Unexpected(f"log in as {name}", str(answer))
    asked = ("migrate", VM_NAME, "--to", DESTINATION, "--reason", "DEMO-1")
    teller.command(*asked)
    code, answer = await commands.run(*asked, *where)
    if "outcome" not in answer or (code == 0) != (answer["outcome"] == "completed"):
        raise Unexpected(f"ask as {name}", f"exit code {code}: {answer}")
    return answer


def _why(answer: dict[str, Any]) -> str:
    """The reasons of the policies that decided."""
    decision = answer.get("decision") or {}
    reasons = [policy["reason"] for policy in decision.get("policies", []) if policy.get("reason")]
    return " ".join(reasons) or str(decision.get("denied_because") or "no reason given")


def _what(answer: dict[str, Any]) -> str:
    if answer["outcome"] != "completed":
        return f"{answer['outcome']}: {answer.get('message') or _why(answer)}"
    return (
        f"moved in {answer['seconds']:.1f} s with {answer['downtime_ms']} ms of downtime: "
        f"{answer['bytes'] >> 20} MiB under {answer['key_exchange']}. {_why(answer)}"
    )
