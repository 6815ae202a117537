"""`sealane inventory`: as an operator runs it, against a running gateway and on its configuration alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.cli.test_real_gateway import Person
from tests.gateway.conftest import UUID_WEB, Running

pytestmark = pytest.mark.whole


async def test_show_tells_sources_facts_and_ages(running: Running, tmp_path: Path) -> None:
    alice = person(running, tmp_path)
    everything = await alice.sealane("inventory", "show")
    assert "ok    inventory  2 VMs, 4 hosts, confirmed" in everything.stdout
    one = (await alice.sealane("inventory", "show", UUID_WEB, "--json")).document
    assert (one["outcome"], one["vm"]["name"]) == ("known", "web")
    assert one["vm"]["facts"]["classification"]["source"] == "inventory"
    assert "zone            test  (from inventory, " in (await alice.sealane("inventory", "show", "b")).stdout
    assert "no source" in (await alice.sealane("inventory", "show", "nothing", expected=1)).stderr


async def test_a_check_shows_the_facts_that_it_was_decided_on(running: Running, tmp_path: Path) -> None:
    alice = person(running, tmp_path)
    # Exit code 1: allowed, but nobody plays the relays here, so it cannot be now.
    shown = (await alice.sealane("migrate", "web", "--to", "b", "--check", expected=1)).stdout
    assert "fact  web: zone test, from inventory, " in shown
    document = (await alice.sealane("migrate", "web", "--to", "b", "--check", "--json", expected=1)).document
    assert {"of": "b", "fact": "site", "value": "fra", "source": "inventory"}.items() <= next(
        fact.items() for fact in document["decision"]["facts"] if (fact["of"], fact["fact"]) == ("b", "site")
    )


async def test_check_reads_each_source_and_says_what_to_correct(running: Running, tmp_path: Path) -> None:
    alice, config = person(running, tmp_path), running.site.gateway_config
    assert "All sources answer and agree." in (await alice.sealane("inventory", "check", "--config", config)).stdout
    good = running.site.inventory.read_text()
    running.site.inventory.write_text(good.replace('zone = "test"', "zone = 7"))
    assert (
        "allowed is 1 to 63 ASCII letters"
        in (await alice.sealane("inventory", "check", "--config", config, expected=1)).stdout
    )
    running.site.inventory.write_text(good)
    config.write_text(
        f"""{config.read_text()}
[[inventory.sources]]
name = "cmdb"
kind = "http"
url = "https://127.0.0.1:1/"
"""
    )
    ended = await alice.sealane("inventory", "check", "--config", config, "--json", expected=3)
    assert ended.document["outcome"] == "failed"
    assert "cannot be reached" in ended.document["sources"][1]["failure"]


def person(running: Running, folder: Path) -> Person:
    made = Person(running, "alice", folder / "home")
    settings = made.home / ".config" / "sealane" / "client.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'gateway = "{running.url}"\nca = "{running.site.ca}"\n')
    made.take_token()
    return made
