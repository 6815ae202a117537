"""A short soak, as people run the long one (`make soak`): in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole

KILLS = 15


def test_nothing_acknowledged_is_lost_however_often_the_gateway_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.soak", "--folder", str(tmp_path / "soak"), "--kills"]
    for kills in (5, KILLS):  # the second run goes on from the first
        done = subprocess.run([*command, str(kills)], capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] == KILLS
    wrong = ("records_lost", "gaps", "forks", "permits_unprovable")
    assert [result[name] for name in wrong] == [0, 0, 0, 0], result
    assert result["records_acknowledged"] > KILLS
    assert result["permits_handed_out"] > 0
    assert result["checkpoints_heard"] > 0
