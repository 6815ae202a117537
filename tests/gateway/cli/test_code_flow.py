"""The loopback redirect of `sealane login --browser`: whoever else knocks at its port holds up no login."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import pytest

from gateway.cli import code_flow
from gateway.cli.code_flow import MAX_CONNECTIONS, Redirect
from gateway.cli.follow import Clock
from gateway.cli.issuer_client import Endpoints, OAuthError

ENDPOINTS = Endpoints("https://login.example", "https://login.example/token", "https://login.example/authorize")
CLOCK = Clock(time.monotonic, time.sleep)


@pytest.fixture
def redirect() -> Iterator[Redirect]:
    with Redirect("state", ENDPOINTS) as it:
        yield it


def come(redirect: Redirect, query: str) -> httpx.Response:
    return httpx.get(f"{redirect.uri}?{query}", trust_env=False, timeout=5)


def test_an_answer_to_another_question_is_turned_away_and_the_wait_goes_on(redirect: Redirect) -> None:
    def others_first() -> None:
        statuses.append(come(redirect, "code=stolen&state=other").status_code)
        statuses.append(come(redirect, "code=good&state=state").status_code)

    statuses: list[int] = []
    browser = threading.Thread(target=others_first)
    browser.start()
    assert redirect.wait(CLOCK) == "good"
    browser.join(10)
    assert statuses == [400, 200]


def test_the_issuers_no_is_told(redirect: Redirect) -> None:
    browser = threading.Thread(target=come, args=(redirect, "error=access_denied&state=state"))
    browser.start()
    assert redirect.wait(CLOCK) == OAuthError("access_denied")
    browser.join(10)


def test_whoever_holds_the_port_open_or_trickles_does_not_hold_the_login(redirect: Redirect) -> None:
    port = urlsplit(redirect.uri).port
    done = threading.Event()

    def trickle(connection: socket.socket) -> None:
        while not done.wait(0.2):
            try:
                connection.send(b"x")
            except OSError:
                return

    with ExitStack() as strangers:
        strangers.callback(done.set)
        for _ in range(20):
            connection = strangers.enter_context(socket.create_connection(("127.0.0.1", port or 0), 5))
            threading.Thread(target=trickle, args=(connection,), daemon=True).start()
        browser = threading.Thread(target=come, args=(redirect, "code=good&state=state"))
        browser.start()
        began = time.monotonic()
        assert redirect.wait(CLOCK) == "good"
        assert time.monotonic() - began < code_flow.REQUEST_SECONDS
        browser.join(10)


def test_however_many_knock_the_threads_are_few_and_the_browser_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_flow, "REQUEST_SECONDS", 600)  # else they end by themselves, on a busy machine too soon
    before = threading.active_count()
    with Redirect("state", ENDPOINTS) as redirect, ExitStack() as held:
        for _ in range(3 * MAX_CONNECTIONS):
            held.enter_context(socket.create_connection(("127.0.0.1", urlsplit(redirect.uri).port), timeout=30))
        assert come(redirect, "code=good&state=state").status_code == 200
        assert redirect.wait(CLOCK) == "good"
        until = time.monotonic() + 30
        while threading.active_count() > before + MAX_CONNECTIONS + 1 and time.monotonic() < until:
            time.sleep(0.01)
        assert threading.active_count() <= before + MAX_CONNECTIONS + 1
