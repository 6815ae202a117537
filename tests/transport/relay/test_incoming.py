"""Control connections of other relays: what is shared by whom, of the log and of connections that say nothing."""

from __future__ import annotations

import pytest

from certs.identity import SpiffeId
from transport.errors import ConnectionBroken
from transport.relay.incoming import MAX_SILENT, MAX_SILENT_OF_SITE, Silences, crowd_of

OWN = "west.example"


def hosts(trust_domain: str, count: int) -> list[SpiffeId]:
    return [SpiffeId(trust_domain, f"h{number}") for number in range(count)]


def test_a_site_whose_ca_makes_names_without_end_counts_as_one() -> None:
    assert len({crowd_of(host, OWN) for host in hosts(OWN, 100)}) == 100
    assert len({crowd_of(host, OWN) for host in hosts("east.example", 100)}) == 1
    assert crowd_of(None, OWN) == ""


@pytest.mark.parametrize(
    ("trust_domain", "names", "most"), [(OWN, 1, MAX_SILENT), ("east.example", 500, MAX_SILENT_OF_SITE)]
)
def test_so_many_say_nothing_at_once_and_no_more(trust_domain: str, names: int, most: int) -> None:
    silences, taken = Silences(), 0
    for host in hosts(trust_domain, names) * (500 // names):
        try:
            silences.begin(crowd_of(host, OWN))
        except ConnectionBroken:
            break
        taken += 1
    assert taken == most
    silences.begin(crowd_of(SpiffeId(OWN, "another"), OWN))
    silences.end(crowd_of(hosts(trust_domain, 1)[0], OWN))
    silences.begin(crowd_of(hosts(trust_domain, 1)[0], OWN))
