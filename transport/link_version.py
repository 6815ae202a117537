"""Which version of their calls relay and gateway speak: how one of them is upgraded before the other.

Both decode bodies strictly, so nothing may be sent to a side that does not know it. Each names the newest version that
it speaks in a header, which one that knows no versions passes over, and who names none speaks the first. Both keep to
the lower one. A version is spoken until the next but one; beyond that, both sides say who must be upgraded.

    1   no header; assignments `migrate`, `cancel`, `inspect`; of trust roots and CRLs
    2   `holds` of a poll; of trust introductions, `leaving`, `retired`, `foreign_crls`; `other_permit` of `migrate`;
        assignments `evacuation`, `withdraw_evacuation`; `size_bytes` of disks in facts of a machine (no release
        spoke it without); a permit is told of by `permit`, and fetched (nor that)
"""

from __future__ import annotations

import re
from typing import Final

HEADER: Final = "sealane-link"
FIRST: Final = 1
NEWEST: Final = 2
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,3}")

# What is new in a version, by which it is left out for a side of an earlier one.
ROLLOVERS: Final = 2
SITES: Final = 2
EVACUATIONS: Final = 2
DISK_SIZES: Final = 2
FETCHES: Final = 2


class LinkRefused(Exception):
    """Too far apart to understand each other. `ours_is_older`: this side is the one to upgrade."""

    def __init__(self, theirs: str, *, ours_is_older: bool) -> None:
        super().__init__(f"it speaks version {theirs} of relays' calls, and this side {NEWEST}")
        self.ours_is_older = ours_is_older


def agreed(theirs: str | None) -> int:
    """What both speak, by what the other side's header says; None where it has none. Raises LinkRefused."""
    if theirs is not None and not _NUMBER.fullmatch(theirs):
        raise LinkRefused("?", ours_is_older=True)
    version = FIRST if theirs is None else int(theirs)
    if abs(version - NEWEST) > 1:
        raise LinkRefused(str(version), ours_is_older=version > NEWEST)
    return min(version, NEWEST)
