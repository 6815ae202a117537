from __future__ import annotations

import re
from pathlib import Path

from msgspec import inspect

from policy.settings.allowed import allowed
from tests.configuration_page import PAGE, page
from transport.relay.limits import LimitsSection


def test_the_page_of_all_keys_is_that_of_the_types() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.configuration_page --write"


def test_the_relays_page_gives_each_bound_its_range() -> None:
    relay = (Path(__file__).parents[1] / "docs" / "relay.md").read_text()
    bounds = relay[relay.index("## Bounds and deadlines") :]
    ranges = dict(re.findall(r"^\| `([a-z_]+)` \| [^|]+ \| [^|]+ \| ([^|]+) \|", bounds, re.MULTILINE))
    limits = inspect.type_info(LimitsSection)
    assert isinstance(limits, inspect.StructType)
    assert ranges == {field.name: allowed(field.type).partition(", ")[2] for field in limits.fields}
