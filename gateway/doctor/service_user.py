"""As root, files are judged as the user whom the gateway runs as: root may read what that user may not, and the
rule that a key belongs to who reads it would send the key to root, where the gateway could not read it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from gateway.errors import StartRefused

UNIT_USER: Final = "sealane-gateway"  # User= of deploy/systemd/sealane-gateway.service


@contextmanager
def as_service_user(folder: Path) -> Iterator[None]:
    """Who owns `folder`; where it is yet to be made, whom the unit names. For a program of one thread.

    Raises StartRefused where root may not take that user's place.
    """
    user = _service_user(folder) if os.geteuid() == 0 else None
    if user is None or user.uid == 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    try:
        try:
            os.setgroups(user.groups)
            os.setegid(user.gid)
            os.seteuid(user.uid)
        except OSError as error:
            what = f"files cannot be judged as user {user.uid}, who owns {folder}: {error.strerror}"
            raise StartRefused(what, next_step="run this as that user") from error
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


class _User(NamedTuple):
    uid: int
    gid: int
    groups: list[int]


def _service_user(folder: Path) -> _User | None:
    """None: the folder is yet to be made, and the package has made no user."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        found = None
    try:
        entry = pwd.getpwnam(UNIT_USER) if found is None else pwd.getpwuid(found.st_uid)
    except KeyError:  # an owner whom no user database knows, as in a container
        return None if found is None else _User(found.st_uid, found.st_gid, [found.st_gid])
    return _User(entry.pw_uid, entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid))
