"""Each metric of gateway and relay is on a page, and no page names another."""

from __future__ import annotations

import re

from tests.docs.pages import PAGES, ROOT, blocks, read, spans

MADE = re.compile(r'(Counter)?(?:MetricFamily|_family)\(\s*"(sealane_[a-z_]+)"')


def test_metrics_and_pages_agree() -> None:
    code = "\n".join(read(file) for package in ("gateway", "transport") for file in (ROOT / package).rglob("*.py"))
    made = {f"{name}_total" if counter else name for counter, name in MADE.findall(code)}
    assert len(made) > 15
    pieces = [piece.text for page in PAGES for piece in (*spans(page), *blocks(page))]
    named = {name for text in pieces for name in re.findall(r"\bsealane_[a-z_]+[a-z]", text)}
    assert sorted(made - named) == []
    assert sorted(named - made) == []
