"""What fuzzing has reached, in the repository: a new machine goes on where the last one ended.

`tests/fuzz/kept` has `hours.json` and, for each target, a ZIP of the inputs that led somewhere; seeds are in the
targets. The same inputs make the same file, so that a run that found nothing changes nothing.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Final

from certs.files import write_atomically

IN_REPOSITORY: Final = Path(__file__).with_name("kept")
HOURS: Final = "hours.json"
_LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)  # a ZIP has no earlier date


def take_up(working: Path, kept: Path = IN_REPOSITORY) -> None:
    """Lay into `working` what is kept of a target, or of hours, of which there is nothing yet."""
    working.mkdir(exist_ok=True)
    if not (working / HOURS).exists() and (kept / HOURS).exists():
        write_atomically(working / HOURS, (kept / HOURS).read_bytes())
    for packed in kept.glob("*.zip"):
        corpus = working / packed.stem
        if not corpus.exists():
            with zipfile.ZipFile(packed) as inputs:
                inputs.extractall(corpus)


def keep(working: Path, kept: Path = IN_REPOSITORY) -> list[str]:
    """Pack everything that `working` has of targets; the names of those."""
    kept.mkdir(exist_ok=True)
    names = []
    for corpus in sorted(path for path in working.iterdir() if path.is_dir()):
        inputs = sorted(path for path in corpus.iterdir() if not path.name.startswith("seed-"))
        if inputs:
            write_atomically(kept / f"{corpus.name}.zip", _packed(inputs))
            names.append(corpus.name)
    if (working / HOURS).exists():
        write_atomically(kept / HOURS, (working / HOURS).read_bytes())
    return names


def _packed(inputs: list[Path]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for each in inputs:
            packed.writestr(zipfile.ZipInfo(each.name, _LONG_AGO), each.read_bytes(), zipfile.ZIP_DEFLATED)
    return file.getvalue()
