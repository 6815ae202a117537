"""Policies as Cedar's own formatter lays them out, comments kept. A second run changes nothing.

The formatter (4.14) goes to and fro between two layouts of a few expressions, so it is run twice: either of the two
then stays as it is, and an editor that runs it once makes nothing that `fmt --check` objects to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import cedarpy

from policy.bundle_files import POLICIES
from policy.errors import BundleRefused
from policy.source import check_nesting, tokens_of

WIDTH: Final = 100
INDENT: Final = 2


def format_policies(file: str, text: str) -> str:
    """Raises BundleRefused for what is not Cedar, and rather than to change a token."""
    check_nesting(file, text)
    try:
        done = cedarpy.format_policies(text, WIDTH, INDENT)
        again = cedarpy.format_policies(done, WIDTH, INDENT)
    except ValueError as error:
        words = " ".join(str(error).split())[:300]
        raise BundleRefused(file, f"is not Cedar: {words} (`sealane policy check` tells the place)") from error
    # The formatter may add or drop a comma at the end of a list, nothing else.
    if _essence(done) != _essence(text) or _essence(again) != _essence(text):
        raise BundleRefused(file, "would change its meaning if formatted: a defect of Cedar's formatter, report it")
    return again if again.endswith("\n") or not again else again + "\n"


def format_bundle(files: Mapping[str, str]) -> dict[str, str]:
    """The policy files that would change, as they would be."""
    formatted = {path: format_policies(path, text) for path, text in files.items() if path.startswith(f"{POLICIES}/")}
    return {path: text for path, text in formatted.items() if text != files[path]}


def _essence(text: str) -> list[str]:
    return [word for _, word in tokens_of(text) if word != ","]
