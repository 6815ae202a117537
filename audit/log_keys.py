"""Which keys signed a log one after the other: `keys` in its folder, a line for each change, signed by both.

    {"new": <vkey>, "new_signature": <base64>, "old": <vkey>, "old_signature": <base64>} LF

Signed is LOG_KEY_CONTEXT ‖ old vkey LF ‖ new vkey LF. Whoever pins one of the keys knows all of them; the checkpoint
says which entries there are, so that a former key, were it stolen, adds none.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Final

from audit.checkpoint import LogSigner
from audit.errors import LogDamaged
from audit.verify_keys import MAX_BYTES

KEYS_FILE: Final = "keys"
LOG_KEY_CONTEXT: Final = b"sealane-log-key/v1\n"


def successor_line(old: LogSigner, new: LogSigner) -> str:
    """With its line end."""
    message = LOG_KEY_CONTEXT + f"{old.vkey}\n{new.vkey}\n".encode()
    line = {
        "old": old.vkey,
        "new": new.vkey,
        "old_signature": base64.b64encode(old.sign(message)).decode(),
        "new_signature": base64.b64encode(new.sign(message)).decode(),
    }
    return json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n"


def read_successors(directory: Path) -> bytes:
    """The whole file; empty if no key was ever replaced. Raises LogDamaged if nobody wrote it so large, and OSError."""
    try:
        with (directory / KEYS_FILE).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return b""
    if len(data) > MAX_BYTES:
        raise LogDamaged(f"{directory / KEYS_FILE} is larger than {MAX_BYTES} bytes")
    return data
