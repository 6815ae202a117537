"""A short soak. The long one is `make soak`."""

from pathlib import Path

import pytest

from tests.soak.kills import soak

pytestmark = pytest.mark.whole

KILLS = 20


def test_nothing_acknowledged_is_lost_however_often_the_gateway_is_killed(tmp_path: Path) -> None:
    result = soak(tmp_path, KILLS, seed=20261125)
    assert result.is_sound, result
    assert result.kills == KILLS
    assert result.records_acknowledged > KILLS
    assert result.permits_handed_out > 0
    assert result.checkpoints_heard > 0
