"""As root, files are judged as the user whom the gateway runs as: root may read what that user may not, and the
rule that a key belongs to who reads it would send the key to root, where the gateway could not read it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

UNIT_USER: Final = "sealane-gateway"  # User= of deploy/systemd/sealane-gateway.service


@contextmanager
def as_service_user(folder: Path) -> Iterator[None]:
    """Who owns `folder`; where it is yet to be made, whom the unit names. For a program of one thread."""
    user = _service_user(folder) if os.geteuid() == 0 else None
    if user is None or user.pw_uid == 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _service_user(folder: Path) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(folder.stat().st_uid) if folder.exists() else pwd.getpwnam(UNIT_USER)
    except (KeyError, OSError):
        return None
