"""What a file holds to a frozen tree, or the one thing in it that must be corrected first."""

from __future__ import annotations

import tomllib
from typing import Any, TypeVar

import msgspec

from policy.settings.allowed import shown
from policy.settings.misfit import KeyPath, first_misfit, spelled

T = TypeVar("T")


class SettingRefused(Exception):
    """`path`: of the key, () for the file as a whole. `problem`: what stands there and what may."""

    def __init__(self, path: KeyPath, problem: str) -> None:
        self.key = spelled(path)
        super().__init__(f"{self.key}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


def decode_settings(content: bytes | str, shape: type[T]) -> T:
    """A TOML file. Errors: SettingRefused, and nothing else, whatever `content` holds."""
    try:
        return msgspec.toml.decode(content, type=shape)
    except msgspec.ValidationError as error:
        raise _misfit(
            tomllib.loads(content.decode() if isinstance(content, bytes) else content), shape, error
        ) from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise SettingRefused((), f"is not TOML: byte {byte:#04x} at position {error.start} is no UTF-8") from None
    except RecursionError:
        raise SettingRefused((), "is not TOML that can be read: it is nested too deeply") from None
    except ValueError as error:  # msgspec's own, a number of thousands of digits
        raise SettingRefused((), f"is not TOML: {_plain(error)}") from None


def convert_settings(tree: Any, shape: type[T]) -> T:
    """What another decoder made of a file (YAML, JSON). Errors: SettingRefused."""
    try:
        return msgspec.convert(tree, shape)
    except msgspec.ValidationError as error:
        raise _misfit(tree, shape, error) from None
    except RecursionError:
        raise SettingRefused((), "is nested too deeply") from None


def _misfit(tree: Any, shape: type, error: msgspec.ValidationError) -> SettingRefused:
    if not isinstance(tree, dict):
        return SettingRefused((), f"is {shown(tree)} and no table of keys")
    found = first_misfit(tree, shape)
    if found is not None:
        return SettingRefused(found.path, found.problem)
    what, _, where = str(error).partition(" - at ")  # "Expected `int`, got `str` - at `$.network.seals`"
    return SettingRefused((), f"{what} at {where}" if where else what)


def _plain(error: Exception) -> str:
    """tomllib's words, and for two of them what they mean."""
    text = " ".join(str(error).split())[:300]
    if text.startswith("Cannot overwrite a value"):
        return text.replace("Cannot overwrite a value", "a key stands twice in one table", 1)
    if text.startswith("Exceeds the limit"):
        return "a number has thousands of digits"
    return text
