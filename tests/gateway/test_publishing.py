"""Publishing: in force without a restart, after every restart, recorded, and never by one person alone."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import gateway.config as configuration
from audit.verify import verify_log
from gateway.api.bounds import LARGE_BODIES
from gateway.errors import NotAllowed, StartRefused
from gateway.publications import PublicationStore, newest_published, read_or_refuse
from gateway.publishing import Arrive, PublicationNotTaken
from gateway.recording import Event, Recorded
from gateway.starter import Site
from policy.bundle import Bundle
from policy.bundle_files import read_bundle_files
from policy.facts import Person
from policy.publication import MAX_PUBLICATION_BYTES, BundleName, public_text, sign_publication, unsigned
from tests.gateway.api.test_https import answer_of, connected
from tests.gateway.conftest import Running, given_up_once_recorded, running_gateway

pytestmark = pytest.mark.whole

KEYS = {name: Ed25519PrivateKey.generate() for name in ("ann", "ben", "cyd")}
NOW = datetime(2026, 11, 26, tzinfo=UTC)
JSON = {"content-type": "application/json"}
FREEZE = """
@id("freeze")
@reason("Nothing moves this week.")
forbid (principal, action in Sealane::Action::"AnyMove", resource);
"""


@pytest.fixture
def site(site: Site) -> Site:
    """Bob may publish; Ann, Ben and Cyd may sign."""
    people = site.people.read_text()
    site.people.write_text(people.replace('"guests"', '"policy-authors"'))
    write_signers(site)
    add(site, '[policy.publishing]\nsigners = "signers.toml"\n')
    return site


def write_signers(site: Site, retired: str = "", without: str = "") -> None:
    tables = [
        f'[[signer]]\nname = "{name}"\nkey = "{public_text(key.public_key())}"\nroles = ["author", "approver"]\n'
        + ("retired = true\n" if name == retired else "")
        for name, key in KEYS.items()
        if name != without
    ]
    (site.directory / "signers.toml").write_text("".join(tables))


def add(site: Site, table: str) -> None:
    text = site.gateway_config.read_text()
    site.gateway_config.write_text(text.replace("[identity]", table + "\n[identity]", 1))


def files_of(site: Site, version: int, more: str = "", tests: bool = True) -> dict[str, str]:
    files = read_bundle_files(site.directory / "bundle")
    files["bundle.toml"] = re.sub(r"(?m)^version = \d+", f"version = {version}", files["bundle.toml"])
    files["policies/safeguards.cedar"] += more
    return {path: text for path, text in files.items() if tests or not path.startswith("tests/")}


def publication(files: dict[str, str], *signers: str) -> bytes:
    bundle = Bundle.from_files(files)
    about = BundleName(bundle.name, bundle.version, bundle.digest)
    made = unsigned(files)
    for number, name in enumerate(signers):
        made = sign_publication(made, about, "approver" if number else "author", name, KEYS[name], NOW)
    return made.encode()


async def publish(running: Running, data: bytes, who: str = "bob") -> Any:
    return await running.person(who).post("/v1/policy/publications", content=data, headers=JSON)


async def may_move(running: Running) -> bool:
    answer = await running.person("alice").post("/v1/decisions", json={"vm": "web", "destination": "b"})
    return bool(answer.json()["decision"]["allowed"])


async def test_a_publication_is_in_force_at_once_and_after_a_restart_and_is_recorded(site: Site) -> None:
    frozen = publication(files_of(site, 2, FREEZE, tests=False), "ann", "ben")
    async with running_gateway(site) as running:
        assert await may_move(running)
        answer = await publish(running, frozen)
        assert answer.status_code == 201, answer.text
        assert not await may_move(running)
        (record,) = await running.records("policy.published")
        told = record["details"]
        assert (record["outcome"], told["version"], told["author"], told["approvers"]) == (
            "completed",
            2,
            "ann",
            ["ben"],
        )
        assert told["replaced"]["version"] == 1
        assert record["actor"]["name"] == "Bob Guest"
        state = (await running.person("bob").get("/v1/policy")).json()
        assert (state["in_force"]["version"], state["published_versions"]) == (2, [2])
        await running.gateway.reload()  # the directory's bundle is what the gateway began with, and no more
        assert not await may_move(running)
    async with running_gateway(site) as again:
        assert not await may_move(again)
        *_, started = await again.records("gateway.started")
        assert started["details"]["bundle"]["version"] == 2
    assert verify_log(site.log, [(site.certs / "gateway" / "log.vkey").read_text()]).ok


@pytest.mark.parametrize(
    ("signers", "version", "words"),
    [
        (("ann",), 2, "0 of 1 approvals by others than its author"),
        ((), 2, "0 authors"),
        (("ann", "ben"), 1, "version 1 is not above 1, which is in force"),
    ],
)
async def test_what_is_refused_changes_nothing_and_is_recorded(
    site: Site, signers: tuple[str, ...], version: int, words: str
) -> None:
    async with running_gateway(site) as running:
        answer = await publish(running, publication(files_of(site, version, FREEZE, tests=False), *signers))
        assert answer.status_code == 409
        assert words in answer.json()["error"]["message"]
        (record,) = await running.records("policy.published")
        assert record["outcome"] == "failed"
        assert words in record["details"]["refused_because"]
        assert await may_move(running)
    assert list((site.directory / "state" / "policy").iterdir()) == []


async def test_a_bundle_with_a_policy_that_errors_or_a_test_that_fails_is_refused(site: Site) -> None:
    good = publication(files_of(site, 2, FREEZE, tests=False), "ann", "ben").decode()
    async with running_gateway(site) as running:
        for bad in (
            good.replace("Nothing moves this week.", "Everything moves this week."),
            good[: len(good) // 2],
            "x" * 100,
        ):
            answer = await publish(running, bad.encode())
            assert answer.status_code == 409, answer.text
        assert await may_move(running)


async def test_a_publication_that_says_something_twice_is_refused_and_recorded(site: Site) -> None:
    """The file that its reader was shown, then the one that would come into force."""
    async with running_gateway(site) as running:
        good = publication(files_of(site, 2, FREEZE, tests=False), "ann", "ben")
        answer = await publish(running, good.replace(b'"form":', b'"form":1,"form":', 1))
        assert answer.status_code == 409
        assert "duplicate JSON members" in answer.json()["error"]["message"]
        (record,) = await running.records("policy.published")
        assert record["outcome"] == "failed"
        assert await may_move(running)


async def test_strangers_do_not_hold_the_places_in_which_publications_are_read(site: Site) -> None:
    """Nor do people who may not publish: nothing is read of them, however much they announce."""
    async with running_gateway(site) as running, AsyncExitStack() as stack:
        for token in (None, running.token("alice")):
            bearer = "" if token is None else f"authorization: Bearer {token}\r\n"
            for path in LARGE_BODIES:
                stream = await stack.enter_async_context(connected(running))
                head = f"POST {path} HTTP/1.1\r\nHost: x\r\ncontent-type: application/json\r\n{bearer}"
                await stream.send_all(f"{head}content-length: 1000000\r\n\r\n{{".encode())
                with trio.fail_after(5):
                    told = await stream.receive_some()
                assert (b" 403 " if token else b" 401 ") in told.partition(b"\r\n")[0]
                assert b"connection: close" in told
        answer = await publish(running, publication(files_of(site, 2, FREEZE, tests=False), "ann", "ben"))
        assert answer.status_code == 201, answer.text


async def test_whoever_may_publish_no_more_when_their_body_has_come_publishes_nothing(site: Site) -> None:
    nobody = FREEZE.replace("freeze", "hands-off").replace(
        'in Sealane::Action::"AnyMove"', '== Sealane::Action::"PublishPolicy"'
    )
    async with running_gateway(site) as running:
        desk = running.gateway.desk
        bob = await desk.people.authenticate(running.token("bob"), desk.now(), "test")
        bob = await desk.people.resolve_groups(bob, desk.now(), "test")

        async def slow_body() -> tuple[bytes, Person]:
            answer = await publish(running, publication(files_of(site, 2, nobody, tests=False), "ann", "ben"))
            assert answer.status_code == 201, answer.text
            return publication(files_of(site, 3, FREEZE, tests=False), "ann", "ben"), bob

        with pytest.raises(NotAllowed):
            await desk.publishing.publish(bob, slow_body, "test")
        with pytest.raises(NotAllowed):
            await desk.publishing.begin_shadow(bob, slow_body, "test")
        assert desk.gate.engine.bundle.version == 2
        assert [each["outcome"] for each in await running.records("policy.published")] == ["completed", "denied"]


@pytest.mark.parametrize("call", ["publications", "shadow"])
async def test_whoever_loses_the_role_while_their_body_comes_publishes_nothing(site: Site, call: str) -> None:
    async with running_gateway(site) as running:

        async def slow_body() -> AsyncIterator[bytes]:
            data = publication(files_of(site, 2, FREEZE, tests=False), "ann", "ben")
            yield data[:100]
            with trio.fail_after(10):
                while "policy-authors" in site.people.read_text():
                    site.people.write_text(site.people.read_text().replace('"policy-authors"', '"guests"'))
                await running.gateway.reload()
            yield data[100:]

        client = running.person("bob")
        answer = await client.post(f"/v1/policy/{call}", content=slow_body(), headers=JSON)
        assert answer.status_code == 403, answer.text
        assert running.gateway.desk.gate.engine.bundle.version == 1
        assert running.gateway.desk.publishing.shadow.document() is None


async def test_what_is_recorded_comes_into_force_though_its_sender_is_gone_and_else_its_failure_is_recorded(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(site) as running:
        desk = running.gateway.desk
        bob = await desk.people.authenticate(running.token("bob"), desk.now(), "test")
        bob = await desk.people.resolve_groups(bob, desk.now(), "test")

        def arriving(version: int) -> Arrive:
            async def arrive() -> tuple[bytes, Person]:
                return publication(files_of(site, version, tests=False), "ann", "ben"), bob

            return arrive

        with given_up_once_recorded(desk.publishing._recorder):
            await desk.publishing.publish(bob, arriving(2), "test")
        assert desk.gate.engine.bundle.version == 2

        with monkeypatch.context() as patch:
            patch.setattr("gateway.publications.sync_directory", _full_disk)
            with pytest.raises(PublicationNotTaken):
                await desk.publishing.publish(bob, arriving(3), "test")
        assert desk.gate.engine.bundle.version == 2
        outcomes = [each["outcome"] for each in await running.records("policy.published")]
        assert outcomes == ["completed", "completed", "failed"]
    async with running_gateway(site) as running:
        assert running.gateway.desk.gate.engine.bundle.version == 2


def _full_disk(_folder: Path) -> None:
    raise OSError(28, "No space left on device")


async def test_a_publication_that_does_not_come_or_is_no_json_is_refused(site: Site) -> None:
    add(site, "[limits]\nrequest_seconds = 1\n")
    async with running_gateway(site) as running:
        async with connected(running) as stream:
            head = "POST /v1/policy/publications HTTP/1.1\r\nHost: x\r\ncontent-type: application/json\r\n"
            bearer = f"authorization: Bearer {running.token('bob')}\r\n"
            await stream.send_all(f"{head}{bearer}content-length: 1000\r\n\r\n{{".encode())
            assert b" 408 " in await answer_of(stream)
        async with connected(running) as stream:
            await stream.send_all(f"{head}{bearer}content-length: 1000\r\n\r\n{{".encode())
        plain = await running.person("bob").post("/v1/policy/publications", content=b"{}")
        assert "content-type" in plain.text
        assert plain.status_code == 400
        answer = await publish(running, publication(files_of(site, 2, FREEZE, tests=False), "ann", "ben"))
        assert answer.status_code == 201, answer.text


async def test_who_may_not_publish_is_told_nothing_of_it(site: Site) -> None:
    async with running_gateway(site) as running:
        data = publication(files_of(site, 2, FREEZE, tests=False), "ann", "ben")
        for answer in (
            await publish(running, data, "alice"),
            await running.person("alice").get("/v1/policy"),
            await running.person("alice").get("/v1/policy/versions/1"),
            await running.person("alice").post("/v1/policy/shadow", content=data, headers=JSON),
            await running.person("alice").delete("/v1/policy/shadow"),
        ):
            assert answer.status_code == 403
        assert (await running.client().post("/v1/policy/publications", content=data, headers=JSON)).status_code == 401
        (record,) = await running.records("policy.published")
        assert record["outcome"] == "denied"
        assert await may_move(running)


async def test_only_publications_may_be_large_and_they_too_have_a_limit(site: Site) -> None:
    async with running_gateway(site) as running:
        for path, size, status in (
            ("/v1/policy/publications", MAX_PUBLICATION_BYTES + 1, 413),
            ("/v1/policy/shadow", MAX_PUBLICATION_BYTES + 1, 413),
            ("/v1/migrations", 65 * 1024, 413),
        ):
            assert await _status_for(running, path, size) == status
        assert (await publish(running, b" " * 100 * 1024)).status_code == 409


async def _status_for(running: Running, path: str, size: int) -> int:
    """Of a body that is announced and never sent."""
    context = ssl.create_default_context(cafile=str(running.site.ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    host, port = running.gateway.listen.split(":")
    async with await trio.open_ssl_over_tcp_stream(host, int(port), ssl_context=context) as stream:
        await stream.send_all(f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {size}\r\n\r\n".encode())
        return int((await stream.receive_some(4096)).split()[1])


async def test_without_the_table_nothing_is_published(site: Site) -> None:
    text = site.gateway_config.read_text()
    site.gateway_config.write_text(text.replace('[policy.publishing]\nsigners = "signers.toml"\n', ""))
    async with running_gateway(site) as running:
        answer = await publish(running, b"{}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "publishing_off")


async def test_a_rollback_is_a_new_version_with_old_content(site: Site) -> None:
    async with running_gateway(site) as running:
        for version, more in ((2, ""), (3, FREEZE)):
            answer = await publish(running, publication(files_of(site, version, more, tests=False), "ann", "ben"))
            assert answer.status_code == 201, answer.text
        old = await running.person("bob").get("/v1/policy/versions/2")
        answer = await publish(running, old.content)
        assert answer.status_code == 409
        files = dict(old.json()["files"])
        files["bundle.toml"] = files["bundle.toml"].replace("version = 2", "version = 4")
        answer = await publish(running, publication(files, "cyd", "ann"))
        assert answer.status_code == 201, answer.text
        assert await may_move(running)
        assert (await running.person("bob").get("/v1/policy/versions/9")).status_code == 404


async def test_a_candidate_answers_beside_the_live_bundle_and_decides_nothing(site: Site) -> None:
    async with running_gateway(site) as running:
        bob = running.person("bob")
        data = publication(files_of(site, 7, FREEZE, tests=False))
        answer = await bob.post("/v1/policy/shadow", content=data, headers=JSON)
        assert answer.status_code == 201, answer.text
        assert await may_move(running)
        *_, record = await running.records("decision.check")
        shadow = record["details"]["shadow"]
        assert (shadow["allowed"], shadow["policies"], shadow["version"]) == (False, ["freeze"], 7)
        assert record["details"]["decision"]["allowed"]
        state = (await bob.get("/v1/policy")).json()["shadow"]
        assert (state["compared"], state["would_deny"], state["would_allow"], state["failed"]) == (1, 1, 0, 0)
        ended = await bob.delete("/v1/policy/shadow")
        assert ended.json()["would_deny"] == 1
        assert (await bob.delete("/v1/policy/shadow")).status_code == 404
        await may_move(running)
        *_, record = await running.records("decision.check")
        assert "shadow" not in record["details"]


async def test_what_is_tried_is_what_the_log_says_whoever_hangs_up_or_comes_in_between(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(site) as running:
        desk = running.gateway.desk
        publishing = desk.publishing
        bob = await desk.people.authenticate(running.token("bob"), desk.now(), "test")
        bob = await desk.people.resolve_groups(bob, desk.now(), "test")

        async def arrive() -> tuple[bytes, Person]:
            return publication(files_of(site, 7, FREEZE, tests=False)), bob

        with given_up_once_recorded(publishing._recorder):
            await publishing.begin_shadow(bob, arrive, "test")
        assert publishing.shadow.document() is not None
        with given_up_once_recorded(publishing._recorder):
            await publishing.end_shadow(bob, "test")
        assert publishing.shadow.document() is None

        await publishing.begin_shadow(bob, arrive, "test")
        append, is_recorded, go_on = publishing._recorder.append, trio.Event(), trio.Event()

        async def append_and_wait(event: Event) -> Recorded:
            recorded = await append(event)
            if event.kind == "policy.shadow_ended":
                is_recorded.set()
                await go_on.wait()
            return recorded

        monkeypatch.setattr(publishing._recorder, "append", append_and_wait)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publishing.end_shadow, bob, "test")
            await is_recorded.wait()
            nursery.start_soon(publishing.begin_shadow, bob, arrive, "test")
            with trio.move_on_after(0.5):  # long enough, where it does not wait for the other
                while len(await running.records("policy.shadowed")) < 3:
                    await trio.sleep(0.02)
            go_on.set()
        assert publishing.shadow.document() is not None, "the last record says that it is tried"


async def test_a_trial_ends_when_its_candidate_is_published_and_its_record_says_what_was_counted(site: Site) -> None:
    async with running_gateway(site) as running:
        bob = running.person("bob")
        data = publication(files_of(site, 7, FREEZE, tests=False), "ann", "ben")
        assert (await bob.post("/v1/policy/shadow", content=data, headers=JSON)).status_code == 201
        assert await may_move(running)
        other = publication(files_of(site, 6, tests=False), "ann", "ben")
        assert (await publish(running, other)).status_code == 201
        assert (await bob.get("/v1/policy")).json()["shadow"]["version"] == 7  # another one goes on being tried
        assert (await publish(running, data)).status_code == 201
        assert (await bob.get("/v1/policy")).json()["shadow"] is None
        before, record = (each["details"] for each in await running.records("policy.published"))
        assert "shadow" not in before
        assert (record["shadow"]["version"], record["shadow"]["would_deny"]) == (7, 1)


@pytest.mark.parametrize("text", [None, "x = ["])
async def test_a_file_of_signers_that_cannot_be_used_is_the_operators_to_mend(site: Site, text: str | None) -> None:
    async with running_gateway(site) as running:
        signers = site.directory / "signers.toml"
        signers.unlink()
        if text is not None:
            signers.write_text(text)
        data = publication(files_of(site, 2, tests=False), "ann", "ben")
        answer = await publish(running, data)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["who_must_act"]) == (503, "publication_not_taken", "operator")
        assert "signers.toml" in error["message"]
        assert "bundle" not in error["message"] + error["next_step"]
        (record,) = await running.records("policy.published")
        assert record["outcome"] == "failed"
        write_signers(site)
        assert (await publish(running, data)).status_code == 201


def test_a_publication_that_was_not_finished_is_forgotten_at_the_start(tmp_path: Path) -> None:
    store = PublicationStore(tmp_path / "policy")
    store.begin()
    store.prepare(unsigned({"bundle.toml": "", "schema.cedarschema": ""}))
    assert (tmp_path / "policy" / "pending.json").stat().st_mode & 0o077 == 0
    assert PublicationStore(tmp_path / "policy").versions() == []
    assert (tmp_path / "policy" / "pending.json").exists(), "whoever only reads, as the doctor, lets it be"
    store.begin()
    assert not (tmp_path / "policy" / "pending.json").exists()


@pytest.mark.parametrize("failures", [1, 2])
def test_what_could_not_be_finished_is_not_in_force_after_the_power_failed_or_nobody_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    folder, left = tmp_path / "policy", failures
    on_disk: set[str] = set()  # what the power's failure may leave: all names since the last fsync that succeeded

    def disk(directory: Path) -> None:
        nonlocal left
        left -= 1
        names = {path.name for path in directory.iterdir()}
        if left >= 0:
            on_disk.update(names)
            raise OSError(5, "Input/output error")
        on_disk.clear()
        on_disk.update(names)

    store = PublicationStore(folder)
    store.begin()
    store.prepare(unsigned({"bundle.toml": "", "schema.cedarschema": ""}))
    monkeypatch.setattr("gateway.publications.sync_directory", disk)
    with pytest.raises(OSError, match="Input/output error") as failed:
        store.finish(2)
    assert store.versions() == []
    assert ("0000000002.json" in on_disk) is ("nor is it known" in str(failed.value)) is (failures == 2)


def test_a_start_asks_for_the_signatures_again(site: Site) -> None:
    config = configuration.load(site.gateway_config)
    assert newest_published(config) is None
    store = PublicationStore(site.directory / "state" / "policy")
    assert not store._folder.exists(), "whoever looks makes nothing: the folder is to be the gateway's"
    store.begin()
    data = publication(files_of(site, 2, tests=False), "ann", "ben")
    store._folder.joinpath("0000000002.json").write_bytes(data)
    found = newest_published(config)
    assert found is not None
    assert found.version == 2
    write_signers(site, retired="ben")
    assert newest_published(config) is not None
    write_signers(site, without="ben")
    with pytest.raises(StartRefused, match="ben signed it, but is not among"):
        newest_published(config)
    write_signers(site)
    store._folder.joinpath("0000000002.json").write_bytes(data.replace(b"Operators move", b"Operators MOVE"))
    with pytest.raises(StartRefused, match="cannot be used"):
        newest_published(config)


def test_a_gateway_at_which_nobody_could_publish_does_not_start(site: Site) -> None:
    text = site.gateway_config.read_text()
    site.gateway_config.write_text(text.replace('signers = "signers.toml"', 'signers = "signers.toml"\napprovals = 3'))
    with pytest.raises(StartRefused, match="too few"):
        read_or_refuse(configuration.load(site.gateway_config))
    (site.directory / "signers.toml").write_text("")
    with pytest.raises(StartRefused, match="cannot be used"):
        read_or_refuse(configuration.load(site.gateway_config))
