"""Logs to measure with: real ones, whole, and the same however they were made."""

from pathlib import Path

import pytest

from audit.log import Log
from audit.verify import verify_log
from bench.audit_log_maker import CHUNK, bench_signer, make_log

pytestmark = pytest.mark.whole


def test_a_made_log_verifies_and_goes_on_from_where_it_was(tmp_path: Path) -> None:
    log = make_log(tmp_path / "twice", CHUNK, workers=1)
    make_log(tmp_path / "twice", CHUNK + 1, workers=1)
    make_log(tmp_path / "once", 2 * CHUNK, workers=2)
    verdict = verify_log(log, [(tmp_path / "twice" / "log.vkey").read_text()])
    assert (verdict.ok, verdict.problems, verdict.size) == (True, [], 2 * CHUNK)
    (warning,) = verdict.warnings  # its hosts have no keys
    assert "carry no host's signature" in warning.what
    assert verdict.permits == 2 * CHUNK // 8
    with Log.open(tmp_path / "once" / "log", bench_signer()) as other:
        assert other.root_at(2 * CHUNK) == verdict.root
