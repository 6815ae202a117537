"""docs/api.md has the gateway's calls, all of them, as the routes say them."""

from __future__ import annotations

from tests.api_page import PAGE, application, page
from tests.docs.pages import read


def test_the_page_of_all_calls_is_that_of_the_routes() -> None:
    assert read(PAGE) == page(), "run: python -m tests.api_page --write"


def test_no_call_is_left_out() -> None:
    calls = [f"`{method} {path}`" for path, each in application().openapi()["paths"].items() for method in each]
    text = read(PAGE)
    assert len(calls) > 50
    assert [call for call in calls if call.replace(call.split()[0], call.split()[0].upper(), 1) not in text] == []
