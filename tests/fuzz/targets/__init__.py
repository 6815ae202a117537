"""Every decoder of bytes that somebody else wrote, as one function each: a value or the decoder's own error.

Two use it: `test_targets.py`, which turns and cuts each seed, and `make fuzz-guided` (`guided.py`), which looks for new
ways through the code for as long as it is given. Targets may assert more than that nothing else is raised.
"""

from __future__ import annotations

from tests.fuzz.targets import commands, gateways, hypervisors, logs, peers, people, sealed, sessions
from tests.fuzz.targets.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *peers.TARGETS,
        *sealed.TARGETS,
        *sessions.TARGETS,
        *hypervisors.TARGETS,
        *gateways.TARGETS,
        *people.TARGETS,
        *logs.TARGETS,
        *commands.TARGETS,
    )
}
