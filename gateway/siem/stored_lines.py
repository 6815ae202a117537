"""What a receiver stored, as files, against the log's folder: by the gateway's configuration, without the gateway.

That the log itself is whole is `sealane audit verify`'s to say. For receivers that cannot be asked. The sink's own
filter, redaction, format and limit say what each entry's line must be, so a file is compared with what was meant to be
in it and with nothing else.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from audit.checkpoint import read_note
from audit.errors import CheckpointError, LogTruncated
from audit.reader import LogReader
from audit.siem.formats.parse import MAX_LINE_BYTES
from audit.siem.reconcile_lines import LineFindings, LineSource, Stored, reconcile_lines
from gateway.config import GatewayConfig
from gateway.counted import counted
from gateway.errors import RequestRefused
from gateway.siem.line_receivers import stored_line
from gateway.siem.tables import ElasticsearchTable, unknown_sink

_GZIP: Final = b"\x1f\x8b"
_MAX_CHECKPOINT_BYTES: Final = 64 * 1024


def reconcile_files(
    config: GatewayConfig, name: str, files: Sequence[Path], start: int = 0, end: int | None = None
) -> LineFindings:
    """Compare the entries [start, end) (None: to the log's end) with all lines of `files` (plain or gzip).

    Errors: NotKnown, RequestRefused; AuditError for a log that cannot be read; OSError for a file that cannot.
    """
    table = next((each for each in config.siem.sinks if each.name == name), None)
    if table is None:
        raise unknown_sink(name, [each.name for each in config.siem.sinks])
    if isinstance(table, ElasticsearchTable):
        raise RequestRefused("this receiver can be asked", next_step=f"use: sealane siem reconcile {name}")
    directory, origin = config.path(config.log.directory), config.log.origin
    size = _size(directory, origin)
    end = size if end is None else end
    if not 0 <= start <= end <= size:
        raise RequestRefused(f"the range is not within the log, which has {counted(size, 'entry')}")
    reader = LogReader(directory)
    source = LineSource(
        origin,
        size,
        lambda first, last: list(reader.entries(first, last)),
        table.render(datetime.now(UTC)),
        stored_line(table, origin),
    )
    return reconcile_lines(_lines(files), source, start, end)


def _size(directory: Path, origin: str) -> int:
    """How many entries the log's own checkpoint counts. Raises AuditError, OSError."""
    with (directory / "checkpoint").open("rb") as file:
        checkpoint = read_note(file.read(_MAX_CHECKPOINT_BYTES).decode(errors="replace")).checkpoint
    if checkpoint.origin != origin:
        raise CheckpointError(f"{directory} is the log {checkpoint.origin}, and the configuration says {origin}")
    if checkpoint.size == 0:
        raise LogTruncated(f"{directory} holds no entry yet")
    return checkpoint.size


def _lines(files: Sequence[Path]) -> Iterator[Stored]:
    """Line by line, each with its place; one over the limit is cut there, which makes it none of ours."""
    for path in files:
        with path.open("rb") as plain:
            is_packed = plain.read(2) == _GZIP
            plain.seek(0)
            with gzip.open(plain) if is_packed else plain as file:
                number = 0
                while line := file.readline(MAX_LINE_BYTES + 1):
                    number += 1
                    if line.endswith(b"\n") or len(line) <= MAX_LINE_BYTES:
                        yield f"{path.name}:{number}", line.rstrip(b"\r\n")
                        continue
                    yield f"{path.name}:{number}", line
                    while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                        pass
