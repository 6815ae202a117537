"""One gateway of two: what the other permitted it learns from relays; clients pass over one that is away."""

from __future__ import annotations

import json
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from gateway.cli.client import GatewayClient
from gateway.cli.errors import Unreachable
from gateway.cli.settings import ClientSettings
from gateway.starter import Site
from policy.permit import PermitKey, VerifiedPermit, verify_permit
from tests.gateway.conftest import UUID_WEB, Running, running_gateway
from tests.gateway.test_watch import edit
from tests.transport.site import Site as Keys

pytestmark = pytest.mark.whole


@pytest.fixture
def other(site: Site, tmp_path: Path) -> Keys:
    """The other gateway: its keys and its log, pinned by this one."""
    keys = Keys.lay_out(tmp_path / "other", ("a",), site.trust_domain, "log.second/1")
    folder = keys.certs / "gateway"
    pins = f'permit_keys = ["{folder}/permit.pub"]\nlog_keys = ["{folder}/log.vkey"]\n'
    edit(site.gateway_config, lambda text: text + f'\n[[peers]]\nname = "gateway2"\n{pins}')
    return keys


def permit_of(keys: Keys, **changes: Any) -> VerifiedPermit:
    """For the VM web, from a to b."""
    token = keys.permit(vm=UUID_WEB, **changes)
    return verify_permit(token, [PermitKey.from_public_key(keys.permit_key.public_key())])


async def show(running: Running, host: str, token: str) -> httpx.Response:
    return await running.client(host).post("/v1/relay/permit", json={"permit": token})


async def test_a_permit_of_the_other_gateway_is_put_on_record_once_and_keeps_the_vm(site: Site, other: Keys) -> None:
    permit = permit_of(other)
    migration_id = permit.claims.migration_id
    async with running_gateway(site) as running:
        await running.poll("a")
        early = running.receipt("a", permit, "source", "completed")
        unknown = await running.client("a").post("/v1/receipts", json=early)
        assert unknown.status_code == 403, "a receipt of what nobody here has heard of"
        async with trio.open_nursery() as nursery:

            async def shown_by(host: str) -> None:
                assert (await show(running, host, permit.token)).status_code == 204

            for host in ("b", "a", "b"):  # both at once, and one again
                nursery.start_soon(shown_by, host)
        (record,) = await running.records("migration.elsewhere")
        assert record["details"]["gateway"] == "gateway2"
        assert record["migration_id"] == migration_id
        second = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "c"})
        assert second.status_code == 409, "it is on its way, whoever permitted it"
    async with running_gateway(site) as again:
        for host, role, outcome in (("a", "source", "completed"), ("b", "destination", "running")):
            receipt = again.receipt(host, permit, role, outcome)
            taken = await again.client(host).post("/v1/receipts", json=receipt)
            assert taken.status_code == 200, "after a restart, too"
        shown = (await again.person("carol").get(f"/v1/migrations/{migration_id}")).json()
        assert shown["state"] == "completed"
        assert shown["destination"].endswith("/b")
        (vm,) = (await again.person("carol").get("/v1/vms", params={"prefix": "web", "limit": 1})).json()["vms"]
        assert (vm["host"], vm["placed_by"]) == ("b", "receipt")


async def test_what_is_no_permit_of_the_other_gateway_is_not_believed(site: Site, other: Keys, tmp_path: Path) -> None:
    stranger = Keys.lay_out(tmp_path / "stranger", ("a",), site.trust_domain, "log.second/1")
    good = permit_of(other)
    claims = other.claims(vm=UUID_WEB)
    without_proof = other.seal(claims, stranger.proof(claims))
    async with running_gateway(site) as running:
        for host, token in (
            ("a", permit_of(stranger).token),
            ("a", without_proof),
            ("a", good.token[:-6] + "AAAAAA"),
            ("a", "x"),
            ("c", good.token),  # a host that has no part in it
        ):
            assert (await show(running, host, token)).status_code == 403
        late = permit_of(other, **dict.fromkeys(("iat", "nbf", "exp", "session_until", "recover_until"), 1_700_000_000))
        assert (await show(running, "b", late.token)).status_code == 204, "a gateway may have been away for long"
        assert len(await running.records("migration.elsewhere")) == 1


@pytest.mark.parametrize("is_over", [True, False])
async def test_a_permit_that_is_shown_late_frees_no_vm_that_is_under_way(
    site: Site, other: Keys, is_over: bool
) -> None:
    """A host that kept it back would have a second permit given for a VM that moves."""
    times = dict.fromkeys(("iat", "nbf", "exp", "session_until", "recover_until"), 1_700_000_000) if is_over else {}
    kept_back = permit_of(other, **times)
    async with running_gateway(site) as running:
        await running.begin()
        assert (await show(running, "b", kept_back.token)).status_code == 204
        if not is_over:
            receipt = running.receipt("a", kept_back, "source", "failed")
            assert (await running.client("a").post("/v1/receipts", json=receipt)).status_code == 200
        second = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "c"})
        assert (second.status_code, second.json()["error"]["code"]) == (409, "migration_in_progress")


async def test_a_gateway_without_peers_knows_of_no_other(site: Site, tmp_path: Path) -> None:
    keys = Keys.lay_out(tmp_path / "other", ("a",), site.trust_domain, "log.second/1")
    async with running_gateway(site) as running:
        assert (await show(running, "a", permit_of(keys).token)).status_code == 403


async def test_a_client_passes_over_a_gateway_that_is_away(running: Running, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"https://127.0.0.1:{probe.getsockname()[1]}"
    settings = ClientSettings(nobody, running.site.ca, tmp_path / "token", 20, others=(running.url,))
    token = running.token("alice")
    await running.poll("a")

    def ask() -> tuple[str, str | None]:
        with GatewayClient(settings, token) as client:
            answer = client.request_migration({"vm": "web", "destination": "b"})
            assert answer.migration_id is not None
            # What only that gateway knows is asked there, and it is the one that answered.
            return client.whoami().name, client.migration(answer.migration_id).state

    assert await trio.to_thread.run_sync(ask) == ("Alice Operator", "assigned")

    def alone() -> None:
        with GatewayClient(ClientSettings(nobody, running.site.ca, tmp_path / "token", 20), token) as client:
            client.whoami()

    with pytest.raises(Unreachable):
        await trio.to_thread.run_sync(alone)


async def test_what_may_do_something_twice_is_not_asked_again(running: Running, tmp_path: Path) -> None:
    """A gateway that took the request and died: whether it was done there nobody knows."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    taking = f"https://127.0.0.1:{listener.socket.getsockname()[1]}"
    settings = ClientSettings(taking, running.site.ca, tmp_path / "token", 20, others=(running.url,))

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(running.site.certs / "gateway" / "tls.pem", running.site.certs / "gateway" / "tls.key")

    async def take_and_die() -> None:
        while True:
            stream = trio.SSLStream(await listener.accept(), context, server_side=True, https_compatible=True)
            assert await stream.receive_some(65536)
            await trio.aclose_forcefully(stream)

    def ask(path: str, body: dict[str, Any]) -> bytes:
        with GatewayClient(settings, running.token("carol")) as client:
            return client.ask("POST", path, body=body)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_and_die)
        answered = await trio.to_thread.run_sync(partial(ask, "/v1/decisions", {"vm": "web", "destination": "b"}))
        assert json.loads(answered)["record_index"] > 0
        with pytest.raises(Unreachable):
            await trio.to_thread.run_sync(partial(ask, "/v1/policy/rollback", {"version": 1}))
        nursery.cancel_scope.cancel()
    await listener.aclose()
