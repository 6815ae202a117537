"""`sealane gateway practice`: a place on this machine alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Sealane, only_error_line


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", "192.0.2.1:8443"])
def test_it_listens_where_its_certificate_is_good(sealane: Sealane, tmp_path: Path, listen: str) -> None:
    result = sealane("gateway", "practice", tmp_path / "gateway", "--listen", listen)
    assert result.exit_code == 2
    assert "give 127.0.0.1:PORT" in only_error_line(result)
    assert not (tmp_path / "gateway").exists()
