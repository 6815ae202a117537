"""What is wrong with a value by pydantic's account of it, in our words: what is allowed, never what was sent.

What was sent may hold a password.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MIGRATION_ID: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
PORT_NAME: Final = r"^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$"
HOST_NAME: Final = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
# What people write; the other patterns are between programs.
_PATTERNS: Final = {
    MIGRATION_ID: "an id: 1 to 64 letters, digits, - and _, with neither - nor _ in front",
    PORT_NAME: "a port's name: 1 to 32 of a-z, 0-9 and -, a letter first and no - at the end",
    HOST_NAME: "a host's name as the inventory has it: 1 to 63 of a-z, 0-9 and -, with no - at either end",
}
_WORDS: Final = {
    "missing": "is missing",
    "extra_forbidden": "is no member of this request",
    "greater_than_equal": "must be {ge} or more",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "string_too_short": "must have {min_length} characters or more",
    "string_too_long": "must have at most {max_length} characters",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number, and not so large a one",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a number that is finite",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have {min_length} entries or more",
    "literal_error": "must be {expected}",
    "json_invalid": "is no JSON",
}


def words_of(error: Mapping[str, Any]) -> str:
    """`error`: one of `ValidationError.errors()`."""
    kind, terms = str(error["type"]), error.get("ctx", {})
    if kind == "string_pattern_mismatch":
        pattern = terms["pattern"]
        return f"must be {_PATTERNS[pattern]}" if pattern in _PATTERNS else f"must match {pattern}"
    if kind == "string_too_short" and terms["min_length"] == 1:
        return "must not be empty"
    known = _WORDS.get(kind)
    return str(error["msg"]) if known is None else known.format(**terms)
