"""Numbers of things as people write them: `1 entry`, `2 entries`, `0 records`."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """`thing` in the singular; its plural is regular: by `s`, of `sh` by `es`, of a consonant and `y` by `ies`."""
    if number == 1:
        return f"1 {thing}"
    if thing.endswith("y") and thing[-2:-1] not in "aeiou":
        return f"{number} {thing[:-1]}ies"
    return f"{number} {thing}{'es' if thing.endswith('sh') else 's'}"
