"""CAs are replaced while relays run: all believe the new one before anyone shows it, then they let go of the old."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from audit.checkpoint import LogVerifier, open_checkpoint
from audit.errors import CheckpointError
from audit.verify import verify_log
from certs import layout
from certs.files import read_certificates
from certs.introduction import authority_key_id, crl_id, root_id
from certs.key_introduction import decode_introductions
from gateway.starter import Site
from policy.jws import key_id_of
from policy.permit import PermitKey
from tests.gateway.cli.invoking import invoke
from tests.gateway.conftest import Running, free_address, running_gateway
from tests.gateway.rolling_site import enrolled, relay, rolling_site, state_of, take, until_ready
from tests.gateway.test_watch import edit
from tests.transport.relay.conftest import until
from transport.relay import identity_keeping
from transport.relay.config import load_relay_config
from transport.relay.host import RelayHost, pin_files
from transport.relay.pins import Pins, read_pins

pytestmark = pytest.mark.whole


@pytest.fixture
def rolling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(identity_keeping, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(identity_keeping, "LEAVING_SPREAD", timedelta(0))
    return rolling_site(tmp_path / "site")


@pytest.fixture
def hosts_folder() -> Iterator[Path]:
    """Short: unix sockets live below it."""
    with tempfile.TemporaryDirectory(prefix="sl-") as folder:
        yield Path(folder)


@asynccontextmanager
async def fleet(running: Running, folder: Path) -> AsyncIterator[list[RelayHost]]:
    """Both hosts of the site, enrolled and heard."""
    configs = [await enrolled(running, name, folder / name) for name in ("a", "b")]
    async with relay(configs[0]) as a, relay(configs[1]) as b:
        dispatch = running.gateway.desk.gate.dispatch
        await until(lambda: all(dispatch.is_reachable(host.spiffe_id, 5) for host in (a, b)))
        yield [a, b]


async def typed(running: Running, *arguments: str, exit_code: int) -> str:
    """What a person reads who types `sealane certs rollover …`."""
    token = running.site.directory / "officer.token"
    token.touch(mode=0o600)
    token.write_text(running.token("olga") + "\n")
    where = ["--gateway", running.url, "--ca", str(running.ca), "--token-file", str(token)]
    result = await trio.to_thread.run_sync(partial(invoke, "certs", "rollover", *arguments, *where))
    assert result.exit_code == exit_code, result.output
    return result.output


def issuer_of(host: RelayHost) -> str:
    return crl_id(authority_key_id(host.credentials.chain[0]))


def authority_in(folder: Path) -> str:
    ski = read_certificates(folder / "ca.pem")[0].extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return crl_id(ski.value.digest)


async def test_an_issuing_ca_is_replaced_step_by_step(rolling: Site, tmp_path: Path, hosts_folder: Path) -> None:
    folder = rolling.directory / "issuing"
    async with running_gateway(rolling) as running, fleet(running, hosts_folder) as hosts:
        old = authority_in(folder)
        assert (await state_of(running, "issuing"))["stage"] == "idle"
        before = hosts[0].credentials.crl_number
        assert "init-issuing" in (await take(running, "issuing", "begin", 400))["error"]["message"]
        layout.init_issuing(rolling.certs, folder.with_name("issuing.next"), datetime.now(UTC))
        new = authority_in(folder.with_name("issuing.next"))
        assert (await take(running, "root", "begin", 409))["error"]["code"] == "rollover_not_now"
        await take(running, "issuing", "begin")
        await until_ready(running, "issuing")
        assert all(new in host.identity.holds() for host in hosts)
        assert all(issuer_of(host) == old for host in hosts)
        assert all(host.credentials.crl_number >= before for host in hosts)  # no permit that was given asks for more
        assert running.gateway.desk.gate.minimum_crl_number >= before

        await take(running, "issuing", "switch")
        assert authority_in(folder) == new
        await until(lambda: all(issuer_of(host) == new for host in hosts), 20)
        await until_ready(running, "issuing")

        left = (await take(running, "issuing", "retire"))["left"]
        assert "destroy" in left
        await until(lambda: all(old not in host.identity.holds() for host in hosts), 20)
        assert (await state_of(running, "issuing"))["stage"] == "idle"
        gate = running.gateway.desk.gate
        assert all(host.credentials.crl_number >= gate.minimum_crl_number >= before for host in hosts)
        for kind in ("key.rollover_begun", "key.rollover_switched", "key.rollover_retired"):
            assert [each["outcome"] for each in await running.records(kind)][-1] == "allowed"
        assert "BEGIN" not in str(await running.records("key.rollover_switched"))
        # The new one revokes, and that is heard.
        number = gate.minimum_crl_number
        revoked = await running.person("olga").post("/v1/hosts/b/revocation", json={"reason": "CHG-119"})
        assert revoked.status_code == 200, revoked.text
        await until(lambda: hosts[0].credentials.crl_number > number, 20)


async def test_a_root_is_replaced_and_the_gateway_is_known_by_the_new_one(
    rolling: Site, tmp_path: Path, hosts_folder: Path
) -> None:
    folder, new_root = rolling.directory / "issuing", tmp_path / "root-2"
    tls = rolling.certs / "gateway" / "tls.pem"
    async with running_gateway(rolling) as running, fleet(running, hosts_folder) as hosts:
        old = root_id(read_certificates(rolling.certs / "ca.pem")[0])
        now = datetime.now(UTC)
        assert layout.init_successor(rolling.certs, new_root, tls, now)
        assert not layout.init_successor(rolling.certs, new_root, tls, now)
        layout.init_issuing(new_root, folder.with_name("issuing.next"), now)
        new = root_id(read_certificates(new_root / "ca.pem")[0])
        await take(running, "issuing", "begin", 409)
        await take(running, "root", "begin")
        await until_ready(running, "root")
        assert all({old, new} <= set(host.identity.holds()) for host in hosts)
        assert (await state_of(running, "issuing"))["stage"] == "idle"

        await take(running, "root", "switch")
        assert read_certificates(tls)[0].issuer == read_certificates(new_root / "ca.pem")[0].subject
        running.trusts(new_root / "ca.pem")
        await until(lambda: all(root_id(host.credentials.trust_anchors[-1]) == new for host in hosts))
        await until(lambda: all(issuer_of(host) == authority_in(folder) for host in hosts), 20)
        await until_ready(running, "root")
        await take(running, "root", "retire")
        await until(lambda: all(old not in host.identity.holds() for host in hosts), 20)
        for host in hosts:
            known = read_certificates(Path(host.config.gateway.trust_bundle))
            assert [root_id(root) for root in known] == [new]
        # Who was away meanwhile and trusts the old root alone is introduced to the new one.
        late = await enrolled(running, "a", tmp_path / "late")
        assert late.exists()


async def test_no_step_is_taken_while_a_host_lacks_the_new_trust_unless_it_is_forced(
    rolling: Site, hosts_folder: Path
) -> None:
    folder = rolling.directory / "issuing"
    async with running_gateway(rolling) as running:
        config = await enrolled(running, "a", hosts_folder / "a")
        async with relay(config) as host:
            layout.init_issuing(rolling.certs, folder.with_name("issuing.next"), datetime.now(UTC))
            await take(running, "issuing", "switch", 409)  # begin comes first
            await take(running, "issuing", "begin")
            await until(lambda: authority_in(folder.with_name("issuing.next")) in host.identity.holds())
            assert "host/b was not heard" in (await typed(running, "status", exit_code=0))
            assert "--force" in await typed(running, "switch", "issuing", "--reason", "CHG-118", exit_code=1)
            refused = (await take(running, "issuing", "switch", 409))["error"]
            assert "1 of 2 hosts" in refused["message"]
            assert "host/b was not heard" in refused["message"]
            assert "--force" in refused["next_step"]
            assert (await state_of(running, "issuing"))["progress"]["ready"] == 1
            forced = await take(running, "issuing", "switch", force=True)
            assert forced["stage"] == "switched"
            await take(running, "issuing", "begin", 409)
            await take(running, "issuing", "retire", 409)
        records = await running.records("key.rollover_switched")
        assert [each["outcome"] for each in records] == ["failed", "failed", "failed", "allowed"]
        assert records[-1]["details"]["forced"] is True
        assert list(records[-1]["details"]["progress"]["lacking"]) == [rolling.spiffe_id("b")]


async def test_who_may_not_roll_keys_over_is_refused_on_record(rolling: Site) -> None:
    async with running_gateway(rolling) as running:
        alice = running.person("alice")
        assert (await alice.get("/v1/rollovers")).status_code == 403
        assert (await alice.post("/v1/rollovers/issuing/begin", json={"reason": "x"})).status_code == 403
        assert [each["outcome"] for each in await running.records("key.rollover_begun")] == ["denied"]
        assert (await running.client().post("/v1/rollovers/issuing/begin", json={"reason": "x"})).status_code == 401
        await take(running, "sunrise", "begin", 404)
        await take(running, "issuing", "leap", 400)


async def test_a_gateway_that_was_stopped_between_two_renames_goes_on(
    rolling: Site, tmp_path: Path, hosts_folder: Path
) -> None:
    folder = rolling.directory / "issuing"
    layout.init_issuing(rolling.certs, folder.with_name("issuing.next"), datetime.now(UTC))
    old, new = authority_in(folder), authority_in(folder.with_name("issuing.next"))
    async with running_gateway(rolling) as running:
        await take(running, "issuing", "begin")
    folder.rename(folder.with_name("issuing.former"))  # and there it was cut off
    async with running_gateway(rolling) as running:
        state: dict[str, Any] = await state_of(running, "issuing")
        assert state["stage"] == "switched"
        assert (state["facts"]["current"]["authority"], state["facts"]["former"]["authority"]) == (new, old)
        with trio.fail_after(20):
            await enrolled(running, "a", hosts_folder / "a")


async def test_the_permit_key_is_replaced_and_permits_go_on(rolling: Site, hosts_folder: Path) -> None:
    public = rolling.certs / "gateway" / "permit.pub"
    async with running_gateway(rolling) as running, fleet(running, hosts_folder) as hosts:
        gate, old = running.gateway.desk.gate, read_pins([public], [rolling.certs / "gateway" / "log.vkey"])
        assert [host.permits.pins for host in hosts] == [old, old]
        await take(running, "permit-key", "begin")
        await until_ready(running, "permit-key")
        assert all(len(host.permits.permit_keys) == 2 for host in hosts)
        assert key_id_of(gate.terms.private_key.public_key()) == old.permit_keys[0].key_id

        await take(running, "permit-key", "switch")
        new = host_pins(hosts[0]) - set(old.names())
        assert new == {f"permit:{gate.terms.key_id}"}
        late = await enrolled(running, "b", hosts_folder / "late")
        assert len(read_pins(*pin_files(load_relay_config(late))).permit_keys) == 2
        await until_ready(running, "permit-key")
        assert "destroy" in (await take(running, "permit-key", "retire"))["left"]
        await until(lambda: all(set(old.names()[:1]).isdisjoint(host_pins(host)) for host in hosts), 20)
        for host in hosts:
            assert read_pins(*pin_files(host.config)) == host.permits.pins  # so it is after a restart
        assert not list((rolling.certs / "gateway").glob("permit.key.former"))
        retired = next((rolling.certs / "gateway").glob("permit.key.retired-*"))
        assert retired.read_bytes() == b""
        assert new == set(read_pins([public], [rolling.certs / "gateway" / "log.vkey"]).names()[:1])
    async with running_gateway(rolling) as running:
        assert f"permit:{running.gateway.desk.gate.terms.key_id}" in new
        assert (await state_of(running, "permit-key"))["stage"] == "idle"


@pytest.mark.parametrize(
    ("what", "step", "cut_at"),
    [
        ("permit-key", "begin", "gateway.rollover.places.Places.begin"),
        ("permit-key", "switch", "gateway.rollover.places.Places.switch"),
        ("permit-key", "retire", "gateway.rollover.signing_keys.write_atomically"),
        ("permit-key", "retire", "gateway.rollover.signing_keys.sync_directory"),
        ("log-key", "switch", "gateway.rollover.places.Places.switch"),
    ],
)
async def test_a_step_for_a_signing_key_that_was_cut_off_is_taken_again_or_was_done(
    rolling: Site, monkeypatch: pytest.MonkeyPatch, what: str, step: str, cut_at: str
) -> None:
    """What lies on disk then is what a kill leaves; no private key stays behind, and nothing is introduced twice."""

    def cut_off(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    steps, vkey = ["begin", "switch", "retire"], rolling.vkey
    async with running_gateway(rolling) as running:
        for before in steps[: steps.index(step)]:
            await take(running, what, before, force=True)
        with monkeypatch.context() as patch:
            patch.setattr(cut_at, cut_off)
            await take(running, what, step, 503, force=True)
    async with running_gateway(rolling) as running:
        was_done = (await state_of(running, what))["stage"] == "idle" and step == "retire"
        for after in steps[steps.index(step) + was_done :]:
            if (what, after) != ("log-key", "retire"):
                await take(running, what, after, force=True)
        assert (await state_of(running, what))["stage"] == ("switched" if what == "log-key" else "idle")
    for retired in (rolling.certs / "gateway").glob("*.retired-*"):
        assert retired.read_bytes() == b""
    name = {"permit-key": "permit.key", "log-key": "log.key"}[what]
    introduced = decode_introductions((rolling.certs / "gateway" / f"{name}.introductions").read_bytes())
    assert len(introduced) == 1
    verdict = await trio.to_thread.run_sync(verify_log, rolling.log, [vkey])
    assert verdict.ok, verdict.problems
    if rolling.vkey != vkey:  # its key was switched, and the former one signs until the gateway is started again
        verdict = await trio.to_thread.run_sync(verify_log, rolling.log, [rolling.vkey])
        assert "not started again" in verdict.problems[0].what


def host_pins(host: RelayHost) -> set[str]:
    return set(host.permits.pins.names())


async def test_the_log_key_is_replaced_by_a_restart_and_one_verifier_key_proves_the_whole_log(
    rolling: Site, hosts_folder: Path
) -> None:
    port = free_address("127.0.0.1")
    edit(rolling.gateway_config, lambda text: text.replace("127.0.0.1:0", port))
    old_vkey = rolling.vkey
    async with running_gateway(rolling) as running:
        configs = [await enrolled(running, name, hosts_folder / name) for name in ("a", "b")]
    async with AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(relay(config)) for config in configs]
        async with running_gateway(rolling) as running:
            await take(running, "log-key", "begin")
            await until_ready(running, "log-key", 60)
            await take(running, "log-key", "switch")
            refused = (await take(running, "log-key", "retire", 409))["error"]["message"]
            assert "not started again" in refused
        assert rolling.vkey != old_vkey
        async with running_gateway(rolling) as running:
            text = await running.gateway.committer.read(lambda log: log.checkpoint_text)
            for vkey in (old_vkey, rolling.vkey):
                open_checkpoint(text, [LogVerifier.parse(vkey)])
            await until(lambda: all(len(host.permits.log_verifiers) == 2 for host in hosts), 30)
            await until_ready(running, "log-key", 60)
            assert "restart" in (await take(running, "log-key", "retire"))["left"]
            await until(lambda: all(len(host.permits.log_verifiers) == 1 for host in hosts), 30)
            assert {host.permits.log_verifiers[0].vkey for host in hosts} == {rolling.vkey}
        async with running_gateway(rolling) as running:
            text = await running.gateway.committer.read(lambda log: log.checkpoint_text)
            open_checkpoint(text, [LogVerifier.parse(rolling.vkey)])
            with pytest.raises(CheckpointError):
                open_checkpoint(text, [LogVerifier.parse(old_vkey)])
    for vkey in (old_vkey, rolling.vkey):
        verdict = await trio.to_thread.run_sync(verify_log, rolling.log, [vkey])
        assert verdict.ok, verdict.problems
    edit(rolling.log / "keys", lambda text: text.replace(old_vkey[-6:], "AAAAAA"))
    assert not (await trio.to_thread.run_sync(verify_log, rolling.log, [rolling.vkey])).ok


async def test_pinned_keys_that_somebody_else_brings_are_noticed(rolling: Site, hosts_folder: Path) -> None:
    async with running_gateway(rolling) as running, fleet(running, hosts_folder) as hosts:
        permits, logs = pin_files(hosts[0].config)
        before, another = (
            hosts[0].permits.pins,
            PermitKey.from_public_key(ec.generate_private_key(ec.SECP256R1()).public_key()),
        )
        Pins((*before.permit_keys, another), before.log_verifiers).write(permits, logs)
        await until(lambda: len(hosts[0].permits.permit_keys) == 2)
        permits[0].write_text("half a file")
        logs[0].touch()
        await until(lambda: f"permit:{another.key_id}" in hosts[0].holds())
        assert hosts[0].permits.pins.log_verifiers == before.log_verifiers
