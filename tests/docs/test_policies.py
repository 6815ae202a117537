"""Each policy that a page shows whole is of the schema. (Those of the guide are run by its own test.)"""

from __future__ import annotations

import re

import cedarpy

from tests.docs.pages import PAGES, ROOT, blocks, read

POLICY = re.compile(r"^(?:permit|forbid) \(", re.MULTILINE)


def test_each_policy_is_of_the_schema() -> None:
    pages = [page for page in PAGES if page.name != "policy-guide.md"]
    shown = [block for page in pages for block in blocks(page) if POLICY.search(block.text) and "…" not in block.text]
    assert len(shown) > 3
    schema = read(ROOT / "policy" / "schema.cedarschema")
    verdicts = ((block, cedarpy.validate_policies(block.text, schema)) for block in shown)
    assert [f"{block}: {error}" for block, verdict in verdicts for error in verdict.errors] == []
