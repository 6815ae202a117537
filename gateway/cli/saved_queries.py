"""Queries that a person keeps under a name: one JSON file, theirs alone (0600), replaced as a whole."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from certs.files import write_atomically
from gateway.cli.errors import REQUESTER, BadConfiguration
from transport.errors import UNDECODABLE

MAX_QUERIES = 500
_MAX_FILE_BYTES = 4 * 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def queries_file(home: Path) -> Path:
    """Where they are, beside client.toml."""
    return home / ".config" / "sealane" / "queries.json"


def read_queries(path: Path) -> dict[str, str]:
    """All of them, by name. Raises BadConfiguration."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadConfiguration(
            f"{path} cannot be read: {error.strerror}", REQUESTER, "check its permissions"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & 0o022 or status.st_uid not in {0, os.geteuid()}:
            # Who can change a query can hide a record from whoever runs it.
            raise BadConfiguration(f"{path} can be changed by others", REQUESTER, f"own it and run chmod 600 {path}")
        data = file.read(_MAX_FILE_BYTES + 1)
    try:
        return msgspec.json.decode(data[: _MAX_FILE_BYTES + 1], type=dict[str, str])
    except UNDECODABLE as error:
        raise BadConfiguration(f"{path} holds no saved queries: {error}", REQUESTER, "correct or remove it") from error


def save_query(path: Path, name: str, text: str) -> None:
    """Keep `text` as `name`, in place of what had that name. Raises BadConfiguration."""
    if not _NAME.fullmatch(name):
        raise BadConfiguration(f"{name!r} is no name for a query", REQUESTER, "use letters, digits, `.`, `_` and `-`")
    queries = read_queries(path) | {name: text}
    if len(queries) > MAX_QUERIES:
        raise BadConfiguration(f"{path} holds {MAX_QUERIES} queries already", REQUESTER, "remove some")
    _write(path, queries)


def remove_query(path: Path, name: str) -> None:
    """Forget it. Raises BadConfiguration if there is none of that name."""
    saved_query(path, name)
    _write(path, {other: text for other, text in read_queries(path).items() if other != name})


def saved_query(path: Path, name: str) -> str:
    """The text of one. Raises BadConfiguration."""
    try:
        return read_queries(path)[name]
    except KeyError:
        raise BadConfiguration(
            f"no query is saved as {name!r}", REQUESTER, "`sealane audit saved` lists them"
        ) from None


def _write(path: Path, queries: dict[str, str]) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.format(msgspec.json.encode(queries, order="sorted")) + b"\n", 0o600)
    except OSError as error:
        raise BadConfiguration(f"{path} cannot be written: {error.strerror}", REQUESTER, "check the folder") from error
