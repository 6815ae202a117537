"""Of the offline verifier: the keys that followed, or went before, a log key that the auditor pins.

`keys` in the log's folder has a line for each change of the key, signed by the old one and by the new one. Written from
docs/audit-log.md; shares no code with the writer.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from audit.verify_tree import PinnedKey, exact_base64, read_vkey

CONTEXT = b"sealane-log-key/v1\n"
MAX_BYTES = 256 * 1024
MEMBERS = {"new", "new_signature", "old", "old_signature"}


def known_keys(directory: Path, vkeys: Sequence[str]) -> tuple[str, ...]:
    """`vkeys` and all that are joined to one of them by lines that both keys signed. Raises ValueError, OSError."""
    return joined_keys(directory, vkeys)[0]


def joined_keys(directory: Path, vkeys: Sequence[str]) -> tuple[tuple[str, ...], bytes]:
    """As `known_keys`, and the lines that join them."""
    path = directory / "keys"
    if not path.exists():
        return keys_joined_by(b"", vkeys)
    with path.open("rb") as file:
        return keys_joined_by(file.read(MAX_BYTES + 1), vkeys)


def keys_joined_by(data: bytes, vkeys: Sequence[str]) -> tuple[tuple[str, ...], bytes]:
    """By what a file `keys` holds. Lines of keys that lead to none of `vkeys` say nothing. Raises ValueError."""
    known = {vkey.strip(): read_vkey(vkey) for vkey in vkeys}
    if len(data) > MAX_BYTES:
        raise ValueError("the file `keys` is too large")
    lines = data.splitlines()
    changes = [_change(line) for line in lines]
    for _ in changes:  # each round follows one more step of the chain, in whatever direction
        for old, new in changes:
            if (old in known) != (new in known) and read_vkey(old).name == read_vkey(new).name:
                known[old], known[new] = read_vkey(old), read_vkey(new)
    joining = (line for line, pair in zip(lines, changes, strict=True) if known.keys() >= set(pair))
    return tuple(known), b"".join(line + b"\n" for line in joining)


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
