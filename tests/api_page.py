"""docs/api.md: every call of the gateway, made from its routes.

    python -m tests.api_page --write

What stands before the first table is written by hand. A test compares the page with what this makes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from fastapi import FastAPI
from fastapi.routing import APIRoute

from gateway.api.app import create_app
from gateway.api.desk import Desk

PAGE: Final = Path(__file__).parents[1] / "docs" / "api.md"
PARTS: Final = (
    ("people_calls", "Moving VMs, and who one is"),
    ("break_glass_calls", "Breaking glass ([break-glass.md](break-glass.md))"),
    ("drain_calls", "Emptying a host ([draining.md](draining.md))"),
    ("evacuation_calls", "Evacuations ([evacuation.md](evacuation.md))"),
    ("inventory_calls", "Inventory ([inventory.md](inventory.md))"),
    ("placement_calls", "Where things are ([hosts.md](hosts.md))"),
    ("enrolment_calls", "Hosts and keys ([certificates.md](certificates.md), [key-rollover.md](key-rollover.md))"),
    ("policy_calls", "Policy ([policy-publishing.md](policy-publishing.md))"),
    ("audit_calls", "Records and proofs ([audit-queries.md](audit-queries.md), [audit-proofs.md](audit-proofs.md))"),
    ("tile_calls", "The log itself ([audit-log.md](audit-log.md))"),
    ("prune_calls", "Pruning ([audit-log.md](audit-log.md))"),
    ("reconcile_calls", "Comparing receipts ([audit-log.md](audit-log.md), [sites.md](sites.md))"),
    ("siem_calls", "Delivery ([siem.md](siem.md))"),
    ("relay_calls", "Relays, by their hosts' certificates ([upgrading.md](upgrading.md))"),
    ("site_calls", "Other sites ([sites.md](sites.md))"),
)


@cache
def application() -> FastAPI:
    """No route of it is called, so it needs no desk."""
    layer = create_app(cast(Desk, None), request_seconds=1.0)
    while not isinstance(layer, FastAPI):
        layer = layer._app
    return layer


def page() -> str:
    told = application().openapi()
    head, _, _ = PAGE.read_text(encoding="utf-8").partition("\n## ")
    return "\n".join([head, *(line for module, title in PARTS for line in _part(module, title, told))])


def _part(module: str, title: str, told: dict[str, Any]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| call | what for | query, or body |"
    yield "|---|---|---|"
    for route in application().routes:
        if isinstance(route, APIRoute) and route.endpoint.__module__ == f"gateway.api.{module}":
            for method, call in told["paths"][route.path_format].items():
                if method.upper() in (route.methods or ()):
                    takes = ", ".join(_members(call, told))
                    yield f"| `{method.upper()} {route.path_format}` | {_words(call)} | {takes} |"
    yield ""


def _words(call: dict[str, Any]) -> str:
    summary = call["summary"].rstrip(".")
    said = f"{summary}{'' if summary.endswith('?') else '.'} {' '.join(call.get('description', '').split())}"
    return re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", said.strip()).replace("|", "\\|")


def _members(call: dict[str, Any], told: dict[str, Any]) -> Iterator[str]:
    """What must be given comes first; the others stand in brackets."""
    given = [
        (each["name"], each.get("required", False)) for each in call.get("parameters", []) if each["in"] == "query"
    ]
    content = call.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    if reference := content.get("$ref"):
        shape = told["components"]["schemas"][reference.rpartition("/")[2]]
        given += [(name, name in shape.get("required", ())) for name in shape["properties"]]
    yield from (f"`{name}`" if must else f"[`{name}`]" for name, must in sorted(given, key=lambda each: not each[1]))


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
