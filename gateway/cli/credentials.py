"""Passwords and tokens in files that only their owner can read.

A token cache is one JSON object, `{"access_token", "expires_at", "gateway"}`; a token file may also
hold a bare token on one line, as other issuers' tools write it. Neither is ever an argument of a
command, where every process of the machine could read it.
"""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import base64
import os
import stat
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from gateway.cli.errors import REQUESTER, BadConfiguration, CommandError, Refused
from gateway.cli.settings import ClientSettings
from gateway.missing import is_missing
from transport.errors import UNDECODABLE

_MAX_SECRET_BYTES = 32 * 1024


class StoredToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """expires_at: unix seconds. gateway: this token is sent to it, and to those that client.toml names beside it."""

    access_token: str
    expires_at: Annotated[int, msgspec.Meta(ge=0)]
    gateway: str


def read_secret(path: Path, what: str) -> str:
    """The file's text without its last line end.

    Raises BadConfiguration unless it is a regular file of ours (or root's), mode 0600 or stricter, of
    at most 32 KiB: checked on the open descriptor, so that no rename can slip another file in between.
    """
    try:
        # NONBLOCK: a fifo in its place must not hang the command.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BadConfiguration(
            f"the {what} {path} cannot be read: {error.strerror}", REQUESTER, "check the path and its permissions"
        ) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise BadConfiguration(f"the {what} {path} is not a regular file", REQUESTER, "name a file")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_mode & 0o077 or status.st_uid not in {0, os.geteuid()}:
            raise BadConfiguration(
                f"the {what} {path} can be read or changed by others", REQUESTER, f"own it and run chmod 600 {path}"
            )
        data = file.read(_MAX_SECRET_BYTES + 1)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadConfiguration(f"the {what} {path} is not UTF-8 text", REQUESTER, "write it anew") from error
    if len(data) > _MAX_SECRET_BYTES:
        raise BadConfiguration(f"the {what} {path} is larger than 32 KiB", REQUESTER, "name another file")
    return text.removesuffix("\n").removesuffix("\r")


def password_of(file: Path | None, *, twice: bool = False) -> str:
    """From `file` as `read_secret` has it; from a line of standard input that is a pipe or `-`; else asked for.

    `twice`: at a terminal, where nobody sees what they type. Raises typer.Abort where the input ended before.
    """
    piped = sys.stdin is None or not sys.stdin.isatty()
    if file is not None and str(file) != "-":
        return read_secret(file, "password file")
    if not piped:
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=twice, err=True))
    # Not by getpass: it would warn, in Python's words, that it cannot switch off the echo of what is no terminal.
    line = "" if sys.stdin is None else sys.stdin.readline(_MAX_SECRET_BYTES)
    if not line:
        raise typer.Abort
    return line.removesuffix("\n").removesuffix("\r")


def token_of(settings: ClientSettings, now: int) -> str | None:
    """The access token to send; None for a program that shows its certificate and has no token."""
    if settings.certificate is not None and is_missing(settings.token_file):
        return None
    return read_token(settings.token_file, settings.gateway, now, settings.site)


def read_token(path: Path, gateway: str, now: int, site: Collection[str] = ()) -> str:
    """The access token to send to `gateway`, of whichever gateway of `site` it is; `now` in unix seconds."""
    if is_missing(path):
        raise BadConfiguration(f"there is no token in {path}", REQUESTER, "run `sealane login`", "not_logged_in")
    text = read_secret(path, "token file")
    if not text.startswith("{"):
        return _bare(text, path)
    try:
        stored = msgspec.json.decode(text, type=StoredToken)
    except UNDECODABLE as error:
        raise BadConfiguration(
            f"the token file {path} is not one of `sealane login`: {error}", REQUESTER, "run `sealane login` again"
        ) from error
    if stored.gateway != gateway and stored.gateway not in site:
        # A token that is good for one gateway is not shown to another, which could use it there.
        raise BadConfiguration(
            f"the token in {path} is for {stored.gateway}, not for {gateway}",
            REQUESTER,
            "run `sealane login` for this gateway, or name another --token-file",
        )
    if stored.expires_at <= now:
        raise Refused(f"the token in {path} has expired", REQUESTER, "run `sealane login`", "token_expired")
    return _bare(stored.access_token, path)


def newer_token(settings: ClientSettings, now: int, sent: str) -> str | None:
    """What a login of the same person has put into the token file since `sent` was read; None where there is none.

    Somebody else who signs in at the same terminal does not lend their name to a command that is under way.
    """
    try:
        found = token_of(settings, now)
    except CommandError:
        return None
    person = _person_in(sent)
    return found if found is not None and found != sent and person is not None and _person_in(found) == person else None


def _person_in(token: str) -> tuple[str, str] | None:
    """Issuer and subject as the token says them: unverified, which is the gateway's part; None if it does not."""
    try:
        part = token.split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)), type=_Person)
    except (IndexError, ValueError, *UNDECODABLE):
        return None
    return claims.iss, claims.sub


class _Person(msgspec.Struct, frozen=True):
    iss: str
    sub: str


def store_token(path: Path, token: StoredToken) -> None:
    """Replace the cache in one step, mode 0600 from its first byte."""
    from certs.files import write_atomically

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.encode(token) + b"\n", mode=0o600)
    except OSError as error:
        raise BadConfiguration(
            f"the token cannot be kept in {path}: {error.strerror}", REQUESTER, "name another --token-file"
        ) from error


def _bare(token: str, path: Path) -> str:
    # A line break in it would become a header of its own.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise BadConfiguration(f"the token file {path} does not hold a token", REQUESTER, "run `sealane login`")
    return token
