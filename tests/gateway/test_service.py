"""The process and its files: signals, the ready line, what is refused at start, reloads as a whole or not at all."""

from __future__ import annotations

import json
import logging
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
import structlog

from audit.checkpoint import LogSigner
from audit.log import Log
from certs.files import read_private_key
from gateway.process import run_gateway
from gateway.starter import Site
from tests.gateway.conftest import Running
from tests.processes import killed_after

pytestmark = pytest.mark.whole

Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """`run_gateway` sets up logging for its whole process."""
    root = logging.getLogger()
    before = root.handlers, root.level
    yield
    root.handlers, root.level = before
    structlog.reset_defaults()


class Process:
    """`run_gateway` in a process of its own."""

    def __init__(self, site: Site) -> None:
        program = "import sys, pathlib, gateway.process as s; sys.exit(s.run(pathlib.Path(sys.argv[1])))"
        command = [sys.executable, "-c", program, str(site.gateway_config)]
        self.errors = site.directory / "stderr"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)

    def ready(self) -> dict[str, object]:
        assert self.process.stdout is not None
        with killed_after(self.process):
            return json.loads(self.process.stdout.readline())  # type: ignore[no-any-return]

    def lines(self) -> list[dict[str, object]]:
        whole = self.errors.read_text().rpartition("\n")[0]  # it may be at its next line
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for(self, event: str) -> dict[str, object]:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if found := [line for line in self.lines() if line["event"] == event]:
                return found[-1]
            time.sleep(0.02)
        raise AssertionError(f"no line {event!r}: {self.errors.read_text()}")


@pytest.fixture
def process(site: Site) -> Iterator[Process]:
    it = Process(site)
    yield it
    it.process.kill()
    it.process.wait(10)
    assert it.process.stdout is not None
    it.process.stdout.close()


def test_the_process_says_when_it_is_ready_reloads_and_stops_in_order(process: Process, site: Site) -> None:
    ready = process.ready()
    assert ready["ready"] is True
    with httpx.Client(
        base_url=f"https://{ready['listen']}", verify=ssl.create_default_context(cafile=str(site.ca)), trust_env=False
    ) as client:
        assert client.get("/v1/health").json()["status"] == "ok"
        process.process.send_signal(signal.SIGHUP)
        process.wait_for("reloaded")
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(10) == 0
    kinds = [json.loads(entry)["record"]["kind"] for entry in entries(site)]
    assert kinds == ["gateway.started", "config.reloaded", "gateway.stopped"]


def entries(site: Site) -> list[bytes]:
    key = read_private_key(site.certs / "gateway/log.key")
    with Log.open(site.log, LogSigner(site.log_origin, key)) as log:  # type: ignore[arg-type]
        return list(log.entries(0, log.size))


@pytest.mark.parametrize("name", ["tls.key", "permit.key", "log.key"])
def test_a_key_that_others_can_read_is_refused_at_start(site: Site, name: str, capsys: Said) -> None:
    (site.certs / "gateway" / name).chmod(0o644)
    assert run_gateway(site.gateway_config) == 2
    said = capsys.readouterr().err
    assert name in said
    assert "chmod 600" in said


def test_a_state_folder_that_is_a_file_is_called_that(site: Site, capsys: Said) -> None:
    config = site.gateway_config
    config.write_text(config.read_text().replace('state_dir = "state"', 'state_dir = "inventory.toml"'))
    assert run_gateway(config) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "gateway.state_dir: " in line
    assert "inventory.toml is a file, not a folder; the operator must act" in line


def test_a_port_that_is_taken_is_refused_at_start(site: Site, capsys: Said) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        text = site.gateway_config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{taken.getsockname()[1]}")
        site.gateway_config.write_text(text)
        assert run_gateway(site.gateway_config) == 2
    assert "cannot listen on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("gateway.toml", "x = 1", "gateway.toml"),
        ("inventory.toml", "[[vms]]", "inventory.toml"),
        ("people.toml", "[people", "people.toml"),
        ("bundle/bundle.toml", "", "bundle.toml"),
        ("certs/crl.pem", "no crl", "crl.pem"),
        ("certs/ca.pem", "no certificate", "ca.pem"),
        ("certs/gateway/tls.pem", "no certificate", "tls.pem"),
    ],
)
def test_a_bad_file_is_named_at_start(site: Site, file: str, content: str, said: str, capsys: Said) -> None:
    (site.directory / file).write_text(content)
    assert run_gateway(site.gateway_config) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_a_log_that_was_shortened_stops_the_gateway(site: Site, process: Process, capsys: Said) -> None:
    process.ready()
    process.process.send_signal(signal.SIGTERM)
    process.process.wait(10)
    for tail in (site.log / "tail").iterdir():
        tail.write_bytes(tail.read_bytes()[:-1])
    assert run_gateway(site.gateway_config) == 2
    assert "restore" in capsys.readouterr().err


async def test_a_reload_takes_each_file_as_a_whole_or_not_at_all(running: Running) -> None:
    alice = running.person("alice")
    inventory = running.site.inventory
    good = inventory.read_text()
    inventory.write_text(good.replace('name = "web"', 'name = "renamed"').replace('zone = "production"', "zone = 5"))
    await running.gateway.reload()
    answer = await alice.post("/v1/decisions", json={"vm": "renamed", "destination": "b"})
    assert answer.json()["decision"]["allowed"] is False
    inventory.write_text(good.replace('name = "web"', 'name = "renamed"'))
    await running.gateway.reload()
    answer = await alice.post("/v1/decisions", json={"vm": "renamed", "destination": "b"})
    assert answer.json()["decision"]["allowed"] is True
    reloads = await running.records("config.reloaded")
    assert [record["outcome"] for record in reloads] == ["failed", "completed"]
    assert list(reloads[0]["details"]["refused"]) == ["inventory"]


async def test_a_new_policy_is_in_force_from_the_next_request(running: Running) -> None:
    await running.poll("a")
    policies = running.site.bundle / "policies" / "extra.cedar"
    policies.write_text('@id("freeze")\n@reason("Frozen.")\nforbid (principal, action, resource);\n')
    manifest = running.site.bundle / "bundle.toml"
    manifest.write_text(manifest.read_text().replace("version = 1", "version = 2"))
    for test in (running.site.bundle / "tests").iterdir():
        test.unlink()
    # The example's own cases would fail, rightly, and none at all is no fault.
    await running.gateway.reload()
    (reload,) = await running.records("config.reloaded")
    assert reload["details"]["refused"] == {}, reload["details"]["refused"]
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 403
    assert [policy["id"] for policy in answer.json()["decision"]["policies"]] == ["freeze"]


async def test_an_older_bundle_is_refused(running: Running) -> None:
    manifest = running.site.bundle / "bundle.toml"
    newer, older = manifest.read_text().replace("version = 1", "version = 3"), manifest.read_text()
    manifest.write_text(newer)
    await running.gateway.reload()
    manifest.write_text(older)
    await running.gateway.reload()
    reloads = await running.records("config.reloaded")
    assert reloads[1]["details"]["refused"] == {
        "bundle": "bundle refused: bundle.toml: version 1 is older than 3 in force"
    }
    assert reloads[1]["details"]["bundle"]["version"] == 3


async def test_a_host_that_the_operator_gives_a_vm_outweighs_older_receipts(running: Running) -> None:
    placement, inventory = running.gateway.reloader._gate.placement, running.site.inventory
    vm = running.gateway.reloader._gate.inventory.vm("web")
    assert vm is not None
    placement.certify(vm.uuid, running.site.spiffe_id("b"))
    text = inventory.read_text()
    inventory.write_text(text.replace('host = "a"', 'host = "c"'))
    await running.gateway.reload()
    gate = running.gateway.reloader._gate
    vm = gate.inventory.vm("web")
    assert vm is not None
    host = gate.placement.host_of(vm, gate.inventory)
    assert host is not None
    assert host.name == "c"
