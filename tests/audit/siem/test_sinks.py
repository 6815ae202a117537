"""Every sink against the contract. rsyslog and the file system are real; Splunk and the webhook receiver are fakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.audit.siem import sink_contract as contract
from tests.audit.siem.receivers import FakeSplunkReceiver, FakeWebhookReceiver, FileReceiver, RsyslogReceiver

pytestmark = pytest.mark.real

MAKERS: dict[str, Callable[[Path], Any]] = {
    "file": FileReceiver,
    "syslog": lambda folder: RsyslogReceiver(folder, "syslog"),
    "relp": lambda folder: RsyslogReceiver(folder, "relp"),
    "fake-splunk": FakeSplunkReceiver,
    "fake-webhook": FakeWebhookReceiver,
}
NETWORKED = [name for name in MAKERS if name != "file"]


@pytest.fixture
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made = MAKERS[request.param](tmp_path)
    yield made
    made.close()


def all_of(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("receiver", names, indirect=True)


@all_of(*MAKERS)
async def test_what_is_delivered_arrives_in_order(receiver: Any) -> None:
    await contract.arrives_in_order(receiver)


@all_of(*MAKERS)
async def test_a_receiver_that_is_down_is_away_and_gets_all_when_it_is_back(receiver: Any) -> None:
    await contract.is_away_while_it_is_down_and_delivers_when_it_is_back(receiver)


@all_of(*NETWORKED)
async def test_a_restart_between_two_batches_loses_nothing(receiver: Any) -> None:
    await contract.survives_a_restart_between_two_batches(receiver)


@all_of(*NETWORKED)
async def test_a_frozen_receiver_costs_a_deadline_and_no_entry(receiver: Any) -> None:
    await contract.a_frozen_receiver_costs_a_deadline_and_no_entry(receiver)


@all_of(*MAKERS)
async def test_cancelled_anywhere_it_leaves_no_half_entry(receiver: Any) -> None:
    await contract.cancelled_anywhere_it_sends_no_half_entry(receiver, rounds=8, seed=1)


@all_of(*MAKERS)
async def test_two_deliveries_at_once_do_not_mix(receiver: Any) -> None:
    await contract.two_at_once_do_not_mix(receiver)


@all_of("fake-splunk", "fake-webhook")
async def test_one_entry_that_is_refused_does_not_stop_the_others(receiver: Any) -> None:
    await contract.one_that_is_refused_does_not_stop_the_others(receiver)


@all_of(*MAKERS)
async def test_errors_are_one_line_and_hold_no_secret(receiver: Any) -> None:
    await contract.says_what_is_wrong_and_no_secret(receiver)


@all_of("relp", "fake-splunk", "fake-webhook")
async def test_killed_at_random_an_acknowledging_receiver_misses_nothing(receiver: Any, tmp_path: Path) -> None:
    assert await contract.killed_at_random_it_misses_nothing(receiver, tmp_path, kills=15, seed=2) == []


@all_of("syslog")
async def test_killed_at_random_syslog_misses_nothing_that_its_window_covers(receiver: Any, tmp_path: Path) -> None:
    assert await contract.killed_at_random_it_misses_nothing(receiver, tmp_path, kills=15, seed=3) == []
