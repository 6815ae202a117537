"""`make rollover`."""

from tests.rollover.story import run_whole

raise SystemExit(run_whole())
