"""Bytes of a TOML file to a frozen tree, or the one thing in it that must be corrected first."""

from __future__ import annotations

import tomllib
from typing import TypeVar

import msgspec

from transport.settings.misfit import first_misfit

T = TypeVar("T")


class SettingRefused(Exception):
    """`key`: its path in the file, "" for the file as a whole. `problem`: what stands there and what may."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.key = key
        self.problem = problem


def decode_settings(content: bytes, shape: type[T]) -> T:
    """Errors: SettingRefused, and nothing else, whatever `content` holds."""
    try:
        return msgspec.toml.decode(content, type=shape)
    except msgspec.ValidationError as error:
        raise _misfit(content, shape, error) from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise SettingRefused("", f"is not TOML: byte {byte:#04x} at position {error.start} is no UTF-8") from None
    except RecursionError:
        raise SettingRefused("", "is not TOML that can be read: it is nested too deeply") from None
    except ValueError as error:  # msgspec's own, a number of thousands of digits
        raise SettingRefused("", f"is not TOML: {_plain(error)}") from None


def _misfit(content: bytes, shape: type, error: msgspec.ValidationError) -> SettingRefused:
    found = first_misfit(tomllib.loads(content.decode()), shape)
    if found is not None:
        return SettingRefused(found.key, found.problem)
    what, _, where = str(error).partition(" - at ")  # "Expected `int`, got `str` - at `$.network.seals`"
    return SettingRefused(where.strip("`").removeprefix("$").removeprefix("."), what)


def _plain(error: Exception) -> str:
    """tomllib's words, and for two of them what they mean."""
    text = " ".join(str(error).split())[:300]
    if text.startswith("Cannot overwrite a value"):
        return text.replace("Cannot overwrite a value", "a key stands twice in one table", 1)
    if text.startswith("Exceeds the limit"):
        return "a number has thousands of digits"
    return text
