"""What was pruned of a log: entry bundles below a floor, gone from its folder and kept by an archive. Hash tiles stay.

    DIR/pruned    {"archive": PATH, "bundles": N, "record": INDEX}

Bundles below N may be missing, and only those. The file alone allows nothing: entry INDEX, a `log.pruned` record under
the log's key, must say the same, so that whoever can delete files, but not sign, cannot pass a loss off as pruning.
"""

from pathlib import Path
from typing import Annotated

import msgspec

from audit import tiles
from audit.errors import UNDECODABLE, EntryPruned, LogDamaged
from audit.record import SignedRecord, decode_entry

PRUNED_KIND = "log.pruned"
FILE = "pruned"
_MAX_BYTES = 8192

Count = Annotated[int, msgspec.Meta(ge=0, le=2**54)]


class Pruned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bundles [0, `bundles`) are no longer the log's to keep; `archive` has them, as entry `record` says."""

    archive: str = ""
    bundles: Count = 0
    record: Count = 0

    def encode(self) -> bytes:
        """As the file holds it."""
        return msgspec.json.encode(self)

    def read_bundle(self, number: int) -> list[bytes]:
        """The entries of a pruned bundle, by the archive: check their hashes. Raises EntryPruned."""
        first = number * tiles.TILE_WIDTH
        where = f"entries {first} to {first + tiles.TILE_WIDTH - 1} were pruned"
        try:
            data = (Path(self.archive) / tiles.bundle_path(number)).read_bytes()
        except OSError as error:
            raise EntryPruned(f"{where}, and their archive {self.archive} cannot be read: {error.strerror}") from error
        entries, used = tiles.unframe(data)
        if used != len(data) or len(entries) != tiles.TILE_WIDTH:
            raise EntryPruned(f"{where}, and their archive {self.archive} is damaged there")
        return entries

    def is_said_by(self, entry: bytes) -> bool:
        """Whether `entry`, the log's at `record`, says the same. Raises RecordError if it is no entry of a log."""
        found = decode_entry(entry)
        return (
            isinstance(found, SignedRecord)
            and found.record.kind == PRUNED_KIND
            and found.record.sequence == self.record
            and found.record.details.get("bundles") == self.bundles
        )


NOTHING = Pruned()


def read_pruned(directory: Path) -> Pruned:
    """What the log's file says. Raises LogDamaged, OSError."""
    path = directory / FILE
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=Pruned)
    except FileNotFoundError:
        return NOTHING
    except UNDECODABLE as error:
        raise LogDamaged(f"{path} is malformed ({error}); restore it") from error
