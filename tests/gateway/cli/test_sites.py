"""`sealane sites trust`: what is wrong with an address is said of the argument that it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Sealane, only_error_line


@pytest.mark.parametrize("url", ["http://east.example:8443", "east", "https://east.example/path"])
def test_an_address_that_is_none(sealane: Sealane, tmp_path: Path, url: str) -> None:
    result = sealane("sites", "trust", url, "--out", tmp_path / "east")
    assert result.exit_code == 2
    assert only_error_line(result).startswith(f'sealane: URL: "{url}" is not a gateway\'s address')
    assert not (tmp_path / "east").exists()
