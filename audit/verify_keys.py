"""Of the offline verifier: the keys that followed, or went before, a log key that the auditor pins.

`keys` in the log's folder has a line for each change of the key, signed by the old one and by the new one. Entries
count under any of them. A checkpoint does under a pinned key and under those that followed one: a former key that was
stolen could else make another history, or name a successor for it. Written from docs/audit-log.md; shares no code with
the writer.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from audit.verify_tree import PinnedKey, exact_base64, read_vkey

CONTEXT = b"sealane-log-key/v1\n"
MAX_BYTES = 256 * 1024
MEMBERS = {"new", "new_signature", "old", "old_signature"}


@dataclass(frozen=True, slots=True)
class Joined:
    """`every`: the pinned keys, and all that are joined to one of them by lines that both keys signed. `heirs`: those
    that are pinned or followed one that is. `lines`: what joins them."""

    every: tuple[str, ...]
    heirs: tuple[str, ...]
    lines: bytes


def joined_keys(directory: Path, vkeys: Sequence[str]) -> Joined:
    """By the file `keys` in `directory`, if there is one. Raises ValueError, OSError."""
    path = directory / "keys"
    if not path.exists():
        return keys_joined_by(b"", vkeys)
    with path.open("rb") as file:
        return keys_joined_by(file.read(MAX_BYTES + 1), vkeys)


def keys_joined_by(data: bytes, vkeys: Sequence[str]) -> Joined:
    """By what a file `keys` holds. Lines of keys that lead to none of `vkeys` say nothing. Raises ValueError."""
    heirs = {vkey.strip(): read_vkey(vkey) for vkey in vkeys}
    known = dict(heirs)
    if len(data) > MAX_BYTES:
        raise ValueError("the file `keys` is too large")
    lines = data.splitlines()
    changes = [_change(line) for line in lines]
    changes_within = [(old, new) for old, new in changes if read_vkey(old).name == read_vkey(new).name]
    for _ in changes:  # each round follows one more step of the chain
        for old, new in changes_within:
            if (old in known) != (new in known):
                known[old], known[new] = read_vkey(old), read_vkey(new)
            if old in heirs:
                heirs[new] = known[new]
    joining = (line for line, pair in zip(lines, changes, strict=True) if known.keys() >= set(pair))
    return Joined(tuple(known), tuple(heirs), b"".join(line + b"\n" for line in joining))


def _change(line: bytes) -> tuple[str, str]:
    """The old and the new key of a line, both of whose signatures hold. Raises ValueError."""
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("a line of the file `keys` is nested too deeply") from None
    if (
        not isinstance(value, dict)
        or set(value) != MEMBERS
        or not all(isinstance(each, str) for each in value.values())
    ):
        raise ValueError("a line of the file `keys` is malformed")
    message = CONTEXT + f"{value['old']}\n{value['new']}\n".encode()
    for name in ("old", "new"):
        key: PinnedKey = read_vkey(value[name])
        if not key.verifies(message, exact_base64(value[f"{name}_signature"])):
            raise ValueError(f"a line of the file `keys` is not signed by its {name} key")
    return value["old"], value["new"]
