"""Named ports: another program's stream, under an action of its own; a real gateway, real relays and tar."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from gateway.demo.processes import Commands
from gateway.starter import HostPlan, Site, VmPlan, lay_out_site
from tests.gateway.conftest import CHEAP, Running, free_address, running_gateway
from tests.gateway.test_evacuation_real import token_of
from tests.gateway.test_watch import edit, own_bundle

pytestmark = pytest.mark.whole
UUID = "5ea1a4e0-0000-4000-8000-0000000000ab"
MAY_OPEN = """
@id("operators-back-up")
@reason("Operators send backups between hosts, of VMs that are not in production.")
permit (
  principal in Sealane::Group::"sealane-local#operators",
  action == Sealane::Action::"OpenPort",
  resource
)
when { context.ports.contains("backup") && resource.zone != "production" };
"""


@pytest.fixture
def site() -> Iterator[Site]:
    """Short: unix sockets live in it."""
    with tempfile.TemporaryDirectory(prefix="sl") as name:
        folder = Path(name) / "s"
        hosts = [HostPlan(host, free_address(address)) for host, address in (("a", "127.0.0.2"), ("b", "127.0.0.3"))]
        made = lay_out_site(
            folder,
            hosts=hosts,
            vms=[VmPlan("counter", UUID, "a")],
            gateway_listen=free_address("127.0.0.1"),
            now=datetime.now(UTC),
            password_cost=CHEAP,
        )
        for host in ("a", "b"):
            lines = f'[ports.backup]\nlisten = "{folder}/p/{{uuid}}"\nconnect = "{folder}/backup.sock"\n[ports.other]\n'
            if os.geteuid():
                lines = lines.replace("connect", f"peer_uids = [{os.geteuid()}]\nconnect")
            edit(made.relay_config(host), lambda text, lines=lines: f"{text}\n{lines}")  # type: ignore[misc]
        (own_bundle(made) / "ports.cedar").write_text(MAY_OPEN)
        yield made


@asynccontextmanager
async def whole(site: Site) -> AsyncIterator[tuple[Running, Commands, list[str]]]:
    """Gateway and both relays; how `alice` reaches the gateway."""
    commands = Commands(site.directory)
    token = site.directory / "token"
    token.write_text(token_of(site, "alice"))
    token.chmod(0o600)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(running_gateway(site))
        for host in ("a", "b"):
            config = str(site.relay_config(host))
            await stack.enter_async_context(commands.serve(f"relay-{host}", "relay", "serve", "--config", config))
        source = f"spiffe://{site.trust_domain}/host/a"
        with trio.fail_after(30):  # until the source's relay has polled
            while not running.gateway.desk.gate.dispatch.is_reachable(source, 60):
                await trio.sleep(0.1)
        yield running, commands, ["--gateway", str(running.url), "--ca", str(site.ca), "--token-file", str(token)]


async def test_tar_goes_where_its_port_leads_under_a_policy_of_its_own_and_the_vm_stays(site: Site) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("one", "two"):
            info = tarfile.TarInfo(name)
            info.size = 1_500_000
            tar.addfile(info, io.BytesIO(os.urandom(info.size)))
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await listener.bind(str(site.directory / "backup.sock"))
    listener.listen()
    async with whole(site) as (running, commands, signed_in):
        arrived = bytearray()

        async def take() -> None:
            accepted, _ = await listener.accept()
            stream = trio.SocketStream(accepted)
            async for chunk in stream:
                arrived.extend(chunk)
            await stream.send_all(b"kept")
            await stream.aclose()

        config = str(site.relay_config("a"))
        wish = ["relay", "pipe", "backup", "--config", config, "--vm", "counter", "--to", "b", "--reason", "CHG-1"]
        with trio.fail_after(90):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
                done = await trio.run_process(
                    commands.line([*wish, *signed_in]),
                    stdin=archive.getvalue(),
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    env=commands.environment(),
                )
                if done.returncode:
                    nursery.cancel_scope.cancel()
        assert done.returncode == 0, done.stderr
        assert bytes(arrived) == archive.getvalue()
        assert done.stdout == b"kept"
        told = json.loads(done.stderr.splitlines()[-1])
        assert told["outcome"] == "completed"

        (decided,) = await running.records("migration.decision")
        assert decided["details"]["action"] == "OpenPort"
        assert decided["details"]["asked"]["ports"] == ["backup"]
        with trio.fail_after(30):
            while len(receipts := await running.records("migration.receipt")) < 2:
                await trio.sleep(0.1)
        assert {each["migration_id"] for each in receipts} == {told["migration_id"]}
        shown = (await running.person("carol").get("/v1/vms", params={"prefix": "counter", "limit": 1})).json()
        assert shown["vms"][0]["host"] == "a", "its VM has gone nowhere"
        assert not list((site.directory / "p").iterdir()), "the session's socket went with it"

        # Whoever may move the VM may not open every port: each name is what a policy says of it.
        wish[2] = "other"
        denied = await trio.run_process(
            commands.line([*wish, *signed_in]), capture_stdout=True, capture_stderr=True, check=False,
            env=commands.environment(),
        )  # fmt: skip
        assert denied.returncode == 1
        assert json.loads(denied.stderr.splitlines()[-1])["outcome"] == "denied"
        *_, refused = await running.records("migration.decision")
        assert (refused["outcome"], refused["details"]["action"]) == ("denied", "OpenPort")

        # The permit is good, but the destination does not say where this port leads.
        edit(site.directory / "bundle" / "policies" / "ports.cedar", lambda text: text.replace('"backup"', '"other"'))
        edit(site.directory / "bundle" / "bundle.toml", lambda text: text.replace("version = 2", "version = 3"))
        await running.gateway.reload()
        failed = await trio.run_process(
            commands.line([*wish, *signed_in]), capture_stdout=True, capture_stderr=True, check=False,
            env=commands.environment(),
        )  # fmt: skip
        assert failed.returncode == 1
        assert "do not say where that port leads" in json.loads(failed.stderr.splitlines()[-1])["message"]
    listener.close()


@pytest.mark.parametrize(
    ("what", "code", "outcome", "words"),
    [
        ("Ctrl-C", 1, "cancelled", "the migration was cancelled on request"),
        ("reader left", 141, "failed", "standard output was closed before all that came back was written"),
    ],
)
async def test_what_ends_a_pipe_here_while_its_input_is_open_ends_its_session_and_is_told(
    site: Site, what: str, code: int, outcome: str, words: str
) -> None:
    (reading, writing), (left, taken) = os.pipe(), os.pipe()
    os.close(left)
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as listener, trio.fail_after(90):
        await listener.bind(str(site.directory / "backup.sock"))
        listener.listen()
        async with whole(site) as (running, commands, signed_in):
            config = str(site.relay_config("a"))
            wish = ["relay", "pipe", "backup", "--config", config, "--vm", "counter", "--to", "b"]
            process = await trio.lowlevel.open_process(
                commands.line([*wish, *signed_in]), stdin=reading, stdout=taken, stderr=subprocess.PIPE,
                env=commands.environment(),
            )  # fmt: skip
            assert process.stderr is not None
            accepted, _ = await listener.accept()
            if what == "Ctrl-C":
                process.send_signal(signal.SIGINT)
            else:
                await accepted.send(b"an answer")
            assert await accepted.recv(100) == b""
            accepted.close()
            said = b"".join([bytes(each) async for each in process.stderr])
            assert await process.wait() == code, said
            while len(await running.records("migration.receipt")) < 2:
                await trio.sleep(0.1)
    for each in (reading, writing, taken):
        os.close(each)
    told = json.loads(said.splitlines()[-1])
    assert (told["outcome"], told["message"]) == (outcome, words)


async def test_who_opens_a_port_where_nobody_listens_or_on_another_host_than_the_vms_is_told_so(site: Site) -> None:
    told = []
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as listener:
        async with whole(site) as (running, commands, signed_in):
            for host, is_bound in (("a", False), ("a", True), ("b", False)):
                if is_bound:  # the socket is there, and nobody takes connections on it
                    await listener.bind(str(site.directory / "backup.sock"))
                wish = ["relay", "pipe", "backup", "--config", str(site.relay_config(host)), "--vm", "counter"]
                done = await trio.run_process(
                    commands.line([*wish, "--to", "b", *signed_in]), capture_stdout=True, capture_stderr=True,
                    check=False, env=commands.environment(),
                )  # fmt: skip
                assert done.returncode != 0
                told.append(done.stderr.decode())
            *_, last = await running.records("migration.decision")
            (cancelled,) = await running.records("migration.cancel_requested")
    absent, deaf, elsewhere = told
    for each in (absent, deaf):
        assert "nobody listens at the destination where that port leads" in each
        assert "backup.sock" not in each, "where a port leads is the destination's own business"
    assert "counter is on a, by what the gateway knows" in elsewhere
    assert cancelled["migration_id"] == last["migration_id"], "a socket on the other host waits for nobody"


async def test_a_named_port_is_opened_alone_and_under_no_broken_glass(site: Site) -> None:
    async with running_gateway(site) as running:
        alice = running.person("alice")
        for more in ({"ports": ["backup", "memory"]}, {"ports": ["backup"], "break_glass": "g1"}):
            answer = await alice.post("/v1/migrations", json={"vm": "counter", "destination": "b", **more})
            assert answer.status_code == 400
            assert "named port" in answer.text
        # A relay asks for guests alone: libvirt's client opens no port of another program.
        relay = running.client("a")
        body = {"vm": UUID, "destination": "b", "ports": ["backup"]}
        answer = await relay.post("/v1/relay/admission", json=body)
        assert (answer.status_code, "ports" in answer.text) == (400, True), answer.text


def test_either_a_name_or_a_permit(tmp_path: Path) -> None:
    for arguments in (["x", "--permit", "p"], [], ["x"], ["--vm", "v", "--permit", "p"]):
        done = subprocess.run(
            [str(Path(sys.executable).with_name("sealane")), "relay", "pipe", *arguments, "--config", "c", "--to", "b"],
            capture_output=True,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=60,
        )
        assert done.returncode == 2
        assert b"either NAME with --vm, or --permit" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["open", "x", "--vm", "v", "--socket", "s"], b"--socket is for --permit"),
        (["pipe", "--permit", "p", "--reason", "CHG-1"], b"--permit takes no --reason"),
    ],
)
def test_what_would_be_passed_over_is_refused(tmp_path: Path, arguments: list[str], words: bytes) -> None:
    sealane = str(Path(sys.executable).with_name("sealane"))
    done = subprocess.run(
        [sealane, "relay", *arguments, "--config", "c", "--to", "b"],
        capture_output=True, cwd=tmp_path, stdin=subprocess.DEVNULL, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert words in done.stderr
