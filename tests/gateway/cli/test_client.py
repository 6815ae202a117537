"""The client against a real HTTPS server."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certs.authority import Authority
from gateway.cli import connection
from gateway.cli.client import GatewayClient
from gateway.cli.credentials import StoredToken, store_token
from gateway.cli.errors import BadConfiguration, CommandError, Refused, Unreachable
from gateway.cli.settings import ClientSettings
from gateway.errors import NotSetUp
from tests.gateway.cli.conftest import ALLOWED, DENIED, MIGRATION, CannedGateway, token_of

QUESTION = {"vm": "web-1", "destination": "host-b"}


def connect(canned: CannedGateway, ca: Path | None = None) -> GatewayClient:
    return GatewayClient(ClientSettings(canned.url, ca or canned.ca, Path("unused"), 5), "aa.bb.cc")


def test_the_token_and_the_question_arrive(canned: CannedGateway) -> None:
    canned.answer("POST", "/v1/decisions", (200, {"decision": ALLOWED, "record_index": 7}))
    with connect(canned) as client:
        answer = client.check(QUESTION)
    assert (answer.decision.allowed, answer.record_index) == (True, 7)
    assert canned.asked[0].authorization == "Bearer aa.bb.cc"
    assert canned.asked[0].body == QUESTION


def test_a_denial_of_a_migration_is_an_answer(canned: CannedGateway) -> None:
    canned.answer("POST", "/v1/migrations", (403, {"migration_id": MIGRATION, "record_index": 8, "decision": DENIED}))
    with connect(canned) as client:
        assert client.request_migration(QUESTION).decision.policies[0].id == "card-data-stays"


def test_a_403_without_a_decision_is_a_refusal(canned: CannedGateway) -> None:
    error = {"code": "not_allowed", "message": "m", "who_must_act": "requester", "next_step": "n"}
    canned.answer("POST", "/v1/migrations", (403, {"error": error}))
    with connect(canned) as client, pytest.raises(Refused) as caught:
        client.request_migration(QUESTION)
    assert caught.value.line() == "sealane: m; the requester must act; n"
    assert caught.value.code == "not_allowed"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, 2), (401, 1), (403, 1), (404, 1), (409, 1), (413, 2), (422, 2), (429, 1), (500, 1), (502, 3), (503, 3)],
)
@pytest.mark.parametrize("with_words", [True, False])
def test_every_status_has_its_exit_code_with_and_without_words(
    canned: CannedGateway, status: int, kind: int, with_words: bool
) -> None:
    error = {"code": "c", "message": "m", "who_must_act": "w", "next_step": "n"}
    canned.answer("GET", "/v1/records/3", (status, {"error": error} if with_words else b"<html>oops</html>"))
    with connect(canned) as client, pytest.raises(CommandError) as caught:
        client.record(3)
    if with_words or status != 404:
        assert caught.value.exit_code == kind
    assert caught.value.line().isprintable()
    assert "<html>" not in caught.value.line()


@pytest.mark.parametrize(
    ("kept", "asked_again"),
    [
        (token_of("olga", 2), True),
        (token_of("olga", 1), False),  # as it was
        (token_of("mallory", 2), False),  # somebody else at the same terminal
        ("e30.e30.c2ln", False),
        ("rubbish", False),
        (None, False),
    ],
)
def test_a_command_under_way_goes_on_once_the_same_person_has_signed_in_anew(
    canned: CannedGateway, tmp_path: Path, kept: str | None, asked_again: bool
) -> None:
    error = {"code": "unauthenticated", "message": "m", "who_must_act": "requester", "next_step": "n"}
    canned.answer("POST", "/v1/decisions", (401, {"error": error}), (200, {"decision": ALLOWED, "record_index": 7}))
    token_file = tmp_path / "token.json"
    if kept is not None:
        store_token(token_file, StoredToken(kept, 2**31, canned.url))
    settings = ClientSettings(canned.url, canned.ca, token_file, 5)
    with GatewayClient(settings, token_of("olga", 1)) as client:
        if asked_again:
            assert client.check(QUESTION).record_index == 7
        else:
            with pytest.raises(Refused) as caught:
                client.check(QUESTION)
            assert caught.value.code == "unauthenticated"
            with pytest.raises(Refused):  # said without asking: each refusal of a token is a record
                client.record(3)
    sent = [one.authorization for one in canned.asked]
    assert sent == [f"Bearer {token_of('olga', number)}" for number in ([1, 2] if asked_again else [1])]
    assert all(one.body == QUESTION for one in canned.asked)


def test_what_the_gateway_is_not_set_up_for_is_a_matter_of_configuration(canned: CannedGateway) -> None:
    lacking = NotSetUp("this gateway prepares no evacuations", "[evacuation]")
    error = {"code": lacking.code, "message": lacking.detail, "who_must_act": "requester", "next_step": "n"}
    canned.answer("POST", "/v1/evacuations", (lacking.status, {"error": error}))
    with connect(canned) as client, pytest.raises(BadConfiguration) as caught:
        client.prepare_evacuation({"host": "a", "hours": 1})
    assert (caught.value.exit_code, caught.value.code) == (2, "not_set_up")


def test_a_migration_is_asked_for_at_the_gateway_that_permitted_it(
    canned: CannedGateway, other_canned: CannedGateway, tmp_path: Path
) -> None:
    """Also once the other one has permitted the next."""
    unknown = (404, {"error": {"code": "not_known", "message": "m", "who_must_act": "requester", "next_step": "n"}})
    for gateway, number in ((canned, "m-1"), (other_canned, "m-2")):
        allowed = {"decision": ALLOWED, "record_index": 7, "migration_id": number}
        gateway.answer("POST", "/v1/migrations", (202, allowed))
        for each in ("m-1", "m-2"):
            state = (200, {"migration_id": each, "state": "running"}) if each == number else unknown
            gateway.answer("GET", f"/v1/migrations/{each}", state)
    settings = ClientSettings(canned.url, canned.ca, tmp_path / "token", 5, others=(other_canned.url,))
    with GatewayClient(settings, "aa.bb.cc") as client:
        assert client.request_migration(QUESTION).migration_id == "m-1"
        canned.is_away = True
        assert client.request_migration(QUESTION).migration_id == "m-2"
        with pytest.raises(Unreachable):
            client.migration("m-1")
        canned.is_away = False
        assert [client.migration(each).state for each in ("m-1", "m-2")] == ["running"] * 2


def test_one_reading_of_a_log_stays_at_one_gateway(
    canned: CannedGateway, other_canned: CannedGateway, tmp_path: Path
) -> None:
    """Each has a log of its own: an index of the one means something else in the other."""
    for gateway, size in ((canned, 5), (other_canned, 9)):
        gateway.answer("GET", "/v1/checkpoint", (200, {"checkpoint": f"o\n{size}\nr\n"}))
    settings = ClientSettings(canned.url, canned.ca, tmp_path / "token", 5, others=(other_canned.url,))
    with GatewayClient(settings, "aa.bb.cc") as client:
        assert client.log_size() == 5
        canned.is_away = True
        with pytest.raises(Unreachable):
            client.log_size()
        canned.is_away = False
        assert client.log_size() == 5
    canned.is_away = True
    with GatewayClient(settings, "aa.bb.cc") as client:
        assert client.log_size() == 9
        canned.is_away, other_canned.is_away = False, True
        with pytest.raises(Unreachable):
            client.log_size()


def test_a_redirect_is_not_followed_with_the_token(canned: CannedGateway) -> None:
    canned.answer("GET", "/v1/records/3", (307, {}))
    with connect(canned) as client, pytest.raises(Unreachable):
        client.record(3)
    assert len(canned.asked) == 1


def test_a_proxy_of_the_environment_does_not_get_the_token(
    canned: CannedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    canned.answer("GET", "/v1/records/3", (200, {"record": {}}))
    with connect(canned) as client:
        assert client.record(3) == {"record": {}}


def test_a_gateway_under_another_ca_learns_nothing(canned: CannedGateway, tmp_path: Path) -> None:

    Authority.create(tmp_path, "other.example", datetime.now(UTC))
    with connect(canned, ca=tmp_path / "ca.pem") as client, pytest.raises(Unreachable) as caught:
        client.check(QUESTION)
    assert caught.value.code == "certificate_not_trusted"
    assert "--ca" in caught.value.next_step
    assert canned.asked == []


def test_the_name_in_the_certificate_must_be_the_one_asked_for(canned: CannedGateway) -> None:
    canned.url = canned.url.replace("127.0.0.1", "localhost")
    with connect(canned) as client, pytest.raises(Unreachable, match="not trusted"):
        client.check(QUESTION)


def test_nobody_there_is_unreachable(canned: CannedGateway) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        canned.url = f"https://127.0.0.1:{free.getsockname()[1]}"
    with connect(canned) as client, pytest.raises(Unreachable, match="did not answer: Connection refused"):
        client.check(QUESTION)


def test_a_mute_server_is_described_by_how_long_it_was_mute(
    canned: CannedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        canned.url = f"https://127.0.0.1:{mute.getsockname()[1]}"
        with (
            connect(canned) as client,
            pytest.raises(Unreachable, match=r"no connection, or no TLS handshake, within 0\.1 s"),
        ):
            client.check(QUESTION)


def test_a_server_without_tls_is_unreachable(canned: CannedGateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_plainly() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

        thread = threading.Thread(target=answer_plainly)
        thread.start()
        canned.url = f"https://127.0.0.1:{server.getsockname()[1]}"
        with connect(canned) as client, pytest.raises(Unreachable, match="speaks no TLS"):
            client.check(QUESTION)
        thread.join()


@pytest.mark.parametrize("content", ["", "no certificate in here"])
def test_a_ca_file_without_certificates_is_a_matter_of_configuration(
    canned: CannedGateway, tmp_path: Path, content: str
) -> None:
    (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(BadConfiguration, match=r"ca\.pem"):
        connect(canned, ca=tmp_path / "ca.pem")
    with pytest.raises(BadConfiguration, match="missing"):
        connect(canned, ca=tmp_path / "missing")


def test_an_endless_answer_is_cut_off(canned: CannedGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_ANSWER_BYTES", 10_000)
    canned.answer("GET", "/v1/records/3", (200, b" " * 200_000))
    with connect(canned) as client, pytest.raises(Unreachable, match="larger"):
        client.record(3)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"decision": {}, "record_index": 1}',
        b'{"decision": {"allowed": 1}, "record_index": 1}',
        b'{"decision": {"allowed": true}, "record_index": -1}',
        b'{"decision": {"allowed": true}, "record_index": 1e400}',
        b"[" * 100_000,
    ],
)
def test_an_answer_that_is_none_is_never_taken_for_an_allow(canned: CannedGateway, answer: bytes) -> None:
    canned.answer("POST", "/v1/decisions", (200, answer))
    with connect(canned) as client, pytest.raises(Unreachable) as caught:
        client.check(QUESTION)
    assert caught.value.code == "unexpected_answer"


def test_a_migration_id_of_a_hostile_server_stays_in_its_path(canned: CannedGateway) -> None:
    with connect(canned) as client, pytest.raises(CommandError):
        client.cancel("../records/1?x=#")
    assert canned.asked[0].path == "/v1/migrations/..%2Frecords%2F1%3Fx%3D%23/cancel"


@pytest.mark.parametrize("note", ["", "o\n", "o\n-1\nr\n", "o\n\u0661\nr\n", "o\n99999999999999999999\nr\n"])
def test_a_checkpoint_that_is_none_gives_no_size(canned: CannedGateway, note: str) -> None:
    canned.answer("GET", "/v1/checkpoint", (200, {"checkpoint": note}))
    with connect(canned) as client, pytest.raises(Unreachable):
        client.log_size()


def test_the_checkpoint_gives_the_size(canned: CannedGateway) -> None:
    canned.answer("GET", "/v1/checkpoint", (200, {"checkpoint": "origin\n42\nroot=\n\n— origin AAAA\n"}))
    with connect(canned) as client:
        assert client.log_size() == 42


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_any_json_is_an_answer_or_a_named_error(canned: CannedGateway) -> None:
    with connect(canned) as client:

        @settings(max_examples=40)
        @given(JSON, st.sampled_from([200, 403, 500]))
        def ask(document: Any, status: int) -> None:
            canned.answer("GET", f"/v1/migrations/{MIGRATION}", (status, document))
            with suppress(CommandError):
                client.migration(MIGRATION)

        ask()
