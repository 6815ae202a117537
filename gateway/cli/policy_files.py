"""Publications in files, as several commands of `sealane policy` read and write them."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.errors import REQUESTER, BadConfiguration
from gateway.cli.serve import needs_gateway_extra

if TYPE_CHECKING:
    from policy.bundle import Bundle
    from policy.publication import Publication

AUTHOR = "policy author"

PublicationArgument = Annotated[
    Path, typer.Argument(metavar="PUBLICATION", help="The file that `sealane policy sign` wrote.")
]


@contextmanager
def said_plainly() -> Iterator[None]:
    """What is wrong with a bundle or a key, as one line with who must act."""
    with needs_gateway_extra():
        from certs.errors import KeyFileError
        from policy.errors import BundleRefused
    try:
        yield
    except BundleRefused as error:
        raise BadConfiguration(str(error), AUTHOR, "correct it and run the command again", "bundle_refused") from error
    except KeyFileError as error:
        raise BadConfiguration(f"{error.path}: {error.problem}", REQUESTER, error.remedy) from error
    except OSError as error:
        raise BadConfiguration(f"{error.filename}: {error.strerror}", REQUESTER, "check the path") from error


def read_publication(path: Path) -> tuple[Publication, Bundle]:
    """A publication and its bundle, its tests run. Raises BundleRefused, OSError."""
    from policy.bundle import Bundle
    from policy.publication import MAX_PUBLICATION_BYTES, decode_publication

    if path.is_dir():
        raise BadConfiguration(f"{path} is a folder, not a publication", AUTHOR, "make one of it: sealane policy sign")
    with path.open("rb") as file:
        publication = decode_publication(file.read(MAX_PUBLICATION_BYTES + 1))
    return publication, Bundle.from_files(publication.files)


def write_new_folder(files: dict[str, str], directory: Path) -> None:
    """Into a new directory: nothing there is overwritten. The names were checked when the publication was read."""
    try:
        directory.mkdir()
    except OSError as error:
        raise BadConfiguration(
            f"{directory}: {error.strerror}", REQUESTER, "name a directory that does not exist yet"
        ) from error
    for path, text in files.items():
        target = directory / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
