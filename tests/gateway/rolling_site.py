"""A site whose hosts an issuing CA certifies, with relays that enrolled, for tests of rollovers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import trio

from certs import layout
from certs.enrolment import EnrolmentToken
from gateway.starter import HostPlan, Site, VmPlan, lay_out_site
from policy.identity.local import hash_password, person_table
from tests.gateway.conftest import CHEAP, HOSTS, VMS, Running
from tests.gateway.test_enrolment import OFFICER, token_of
from tests.transport.relay.conftest import until
from transport.relay.config import load_relay_config
from transport.relay.enrolling import Plan, enrol
from transport.relay.host import RelayHost, open_host
from transport.relay.service import serve_relay


def rolling_site(
    directory: Path,
    hosts: Sequence[HostPlan] = HOSTS[:2],
    vms: Sequence[VmPlan] = VMS[:1],
    gateway_listen: str = "127.0.0.1:0",
) -> Site:
    """Two hosts, both of which a test enrols: a rollover waits for every host that the inventory lists."""
    now = datetime.now(UTC)
    site = lay_out_site(directory, hosts=hosts, vms=vms, gateway_listen=gateway_listen, now=now, password_cost=CHEAP)
    folder = site.directory / "issuing"
    layout.init_issuing(site.certs, folder, datetime.now(UTC))
    config = site.gateway_config
    text = config.read_text()
    text = text.replace('client_trust_bundle = "certs/ca.pem"', 'client_trust_bundle = "issuing/bundle.pem"')
    text = text.replace('crls = ["certs/crl.pem"]', 'crls = ["issuing/crl.pem", "issuing/root-crl.pem"]')
    assert "issuing/bundle.pem" in text
    assert "issuing/root-crl.pem" in text
    config.write_text(text + '\n[enrolment]\nauthority = "issuing"\ntoken_minutes = 60\n')
    officer = person_table(OFFICER, "Olga Officer", ("platform-team",), hash_password("not asked for", cost=CHEAP))
    site.people.write_text(site.people.read_text() + "\n" + officer)
    return site


async def enrolled(running: Running, name: str, folder: Path) -> Path:
    """A relay's configuration, of a host that came by a token."""
    folder.mkdir()
    token = EnrolmentToken.parse(await token_of(running, name))
    plan = Plan(running.url, folder / "relay.toml", folder / "state", "qmp")
    await trio.to_thread.run_sync(enrol, plan, token, datetime.now(UTC))
    return folder / "relay.toml"


@asynccontextmanager
async def relay(config: Path, *, any_port: bool = True) -> AsyncIterator[RelayHost]:
    """It serves, on whatever port is free: tests run beside each other."""
    settings = load_relay_config(config)
    listen = settings.relay.listen.rpartition(":")[0] + ":0" if any_port else settings.relay.listen
    section = msgspec.structs.replace(settings.relay, listen=listen)
    host = open_host(msgspec.structs.replace(settings, relay=section))
    ready: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_relay, host, ready.append)
        await until(lambda: bool(ready))
        yield host
        nursery.cancel_scope.cancel()


async def take(running: Running, what: str, step: str, status: int = 200, **more: Any) -> dict[str, Any]:
    answer = await running.person(OFFICER).post(f"/v1/rollovers/{what}/{step}", json={"reason": "CHG-118", **more})
    assert answer.status_code == status, answer.text
    return answer.json()  # type: ignore[no-any-return]


async def state_of(running: Running, what: str) -> dict[str, Any]:
    answer = await running.person(OFFICER).get("/v1/rollovers")
    assert answer.status_code == 200, answer.text
    return next(each for each in answer.json()["rollovers"] if each["what"] == what)


async def until_ready(running: Running, what: str, seconds: float = 30) -> None:
    """For the step that follows."""
    officer = running.person(OFFICER)
    with trio.fail_after(seconds):
        while True:
            found = (await officer.get("/v1/rollovers")).json()["rollovers"]
            if not next(each for each in found if each["what"] == what)["progress"]["lacking"]:
                return
            await trio.sleep(0.05)
